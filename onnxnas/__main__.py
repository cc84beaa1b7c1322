"""Entry point of the command and of `python -m onnxnas`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported is quiet, too."""
    # Fits are many small products: threads of the matrix library only wait for each other, and
    # the last bits of a sum would depend on how many cores there are. It reads this when loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from onnxnas.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
