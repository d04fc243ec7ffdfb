"""The ``distvae`` command, also ``python -m distvae``."""

from __future__ import annotations

import sys

from distvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
