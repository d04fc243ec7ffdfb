"""Runs a sweep: ``python launch/sweep.py SWEEP.yaml [key=value …]``, the same as ``distvae sweep``."""

import sys

from distvae.sweeps.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
