"""Dataclasses to the flags of a command: one flag for each field, its help from the docstring."""

from __future__ import annotations

import argparse
import difflib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, field, fields, make_dataclass
from itertools import dropwhile, takewhile
from types import SimpleNamespace
from typing import Annotated, Any, NoReturn, get_type_hints

from gpt_data.errors import InputError
from gpt_data.terminal import NARROWEST_HELP, wide_enough, writing

HELP = ("-h", "--help", "--tyro-print-completion", "--tyro-write-completion")
UNBROKEN = 10_000
"""Columns in which the parser breaks no line of what it says of a mistake."""


def _choices(said: re.Match[str]) -> str:
    """What somebody types, in an order: of a flag that may be missing the parser has a set, None in it."""
    kinds = sorted({*re.split(r"[', ]+", said["kinds"])} - {"", "None"})
    return f"{said['flag']} takes one of {', '.join(kinds)}, not {said['word']}"


PLAINLY: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^Missing value for argument '(.*?)'.*", r"\1 takes a value"),
    # an argument of one type, or of one that may be missing
    (
        r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)",
        r"\1 takes a whole number, not \2",
    ),
    (r"^Error parsing (\S+): no type matching INT .*\[(.*)\]", r"\1 takes a whole number, not \2"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)", r"\1 takes a number, not \2"),
    (r"^Error parsing (\S+): no type matching FLOAT .*\[(.*)\]", r"\1 takes a number, not \2"),
    (
        r"^invalid choice (?P<word>.*) for argument '(?P<flag>.*?)'. Expected one of \((?P<kinds>.*)\)",
        _choices,
    ),
    (r"^Error parsing (?P<flag>\S+): no type matching \{(?P<kinds>.*)\} .*\[(?P<word>.*)\]", _choices),
    (r"^Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1 does not take \2"),
    (r"^Unrecognized options: ", "no flag in front of: "),
)
"""What the parser says of a mistake, and how the other errors would say it."""

ELSEWHERE = {
    "lr lr_scale": "learning_rate max_lr",
    "lr_scale": "lr",
    "lr_floor": "min_lr",
    "weight_decay": "wd",
    "clip_norm": "grad_clip max_grad_norm",
    "tokens_per_step batch_tokens micro_batch tokens_per_batch batch": "batch_size",
    "tokens_per_step micro_batch": "gradient_accumulation_steps",
    "steps": "epochs iters max_iters max_steps",
    "warmup": "warmup_steps warmup_iters",
    "eval_every": "eval_interval",
    "log_every": "log_interval",
    "save_every": "save_steps",
    "context longest": "block_size seq_len sequence_length",
    "context longest tokens": "max_length",
    "tokens": "max_new_tokens",
    "count": "num_samples",
    "d_model": "n_embd hidden_size",
    "n_layer": "num_layers layers",
    "n_head": "heads num_heads",
    "precision": "dtype bf16",
    "data": "dataset input",
    "out": "output output_dir out_dir",
    "resume model": "checkpoint ckpt",
    "preset init_from": "model",
    "layers kernels": "compile",
    "vocab tokenizer": "vocab_size",
}
"""Our flags, of which those that a command has come closest, and what other programs call it."""


def flag(name: str) -> str:
    """A field's name as it is typed: ``n_layer`` -> ``--n-layer``."""
    return "--" + name.replace("_", "-")


class FlagError(InputError):
    """A flag that the command does not have."""


class EarlyParser(argparse.ArgumentParser):
    """For the few flags on which the others' defaults depend, ahead of ``parse_flags``."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say it in one line."""
        raise FlagError(f"{message.removeprefix('argument ')}; --help lists all flags")


