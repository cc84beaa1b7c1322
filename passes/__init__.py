"""Built-in passes, one file each; they come in through entry points like anybody else's."""

if __name__ != "onnxnas.passes":
    # With the repository root on sys.path a second copy of every class could be imported.
    raise ImportError("import onnxnas.passes, not passes")
