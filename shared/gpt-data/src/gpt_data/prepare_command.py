"""What ``gpt-data-prepare`` does: flags, a preparation that is shown, and a line of what it made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_data.dataset import Dataset
from gpt_data.display import watched
from gpt_data.flags import parse_flags
from gpt_data.prepare import prepare
from gpt_data.settings import MAX_DOCUMENT_BYTES, SHARD_TOKENS
from gpt_data.stopping import StopFlag
from gpt_data.terminal import emit
from gpt_data.tokenizers import size_said


@dataclass(frozen=True)
class PrepareOptions:
    """Turn text into token shards that every trainer of this project reads.

    Stopped at any moment, the same command goes on where it was.

    Attributes:
        data: stdlib, text:PATH, hf:NAME[:CONFIG[:SPLIT]], fineweb-edu or tinystories.
        tokenizer: bytes, bpe-scratch:VOCAB, gpt2 or PATH/tokenizer.json.
        out: Folder for the shards.
        tokenizer_files: Folder with GPT-2's encoder.json and vocab.bpe; the hub if not given.
        max_tokens: End each split with the document that brings it to this many tokens.
        shard_tokens: Tokens of a full shard.
        max_document_bytes: Largest document; a longer one is an error.
        part: Prepare this part alone, as in 3/16; a folder that holds all parts' folders is read as one.
        plain: Plain lines even on a terminal.
    """

    data: str
    tokenizer: str
    out: Path
    tokenizer_files: Path | None = None
    max_tokens: int | None = None
    shard_tokens: int = SHARD_TOKENS
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    part: str | None = None
    plain: bool = False


def prepare_command(argv: Sequence[str] | None = None) -> int:
    """Prepare what the flags say; the exit status is 0.

    Raises:
        InputError: If it cannot be prepared.
    """
    options: PrepareOptions = parse_flags(
        sys.argv[1:] if argv is None else argv,
        {"preparation": PrepareOptions},
        prog="gpt-data-prepare",
        description=" ".join((PrepareOptions.__doc__ or "").partition("Attributes:")[0].split()),
    ).preparation
    stop = StopFlag()
    with watched(stop, plain=options.plain or not sys.stderr.isatty()) as show:
        dataset = prepare(
            options.data,
            options.tokenizer,
            options.out,
            tokenizer_files=options.tokenizer_files,
            max_tokens=options.max_tokens,
            shard_tokens=options.shard_tokens,
            max_document_bytes=options.max_document_bytes,
            part=options.part,
            on_progress=show,
            should_stop=stop,
        )
    emit(summary(dataset))
    return 0


def summary(dataset: Dataset) -> str:
    """What was prepared, and what to type next."""
    plan = dataset.manifest.plan if dataset.manifest is not None else {}
    how = f" ({plan['held_out']})" if plan.get("held_out") else ""
    # a part is of use with the others beside it
    shards = dataset.folder.parent if "part" in plan else dataset.folder
    together = f", once all {plan['part'].partition('/')[2]} parts lie there" if "part" in plan else ""
    vocabulary = size_said(plan.get("tokenizer"), dataset.vocabulary.size)
    return (
        f"{dataset.folder}: {dataset.train.tokens:,} tokens to train on, "
        f"{dataset.val.tokens:,} held out{how}, vocabulary {vocabulary}; "
        f"train with --data {shlex.quote(f'shards:{shards}')}{together}"
    )
