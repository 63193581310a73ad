"""Weights of a GPT-2 as Hugging Face stores them: one safetensors file or several with an index.

The folder is one that the user names, so that links are followed: the hub's own cache consists of them.
What a file holds beyond the parameters is held to its content, never passed over for its name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gpt_data.errors import naming, shown
from gpt_data.store.reading import read_bytes
from gpt_data.store.strict_json import parse_object

from gpt_trainer.checkpoint.load import CONFIG_LIMIT, layout_differences
from gpt_trainer.checkpoint.manifest import CONFIG, MODEL
from gpt_trainer.checkpoint.model_json import model_from_json
from gpt_trainer.checkpoint.tensors import FLOAT_DTYPES, STORED, TensorEntry, TensorFile
from gpt_trainer.errors import InputError, one_line
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, check_parameters, parameter_shapes

INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 1 << 22
SHARD_LIMIT = 1000
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors", re.ASCII)
PREFIX = "transformer."
WRAPPERS = {"_orig_mod", "module"}
"""Parts that torch.compile and data-parallel wrappers put into names; a GPT-2's own has neither."""
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
HIDDEN_SCORE = -9000.0
"""-10,000 in every type, rounded: softmax gives what the mask hides no weight."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_huggingface(folder: Path) -> tuple[ModelConfig, Parameters]:
    """Load a GPT-2 of any size; weights of other types than float32 are rounded or widened to it.

    Raises:
        InputError: If it is another architecture or function, or a file is missing, damaged or does not
            fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with {CONFIG} and {MODEL}")
    path = folder / CONFIG
    model = model_from_json(parse_object(read_bytes(path, CONFIG_LIMIT, follow_link=True), path), path)
    shapes = parameter_shapes(model)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(shard, follow_link=True)) for shard in _shards(folder)]
        entries = _merge(folder, files)
        extra = _known_extra(model) & entries.keys()
        _check_layout(folder, entries, shapes, extra)
        values: Parameters = {}
        for file in files:
            values |= {_canonical(name): value for name, value in file.read(file.entries).items()}
    with naming(folder):
        for name in sorted(extra):
            _check_extra(name, values.pop(name), values[EMBEDDING], model.context)
        check_parameters(values, model)
    return model, {name: values[name] for name in shapes}


def _canonical(name: str) -> str:
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return name if name.startswith((PREFIX, "lm_head.")) else PREFIX + name


def _merge(folder: Path, files: Iterable[TensorFile]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in file.entries.items():
            if _canonical(name) in entries:
                raise InputError(f"{folder}: tensor {shown(_canonical(name))} is stored twice")
            entries[_canonical(name)] = entry
    return entries


def _known_extra(model: ModelConfig) -> set[str]:
    """What a GPT-2's file may hold besides parameters: the head, and masks in files of old programs."""
    blocks = (f"{PREFIX}h.{layer}.attn." for layer in range(model.n_layer))
    return {HEAD, *(f"{block}{name}" for block in blocks for name in ("bias", "masked_bias"))}


def _check_layout(
    folder: Path, entries: dict[str, TensorEntry], shapes: dict[str, tuple[int, ...]], extra: set[str]
) -> None:
    kept = {name: entry for name, entry in entries.items() if name not in extra}
    wrong = layout_differences(kept, shapes, FLOAT_DTYPES)
    anything = {name: entries[name].shape for name in extra}
    wrong += layout_differences({name: entries[name] for name in extra}, anything, tuple(STORED))
    if wrong:
        raise InputError(f"{folder}: the weights do not fit {CONFIG}: {one_line(wrong)}")


def _check_extra(name: str, value: np.ndarray, embedding: np.ndarray, context: int) -> None:
    """Refuse what would make another function of the same parameters.

    Raises:
        ValueError: Naming the tensor.
    """
    if name == HEAD:
        if not np.array_equal(value, embedding):
            raise ValueError(f"{name} is not a copy of {EMBEDDING}; only tied heads can be loaded")
    elif name.endswith("masked_bias"):
        if value.size != 1 or not value.max() <= HIDDEN_SCORE:
            raise ValueError(f"{name} is not -10000, the score of what the causal mask hides")
    elif not np.array_equal(value, np.tri(context, dtype=np.float32)[None, None]):
        raise ValueError(f"{name} is not the causal mask of {context} positions")


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
    names = parse_object(read_bytes(index, INDEX_LIMIT, follow_link=True), index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: weight_map is {shown(names)}, expected tensor names and files")
    for name in names.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise InputError(f"{index}: {shown(name)} is not a plain name of a safetensors file")
    shards = sorted(set(names.values()))
    if len(shards) > SHARD_LIMIT:
        raise InputError(f"{index}: {len(shards)} files, at most {SHARD_LIMIT} are accepted")
    return [index.parent / name for name in shards]
