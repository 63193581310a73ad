"""``python -m gpt_jax.coordinator ADDRESS WORLD``: where processes meet, see ``processes.py``."""

from __future__ import annotations

import os
import sys
import time

LONG = 30 * 24 * 3600
"""Seconds: the watch over the processes knows better than JAX's clock when to end."""
FAREWELL_SECONDS = 40.0
"""So long it answers when the process that started it is lost: the others need 30 to name it and end."""


def main(address: str, world: int) -> None:
    """Serve until standard input ends, and then for a while, unless told that this is the end."""
    from jax._src.lib import _jax

    try:
        service = _jax.get_distributed_runtime_service(
            address, world, heartbeat_timeout=LONG, shutdown_timeout=int(FAREWELL_SECONDS)
        )
    except RuntimeError as error:
        sys.exit(str(error).splitlines()[0])
    print("ready", flush=True)
    # whoever waits for the end of what a lost process has said is not to wait for this one
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if sys.stdin.read() != "end":
        time.sleep(FAREWELL_SECONDS)
    service.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
