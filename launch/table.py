"""Trains every row of a table: ``python launch/table.py [option …] [key=value …]``, the same as ``distvae table``."""

import sys

from distvae.table.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
