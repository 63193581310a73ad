"""Weights of a GPT-2 as Hugging Face stores them: one safetensors file or several with an index."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from gpt_trainer.checkpoint.files import read_small
from gpt_trainer.checkpoint.load import CONFIG_LIMIT, layout_differences
from gpt_trainer.checkpoint.manifest import CONFIG, MODEL
from gpt_trainer.checkpoint.model_json import model_from_json
from gpt_trainer.checkpoint.strict_json import parse_object, shown
from gpt_trainer.checkpoint.tensors import FLOAT_DTYPES, TensorEntry, TensorFile
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, check_parameters, parameter_shapes

INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 1 << 22
SHARD_LIMIT = 1000
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors", re.ASCII)
PREFIX = "transformer."
# causal masks that old files carry as tensors, and the output head, which is the embedding
IGNORED = re.compile(r"transformer\.(h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight)", re.ASCII)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_huggingface(folder: Path) -> tuple[ModelConfig, Parameters]:
    """Load a GPT-2 of any size; float16 and bfloat16 weights are widened to float32.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``, or the shards that
            ``model.safetensors.index.json`` names.

    Raises:
        InputError: If it is another architecture, or a file is missing, damaged or does not fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with {CONFIG} and {MODEL}")
    path = folder / CONFIG
    model = model_from_json(parse_object(read_small(path, CONFIG_LIMIT), path), path)
    shapes = parameter_shapes(model)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(shard)) for shard in _shards(folder)]
        _check_layout(folder, _merge(folder, files), shapes)
        values: Parameters = {}
        for file in files:
            found = file.read([name for name in file.entries if _canonical(name) in shapes])
            values |= {_canonical(name): value for name, value in found.items()}
    try:
        check_parameters(values, model)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None
    return model, {name: values[name] for name in shapes}


def _canonical(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def _merge(folder: Path, files: Iterable[TensorFile]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in file.entries.items():
            if _canonical(name) in entries:
                raise InputError(f"{folder}: tensor {shown(_canonical(name))} is stored twice")
            entries[_canonical(name)] = entry
    return entries


def _check_layout(folder: Path, entries: dict[str, TensorEntry], shapes: dict[str, tuple[int, ...]]) -> None:
    kept = {name: entry for name, entry in entries.items() if not IGNORED.fullmatch(name)}
    wrong = layout_differences(kept, shapes, FLOAT_DTYPES)
    if wrong:
        raise InputError(f"{folder}: the weights do not fit {CONFIG}: {'; '.join(wrong)}")


def _shards(folder: Path) -> list[Path]:
    if os.path.lexists(folder / MODEL):
        return [folder / MODEL]
    if os.path.lexists(folder / INDEX):
        return _indexed(folder / INDEX)
    pickled = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickled:
        raise InputError(
            f"{folder} holds {shown(pickled[0])}, a pickle, which can run code and is never opened; "
            f"convert it to {MODEL} first"
        )
    raise InputError(f"{folder} holds neither {MODEL} nor {INDEX}")


def _indexed(index: Path) -> list[Path]:
    names = parse_object(read_small(index, INDEX_LIMIT), index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: weight_map is {shown(names)}, expected tensor names and files")
    for name in names.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise InputError(f"{index}: {shown(name)} is not a plain name of a safetensors file")
    shards = sorted(set(names.values()))
    if len(shards) > SHARD_LIMIT:
        raise InputError(f"{index}: {len(shards)} files, at most {SHARD_LIMIT} are accepted")
    return [index.parent / name for name in shards]
