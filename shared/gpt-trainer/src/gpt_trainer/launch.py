"""Everything before the first step: folder, space, data, model, and the checks that they fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bpe_scratch
from gpt_data.cache import cached_dataset
from gpt_data.dataset import Dataset
from gpt_data.display import watched
from gpt_data.loader import BatchLoader
from gpt_data.packing import window_count
from gpt_data.stopping import StopFlag
from gpt_data.store.lock import LOCK_NAME

from gpt_trainer.backend import Backend, BackendSpec, Runtime
from gpt_trainer.checkpoint import RunLock, SavedModel, check_writable, step_bytes
from gpt_trainer.command_line import LAST_BITS, Request
from gpt_trainer.config import DataSection, TrainConfig, rate_at
from gpt_trainer.errors import InputError
from gpt_trainer.extra_evaluation import as_json
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.origin import Origin, Resumed, parse_tokenizer, warn
from gpt_trainer.parameters import init_parameters
from gpt_trainer.record import Record, describe_data, describe_maker, describe_options, differences
from gpt_trainer.run_folder import create_folder, refuse_existing, set_aside_later
from gpt_trainer.settings import changed

MANY_EPOCHS = 20
GPT2_VOCAB = 50257
PROMPT_TOKENS, PROMPT_WORDS, PROMPT_CHARACTERS = 64, 2, 24
RATE_JUMP = 1.01


def open_data(section: DataSection, stop: StopFlag, *, plain: bool) -> Dataset:
    """Prepare the data if that was not done before, and open it.

    Args:
        section: What data.
        stop: Ends the preparation, which can be gone on with.
        plain: No progress bar.

    Raises:
        InputError: If it cannot be had.
    """
    with watched(stop, plain=plain) as show:
        return cached_dataset(
            section.data,
            section.tokenizer,
            cache_dir=section.data_cache,
            tokenizer_files=section.tokenizer_files,
            max_tokens=section.max_tokens,
            workers=section.workers,
            on_progress=show,
            should_stop=stop,
        )


def data_tokenizer(dataset: Dataset) -> bpe_scratch.Tokenizer | None:
    """The tokenizer that the data was made with, if it is known."""
    if dataset.tokenizer_json is None:
        return None
    return parse_tokenizer(dataset.tokenizer_json, str(dataset.folder))


@contextmanager
def new_folder(request: Request, locks: ExitStack) -> Iterator[Path]:
    """A locked folder for a new run; removed again if nothing comes of it.

    Args:
        request: What was asked for.
        locks: Holds the lock.

    Raises:
        InputError: If the folder holds a run.
        WriteError: If it cannot be written, is in use, or has too little space.
    """
    run = create_folder(request.actions.out, request.preset)
    locks.enter_context(RunLock(run))
    refuse_existing(run)
    try:
        check_writable(run, 2 * step_bytes(request.config.model_config(_likely_vocab(request.config))))
        yield run
    except BaseException:
        _remove_if_empty(run)
        raise


def _likely_vocab(config: TrainConfig) -> int:
    """The vocabulary before the tokenizer exists: only to know how much space will be needed."""
    size = (config.data.tokenizer or "").removeprefix("bpe-scratch:")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else GPT2_VOCAB


def _remove_if_empty(run: Path) -> None:
    with contextlib.suppress(OSError):
        if [entry.name for entry in run.iterdir()] == [LOCK_NAME]:
            (run / LOCK_NAME).unlink()
            run.rmdir()


def choose_prompt(config: TrainConfig, dataset: Dataset) -> str:
    """What samples continue: as asked for, or the held-out text's first words.

    Args:
        config: The settings.
        dataset: The data.
    """
    if config.reports.sample_prompt is not None:
        return config.reports.sample_prompt
    if config.data.data == "stdlib":
        # its first words would be those of a licence or of an import
        return "def"
    tokenizer = data_tokenizer(dataset)
    if tokenizer is None:
        return ""
    ids = dataset.val.read(0, min(PROMPT_TOKENS, dataset.val.tokens))
    text = tokenizer.decode([token for token in ids.tolist() if token != tokenizer.end_of_text])
    words = next((line.split() for line in text.splitlines() if line.strip()), [])
    return " ".join(words[:PROMPT_WORDS])[:PROMPT_CHARACTERS]


def check_model(model: ModelConfig, saved_tokenizer: bytes | None, dataset: Dataset, where: str) -> None:
    """Refuse data that a loaded model cannot read.

    Args:
        model: The model's sizes.
        saved_tokenizer: The tokenizer that came with it, if one did.
        dataset: The data.
        where: The model's folder, for messages.

    Raises:
        InputError: If the vocabulary or the tokenizer is another one.
    """
    if dataset.vocab_size != model.vocab_size:
        raise InputError(
            f"the data has a vocabulary of {dataset.vocab_size}, the model of {where} one of "
            f"{model.vocab_size}; choose the --tokenizer that it was trained with"
        )
    tokenizer = data_tokenizer(dataset)
    if saved_tokenizer is None or tokenizer is None:
        return
    if parse_tokenizer(saved_tokenizer, where).sha256 != tokenizer.sha256:
        raise InputError(
            f"the data was made with another tokenizer than the model of {where}; choose --tokenizer"
        )


def create_backend(spec: BackendSpec, request: Request, model: ModelConfig) -> Backend:
    """The backend for a model.

    Args:
        spec: Its registration.
        request: Device, precision and the backend's own flags.
        model: The model's sizes.

    Raises:
        InputError: If this machine lacks what was asked for.
    """
    section = request.config.runtime
    runtime = Runtime(section.precision or "float32", section.device, section.seed, section.deterministic)
    try:
        return spec.create(model, request.config.optimizer_config(), runtime, request.options)
    except ValueError as error:
        raise InputError(str(error)) from None


def refuse_missing_gpu(spec: BackendSpec, request: Request) -> None:
    """Refuse a GPU that is not there before data is prepared, which may take long.

    Args:
        spec: The backend.
        request: For the device.

    Raises:
        InputError: As the backend says it.
    """
    if request.config.runtime.device == "gpu" and not spec.has_gpu():
        create_backend(spec, request, ModelConfig(n_layer=1, n_head=1, d_model=8, context=8, vocab_size=8))


def load_weights(backend: Backend, request: Request, resumed: Resumed | None, origin: Origin | None) -> None:
    """Give the backend the weights that the run starts or goes on with.

    Args:
        backend: Takes them.
        request: For the seed of fresh ones.
        resumed: The run to go on with, if there is one.
        origin: The model to start from, if there is one.
    """
    if resumed is not None and resumed.checkpoint is not None:
        backend.load(resumed.checkpoint.parameters, resumed.checkpoint.moments)
    elif origin is not None:
        backend.load(origin.saved.parameters)
    else:
        backend.load(init_parameters(backend.config, request.config.runtime.seed))


def model_of(
    request: Request, dataset: Dataset, resumed: Resumed | None, origin: Origin | None
) -> ModelConfig:
    """The sizes of the model, checked against the data.

    Args:
        request: The settings.
        dataset: The data.
        resumed: The run to go on with, if there is one.
        origin: The model to start from, if there is one.

    Raises:
        InputError: If data and model do not fit.
    """
    if resumed is not None and resumed.checkpoint is not None:
        saved = resumed.checkpoint
        check_model(saved.model, saved.tokenizer_json, dataset, str(resumed.run))
        return saved.model
    if origin is not None:
        model: SavedModel = origin.saved
        check_model(model.model, model.tokenizer_json, dataset, "--init-from")
        return replace(model.model, dropout=request.config.model.dropout)
    return request.config.model_config(dataset.vocab_size)


def make_record(
    spec: BackendSpec, request: Request, backend: Backend, dataset: Dataset, resumed: Resumed | None
) -> Record:
    """What the run writes down about itself; on resume, compared with what it wrote before.

    Args:
        spec: The backend's registration.
        request: The settings.
        backend: The backend.
        dataset: The data.
        resumed: The run to go on with, if there is one.

    Raises:
        InputError: If the data is not what the run was trained on.
    """
    data = describe_data(dataset, data_tokenizer(dataset))
    maker = describe_maker(spec, backend)
    init_from = request.actions.init_from
    origin = None if init_from is None else str(init_from)
    options = describe_options(spec, request.options)
    evaluations = as_json(request.evaluations)
    if resumed is not None:
        check_data(request.config, resumed, data)
        _warn_of_changes(request.config, resumed, maker)
        _warn_of_rate(request.config, resumed)
        origin = resumed.record.init_from
        options = {**resumed.record.options, **options}
        evaluations = {**resumed.record.evaluations, **evaluations}
    return Record(request.config, request.preset, origin, data, maker, options, evaluations)


def check_data(config: TrainConfig, resumed: Resumed, data: Mapping[str, Any]) -> None:
    """Refuse other data than a run was trained on.

    Raises:
        InputError: If it is other data.
    """
    before = resumed.record.data
    if before and differences(before, data):
        raise InputError(
            f"--data {config.data.data} --tokenizer {config.data.tokenizer} is other data than "
            f"{resumed.run} was trained on ({'; '.join(differences(before, data))}); "
            "to go on with other data use --init-from"
        )


def _warn_of_changes(config: TrainConfig, resumed: Resumed, maker: Mapping[str, Any]) -> None:
    found = differences(resumed.record.made_by, maker) if resumed.record.made_by else []
    found += [name for name in changed(resumed.record.config, config) if name in LAST_BITS]
    if found:
        warn(f"the run may differ in its last bits from an uninterrupted one: {'; '.join(found)}")


def _warn_of_rate(config: TrainConfig, resumed: Resumed) -> None:
    """Say so if other --steps than before move the learning rate that the run had come to."""
    before, step = resumed.record.config, resumed.state.step
    old, new = rate_at(before, step), rate_at(config, step)
    if step == 0 or max(old, new) <= RATE_JUMP * min(old, new):
        return
    length = before.schedule.schedule_steps or before.schedule.steps
    stay = "" if config.schedule.schedule_steps else f"; to go on at {old:.2e} add --schedule-steps {length}"
    warn(
        f"the learning rate goes on at {new:.2e}, not at the {old:.2e} that it has come to, as its course "
        f"now takes {config.schedule.schedule_steps or config.schedule.steps} steps{stay}"
    )


def make_loaders(config: TrainConfig, dataset: Dataset) -> tuple[BatchLoader, BatchLoader | None]:
    """Training batches of one optimizer step each, and validation batches of one micro-batch.

    Args:
        config: The settings.
        dataset: The data.

    Raises:
        InputError: If the training split is shorter than a row.
    """
    context, packing, seed = config.model.context, config.data.packing, config.runtime.seed
    train = BatchLoader(dataset.train, rows=config.rows, context=context, seed=seed, packing=packing)
    epochs = config.rows * config.schedule.steps / train.windows
    if epochs > MANY_EPOCHS:
        warn(
            f"this run reads its {dataset.train.tokens:,} training tokens {epochs:,.0f} times: "
            "expect it to learn them by heart, or choose more --data or fewer --steps"
        )
    val = val_loader(config, dataset)
    if val is None:
        warn(f"the data holds {dataset.val.tokens} validation tokens, too few for a row: no evaluation")
    return train, val


def val_loader(config: TrainConfig, dataset: Dataset) -> BatchLoader | None:
    """Validation batches of one micro-batch; None if the data holds too little for a row."""
    context = config.model.context
    if window_count(dataset.val.tokens, context) == 0:
        return None
    seed, packing = config.runtime.seed, config.data.packing
    return BatchLoader(
        dataset.val, rows=config.batch.micro_batch, context=context, seed=seed, packing=packing
    )


def cut_back(resumed: Resumed, path: Path) -> None:
    """If the user named a step that is not the newest, set the later ones aside.

    Args:
        resumed: The run.
        path: What the user named.
    """
    if resumed.checkpoint is None or path == resumed.run:
        return
    later = set_aside_later(resumed.run, resumed.state.step) if path.name.startswith("step-") else []
    if later:
        warn(f"steps {', '.join(map(str, later))} are set aside as superseded-step-...")
