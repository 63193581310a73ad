"""The flags of ``aiayn-jax-translate``, which are read before JAX is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_data.flags import parse_flags
from gpt_trainer.errors import InputError

from aiayn_jax import TRANSLATE
from aiayn_jax.config import MOST_BEAM


@dataclass(frozen=True)
class TranslateOptions:
    """What to translate, and how.

    Attributes:
        model: A run or one of its steps.
        text: Translate this text.
        input: Translate the lines of this file (the standard input if neither is given).
        reference: File with a translation of each line, to score against.
        average: Checkpoints of a run to average (as many as it was scored with, if not given).
        beam: Translations kept at each position; 1 is greedy.
        length_penalty: Exponent that keeps beam search from preferring short translations.
        batch: Lines that are translated together.
        device: cpu, gpu, or auto.
        precision: Precision of products.
    """

    model: Path
    text: str | None = None
    input: Path | None = None
    reference: Path | None = None
    average: int | None = None
    beam: int = 4
    length_penalty: float = 0.6
    batch: int = 64
    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"


def read_options(argv: Sequence[str]) -> TranslateOptions:
    """The options, checked.

    Raises:
        InputError: If a value is unusable.
    """
    flags = parse_flags(
        argv,
        {"translation": TranslateOptions},
        prog=TRANSLATE,
        description="Translate with a trained encoder-decoder: a line out for every line in.",
    )
    options: TranslateOptions = flags.translation
    if options.text is not None and options.input is not None:
        raise InputError("--text and --input do not go together")
    try:
        (options.text or "").encode()
    except UnicodeEncodeError:
        raise InputError("--text is not UTF-8") from None
    for name in ("beam", "batch", "average"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is not positive")
    if options.beam > MOST_BEAM:
        raise InputError(f"--beam {options.beam} is above {MOST_BEAM}")
    if not 0 <= options.length_penalty < math.inf:
        raise InputError(f"--length-penalty {options.length_penalty} is not in [0, infinity)")
    return options
