"""Built-in targets and the cost sources behind them."""

if __name__ != "onnxnas.hwmodels":
    # With the repository root on sys.path a second copy of every class could be imported.
    raise ImportError("import onnxnas.hwmodels, not hwmodels")
