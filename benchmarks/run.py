"""Measure Datum Router beside its peers. `make bench` runs everything; see benchmarks/README.md.

Usage:
  run.py [--only KEYS] [--proxies NAMES] [--rounds N] [--seconds S] [--out DIR]
  run.py compare BASE.json NEW.json [--out DIR]
"""

from __future__ import annotations

import sys

from gatebench.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
