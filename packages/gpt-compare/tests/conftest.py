"""What the tests share: hand-made metrics, and a small text."""

from __future__ import annotations

import sys
from pathlib import Path

# gpt_compare_toy is a module beside the tests
sys.path.insert(0, str(Path(__file__).parent))
