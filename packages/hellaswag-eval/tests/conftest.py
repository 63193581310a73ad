"""A model in NumPy that sees what a batch lets it see, and items made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

# hellaswag_toy is a module beside the tests
sys.path.insert(0, str(Path(__file__).parent))
