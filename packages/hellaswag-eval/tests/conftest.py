"""A model in NumPy that sees what a batch lets it see, and items made by hand."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# hellaswag_toy is a module beside the tests
sys.path.insert(0, str(Path(__file__).parent))
# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
