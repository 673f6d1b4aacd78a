"""``python -m omenn.cli``."""

import sys

from omenn.cli import main

if __name__ == "__main__":
    sys.exit(main())
