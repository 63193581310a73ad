"""Reading steps back: everything is held to the manifest before anything is returned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gpt_data.errors import naming, shown
from gpt_data.manifest import MAX_TOKENIZER_BYTES
from gpt_data.store.reading import RegularFile, read_bytes
from gpt_data.store.strict_json import parse_object

from gpt_trainer.checkpoint.discovery import ADVICE, find_steps, is_step, run_of
from gpt_trainer.checkpoint.manifest import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TRAINER,
    ForeignError,
    Manifest,
    read_manifest,
)
from gpt_trainer.checkpoint.model_json import model_from_json
from gpt_trainer.checkpoint.state import CheckpointState, SavedModel
from gpt_trainer.checkpoint.tensors import TensorEntry, TensorFile
from gpt_trainer.errors import InputError, one_line
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import (
    OptimizerState,
    Parameters,
    check_optimizer_state,
    check_parameters,
    parameter_shapes,
)

CONFIG_LIMIT = 1 << 20
TRAINER_LIMIT = 1 << 24
T = TypeVar("T")


def layout_differences(
    entries: Mapping[str, TensorEntry], want: Mapping[str, tuple[int, ...]], dtypes: tuple[str, ...]
) -> list[str]:
    """How the tensors of a file differ from those wanted, judged by the header alone.

    Returns:
        One phrase for each missing, extra, misshapen or mistyped tensor.
    """
    wrong = [f"missing {name} {shape}" for name, shape in want.items() if name not in entries]
    extra = (name for name in entries if name not in want)
    wrong += [f"unexpected {shown(name)} {entries[name].shape}" for name in extra]
    for name, shape in want.items():
        entry = entries.get(name)
        if entry and entry.shape != shape:
            hint = " (transposed?)" if entry.shape == shape[::-1] else ""
            wrong.append(f"{name} has shape {entry.shape}, expected {shape}{hint}")
        if entry and entry.dtype not in dtypes:
            wrong.append(f"{name} has dtype {entry.dtype}, expected {' or '.join(dtypes)}")
    return wrong


def load_tensors(path: Path, manifest: Manifest, want: Mapping[str, tuple[int, ...]]) -> Parameters:
    """The float32 tensors of one of a step's files, which must hold exactly those wanted.

    Raises:
        InputError: If it is not the recorded file, or holds other tensors.
    """
    with TensorFile(path, manifest.files[path.name]) as file:
        return _read(file, want, path)


def _read(file: TensorFile, want: Mapping[str, tuple[int, ...]], path: Path) -> Parameters:
    wrong = layout_differences(file.entries, want, ("F32",))
    if wrong:
        raise InputError(f"{path} does not fit {CONFIG}: {one_line(wrong)}")
    values = file.read(want)
    return {name: values[name] for name in want}


def _load_config(folder: Path, manifest: Manifest) -> ModelConfig:
    path = folder / CONFIG
    return model_from_json(parse_object(read_bytes(path, CONFIG_LIMIT, manifest.files[CONFIG]), path), path)


def _load_parameters(folder: Path, manifest: Manifest, model: ModelConfig) -> Parameters:
    values = load_tensors(folder / MODEL, manifest, parameter_shapes(model))
    with naming(folder / MODEL):
        check_parameters(values, model)
    return values


def _load_optimizer_state(folder: Path, manifest: Manifest, model: ModelConfig) -> OptimizerState:
    """Whatever trees the optimizer has stored: ``TREE.NAME`` is what it keeps of the parameter ``NAME``."""
    path, shapes = folder / OPTIMIZER, parameter_shapes(model)
    with TensorFile(path, manifest.files[OPTIMIZER]) as file:
        split = {name: name.partition(".") for name in file.entries}
        known = {name: shapes[of] for name, (_, _, of) in split.items() if of in shapes}
        values = _read(file, known, path)
    state: dict[str, Parameters] = {}
    for name, value in values.items():
        tree, _, of = split[name]
        state.setdefault(tree, {})[of] = value
    with naming(path):
        check_optimizer_state(state, model)
    return state


def load_trainer(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The trainer's own state.

    Raises:
        InputError: If it is not the recorded file, or of another step.
    """
    path = folder / TRAINER
    values = parse_object(read_bytes(path, TRAINER_LIMIT, manifest.files[TRAINER]), path)
    if values.keys() != {"step", "trainer"} or not isinstance(values["trainer"], dict):
        raise InputError(f"{path} does not hold exactly step and trainer")
    if type(values["step"]) is not int or values["step"] != manifest.step:
        raise InputError(f"{path} is of step {shown(values['step'])}, the manifest says {manifest.step}")
    return values["trainer"]


