"""python -m glyphlm = glyphlm."""

import sys

from glyphlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
