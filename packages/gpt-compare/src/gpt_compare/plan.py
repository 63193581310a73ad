"""What all competitors have in common, as one TOML file that every trainer reads with ``--config``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_trainer.errors import WriteError
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.run.record import as_json
from gpt_trainer.settings.values import flat

PLAN_NAME = "plan.toml"


def write_plan(folder: Path, config: TrainConfig, evaluations: Mapping[str, Any] | None = None) -> Path:
    """Write the settings as TOML.

    Args:
        config: The settings; TOML has no word for those that are None, which is their default.
        evaluations: The flags of evaluations that other packages bring, by name.

    Returns:
        The file's path.

    Raises:
        WriteError: If it cannot be written.
    """
    values = flat(config)
    for flags in (evaluations or {}).values():
        values |= as_json(flags)
    # a JSON string, number or truth value is also TOML's
    given = {name: value for name, value in values.items() if value is not None}
    path = folder / PLAN_NAME
    try:
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()), "utf-8")
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    return path
