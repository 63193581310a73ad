"""What all that crosses packages shares."""

from __future__ import annotations

import os
import signal

# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
# XLA takes longer to compile what these tests run than that takes: LLVM need not polish it
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
