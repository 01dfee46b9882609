"""Lets the tests of figures import the synthetic records, which lie one folder up with those of the report."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
