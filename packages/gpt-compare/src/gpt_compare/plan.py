"""What all competitors have in common, as one TOML file that every trainer reads with ``--config``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_data.store.writing import write_atomic

PLAN_NAME = "plan.toml"


def write_plan(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write the settings as TOML; the file's path.

    Args:
        settings: Values by name; TOML has no word for those that are None, which is their default.

    Raises:
        WriteError: If it cannot be written.
    """
    # a JSON string, number or truth value is also TOML's
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if value is not None]
    write_atomic(folder / PLAN_NAME, "".join(lines).encode())
    return folder / PLAN_NAME
