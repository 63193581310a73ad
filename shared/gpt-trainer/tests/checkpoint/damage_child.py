"""Damages a step in every way that counts in thousands, and prints what was not noticed as JSON.

Run as ``damage_child.py flips|lengths STEP``, in a process of its own, where no shape checks are hooked
in: they would make ten thousand loads four times as slow.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from gpt_trainer.checkpoint import load_checkpoint
from gpt_trainer.errors import InputError

FLIPS = 10_000


def noticed(step: Path, name: str) -> bool:
    """Whether loading fails, with a message that names the step and the damaged file.

    What is wrong with the manifest may show in the file that it speaks of.
    """
    try:
        load_checkpoint(step)
    except InputError as error:
        return step.name in str(error) and (name in str(error) or name == "manifest.json")
    return False


def flip(step: Path) -> tuple[int, list[object]]:
    """Every byte of the step once, then random ones; which of its bits is random."""
    contents = {path: path.read_bytes() for path in sorted(step.iterdir())}
    positions = [(path, byte) for path, raw in contents.items() for byte in range(len(raw))]
    chooser = random.Random(0)
    flips = positions + chooser.choices(positions, k=FLIPS - len(positions))
    missed: list[object] = []
    for path, byte in flips:
        descriptor = os.open(path, os.O_WRONLY)
        os.pwrite(descriptor, bytes([contents[path][byte] ^ 1 << chooser.randrange(8)]), byte)
        if not noticed(step, path.name):
            missed.append((path.name, byte))
        os.pwrite(descriptor, contents[path][byte : byte + 1], byte)
        os.close(descriptor)
    return len(flips), missed


def cut(step: Path) -> tuple[int, list[object]]:
    """Every length of every file but the right one, up to one byte more."""
    count, missed = 0, []
    for path in sorted(step.iterdir()):
        raw = path.read_bytes()
        path.write_bytes(raw + b"\0")
        for length in (len(raw) + 1, *reversed(range(len(raw)))):
            os.truncate(path, length)
            count += 1
            if not noticed(step, path.name):
                missed.append((path.name, length))
        path.write_bytes(raw)
    return count, missed


if __name__ == "__main__":
    count, missed = {"flips": flip, "lengths": cut}[sys.argv[1]](Path(sys.argv[2]))
    load_checkpoint(Path(sys.argv[2]))  # everything was put back
    sys.stdout.write(json.dumps({"count": count, "missed": missed}))
