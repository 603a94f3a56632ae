"""Copier's command without what costs it most: see `fast_copier` in tests/rendering.py."""

import sys
from pathlib import Path

from copier._cli import CopierApp

sys.path.append(str(Path(__file__).parents[3]))

from tests.rendering import fast_copier

with fast_copier():
    CopierApp.run()
