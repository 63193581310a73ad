"""What all that crosses packages shares."""

from __future__ import annotations

import signal

# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