def parse_flags(argv: Sequence[str], sections: Mapping[str, Any], *, prog: str, description: str) -> Any:
    """An object with a dataclass for each section, as the flags change it; ``--help`` ends the process.

    Args:
        sections: By name a dataclass whose values are the defaults; or, first among them, a class, some of
            whose fields have none.

    Raises:
        FlagError: If a flag is unknown; the message proposes others. Also if one is missing or takes another
            kind of value, and if a section refuses its values.
    """
    refuse_unknown(argv, [item.name for given in sections.values() for item in fields(given)])
    asked = any(word.partition("=")[0] in HELP for word in argv)
    if not asked:
        _refuse_missing(argv, sections)
    import tyro

    known = []
    for name, given in sections.items():
        kind = _unchecked(given)
        rest = () if isinstance(given, type) else (field(default=kind(**vars(given))),)
        known.append((name, kind, *rest))
    with wide_enough(NARROWEST_HELP if asked else UNBROKEN), writing(), _one_line():
        found: Any = tyro.cli(
            make_dataclass("Flags", known, frozen=True),
            # nobody types None: a flag that may be missing shows what it takes, and its help what happens
            # without
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
            prog=prog,
            description=description,
            args=list(argv),
        )
    return _checked(found)


def _unchecked(given: Any) -> type[Any]:
    """A dataclass that takes any values: the parser would make a page of what is one line.

    Nothing is no default to be shown: what happens then is said by the flag's own words.
    """
    from tyro.conf import arg

    kind = given if isinstance(given, type) else type(given)
    hints = get_type_hints(kind, include_extras=True)
    plain = {
        item.name: Annotated[hints[item.name], arg(help_behavior_hint="")]
        for item in fields(kind)
        if (item.default if given is kind else getattr(given, item.name)) in (None, "", ())
    }
    known = {"__post_init__": lambda _: None, "__module__": kind.__module__, "__annotations__": plain}
    return type(kind.__name__, (kind,), known)


def _checked(flags: Any) -> Any:
    """The sections as what they are, each looked at by its own class."""
    parts = {}
    for name, part in vars(flags).items():
        try:
            parts[name] = type(part).__bases__[0](**vars(part))
        except ValueError as error:
            raise FlagError(str(error)) from None
    return SimpleNamespace(**parts)


def refuse_unknown(argv: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a flag that is none of a command's, and propose what may be meant.

    Raises:
        FlagError: For the first that is unknown.
    """
    known = {*names, *(f"no_{name}" for name in names)}
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in HELP and name[2:].replace("-", "_") not in known:
            meant = _meant(name[2:].replace("-", "_"), names)
            proposal = f": perhaps you meant {' or '.join(meant)}" if meant else "; --help lists all flags"
            raise FlagError(f"unknown flag {name}{proposal}")


def _refuse_missing(argv: Sequence[str], sections: Mapping[str, Any]) -> None:
    """Refuse a command line that lacks a flag which has no default."""
    typed = {word.partition("=")[0].replace("-", "_") for word in argv}
    needed = [
        flag(item.name)
        for given in sections.values()
        if isinstance(given, type)
        for item in fields(given)
        if item.default is MISSING and item.default_factory is MISSING and f"__{item.name}" not in typed
    ]
    if needed:
        raise FlagError(f"{' and '.join(needed)} must be given; --help lists all flags")


@contextmanager
def _one_line() -> Iterator[None]:
    """Within, a page of the parser's about a mistake is an error of one line."""
    page = io.StringIO()
    try:
        with redirect_stderr(page):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        said = _first_part(page.getvalue())
        for theirs, ours in PLAINLY:
            said = re.sub(theirs, ours, said)
        raise FlagError(f"{said}; --help lists all flags") from None


def _first_part(page: str) -> str:
    """What a page says before its first ruler, without heading and frame."""
    lines = (line.strip("│| ") for line in page.splitlines()[1:])
    body = takewhile(_is_text, dropwhile(lambda line: not _is_text(line), lines))
    return " ".join(body).rstrip(".")


def _is_text(line: str) -> bool:
    return bool(line.strip("─-"))


def _meant(name: str, names: Sequence[str]) -> list[str]:
    """The flags that come closest to a name, as they are typed."""
    meant = next((ours for ours, theirs in ELSEWHERE.items() if name in theirs.split()), "")
    found = [ours for ours in meant.split() if ours in names]
    found = found or difflib.get_close_matches(name, names, n=2)
    return [flag(ours) for ours in found]
