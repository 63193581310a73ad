"""Dataclasses to the flags of a command: one flag for each field, its help from the docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Any

import tyro


def parse_flags(argv: Sequence[str], sections: Mapping[str, Any], *, prog: str, description: str) -> Any:
    """An object with a dataclass for each section, as the flags change it; ``--help`` ends the process.

    Args:
        argv: The command's arguments.
        sections: Dataclasses by name; their values are the defaults.
        prog: The command's name.
        description: What it does.
    """
    kind = make_dataclass("Flags", [(name, type(value)) for name, value in sections.items()], frozen=True)
    return tyro.cli(
        kind,
        # nobody types None: a flag that may be missing shows what it takes, and its help what happens without
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
        prog=prog,
        description=description,
        args=list(argv),
        default=kind(**sections),
    )
