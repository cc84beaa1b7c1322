"""`python -m onnxnas`."""

from onnxnas.cli import main

main()