def load_tokenizer(folder: Path, manifest: Manifest) -> bytes | None:
    """The bytes of ``tokenizer.json``; None if the step has none. What others read beside it is verified.

    Raises:
        InputError: If one of them is not the recorded file.
    """
    if TOKENIZER_CONFIG in manifest.files:
        read_bytes(
            folder / TOKENIZER_CONFIG, CONFIG_LIMIT, manifest.files[TOKENIZER_CONFIG], follow_link=False
        )
    if TOKENIZER not in manifest.files:
        return None
    return read_bytes(folder / TOKENIZER, MAX_TOKENIZER_BYTES, manifest.files[TOKENIZER])


def refusing(load: Callable[[Path], T]) -> Callable[[Path], T]:
    """Let ``load``'s errors say which step is refused and what to do about it."""

    @functools.wraps(load)
    def wrapped(folder: Path) -> T:
        try:
            return load(folder)
        except ForeignError:
            raise
        except InputError as error:
            advice = "use another step, or resume the run's folder to take the newest whole one"
            raise InputError(f"refused {folder.name}: {error}; {advice}") from None

    return wrapped


@refusing
def load_checkpoint(step_folder: Path) -> CheckpointState:
    """Load one step, verified against its manifest.

    Raises:
        NewerFormatError: If a later version of the program wrote it.
        InputError: If anything in it is missing, damaged or does not fit; nothing is loaded then.
    """
    manifest = read_manifest(step_folder)
    model = _load_config(step_folder, manifest)
    trainer = load_trainer(step_folder, manifest)
    tokenizer = load_tokenizer(step_folder, manifest)
    parameters = _load_parameters(step_folder, manifest, model)
    optimizer_state = _load_optimizer_state(step_folder, manifest, model)
    return CheckpointState(manifest.step, model, parameters, optimizer_state, trainer, tokenizer)


@refusing
def load_model(step_folder: Path) -> SavedModel:
    """Load what sampling and evaluation need of one step; the optimizer's file is not read.

    Raises:
        NewerFormatError: If a later version of the program wrote it.
        InputError: If anything that is read is missing, damaged or does not fit.
    """
    manifest = read_manifest(step_folder)
    model = _load_config(step_folder, manifest)
    tokenizer = load_tokenizer(step_folder, manifest)
    return SavedModel(manifest.step, model, _load_parameters(step_folder, manifest, model), tokenizer)


def step_or_newest(path: Path, load: Callable[[Path], T], on_refused: Callable[[str], None]) -> T:
    """The step that ``path`` names, or the newest whole one, by number, of the run that it names.

    Args:
        path: A step's folder, or a run's; an explicitly named step is never replaced by another.
        load: ``load_checkpoint``, or what else reads a step.
        on_refused: Told of each newer step that ``load`` refuses.

    Raises:
        ForeignError: If the newest readable step is of another kind of model, or was written by a later
            version of the program; an older step is not taken in its place.
        InputError: If there is no whole step.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; {ADVICE}")
    if is_step(path):
        return load(path)
    steps = find_steps(run_of(path))
    for _, folder in reversed(steps):
        try:
            return load(folder)
        except ForeignError:
            raise
        except InputError as error:
            on_refused(str(error))
    found = f"{len(steps)} step(s), none of them whole" if steps else "no checkpoint"
    raise InputError(f"{path} holds {found}; give another run's folder, or start a new run")


def verify(step_folder: Path) -> None:
    """Hold every file of a step to its manifest; files that have not changed since are not read again.

    Raises:
        InputError: If the step is not whole.
    """
    manifest = read_manifest(step_folder)
    for name, record in manifest.files.items():
        with RegularFile(step_folder / name, record):
            pass
        identity = (step_folder / name).lstat()
        _hash_once(step_folder / name, record, (identity.st_ino, identity.st_mtime_ns, identity.st_ctime_ns))


@functools.lru_cache(maxsize=256)
def _hash_once(path: Path, record: Any, identity: tuple[int, int, int]) -> None:
    # an exception is not cached: a damaged file is read again each time
    del identity
    with RegularFile(path, record) as file:
        file.skip(file.size)
        file.finish()
