"""Dataclasses to the flags of a command: one flag for each field, its help from the docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Any

import tyro


def parse_flags(argv: Sequence[str], sections: Mapping[str, Any], *, prog: str, description: str) -> Any:
    """An object with a dataclass for each section, as the flags change it; ``--help`` ends the process.

    Args:
        argv: The command's arguments.
        sections: By name a dataclass whose values are the defaults; or, first among them, a class, some of
            whose fields have none.
        prog: The command's name.
        description: What it does.
    """
    known = [
        (name, given) if isinstance(given, type) else (name, type(given), field(default=given))
        for name, given in sections.items()
    ]
    return tyro.cli(
        make_dataclass("Flags", known, frozen=True),
        # nobody types None: a flag that may be missing shows what it takes, and its help what happens without
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
        prog=prog,
        description=description,
        args=list(argv),
    )
