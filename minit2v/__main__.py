"""`python -m minit2v` is the `minit2v` command: for torchrun, which starts modules and no commands."""

import sys

from minit2v.cli import main

if __name__ == "__main__":
    sys.exit(main())
