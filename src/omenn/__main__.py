"""``python -m omenn``."""

import sys

from omenn.start import main

if __name__ == "__main__":
    sys.exit(main())
