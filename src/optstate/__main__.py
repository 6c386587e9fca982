"""`python -m optstate`, the same as `optstate`."""

from __future__ import annotations

import sys

from optstate.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
