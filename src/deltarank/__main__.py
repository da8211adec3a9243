"""`python -m deltarank`."""

import sys

from deltarank.cli import main

if __name__ == "__main__":
    sys.exit(main())
