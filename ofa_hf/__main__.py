"""`python -m ofa_hf` runs the command `ofa-hf`."""

import sys

from ofa_hf.cli import main


if __name__ == "__main__":
    sys.exit(main())
