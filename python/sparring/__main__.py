"""`python -m sparring`: the command `sparring`; without arguments, what `sparring info` prints."""

from __future__ import annotations

import sys

from sparring.cli import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["info"])
