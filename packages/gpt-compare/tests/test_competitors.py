"""From the command line to competitors and to the settings that they share."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import bpe_scratch
import pytest
from gpt_compare import plan, request
from gpt_compare.competitor import (
    Competitor,
    default_competitors,
    find_spec,
    read_competitors,
    task_spec,
)
from gpt_compare.reference import read_reference
from gpt_compare.request import ENDS, read_request
from gpt_compare.turns import equipped
from gpt_trainer.checkpoint import CheckpointState, find_steps, save_checkpoint
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.gpt2.presets import PRESETS
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.gpt2.task import open_task
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.registry import BackendSpec
from gpt_trainer.settings.values import flat, overlay, read_toml


@dataclass(frozen=True)
class Probe:
    """The flags of an evaluation that another package brings."""

    eval_probe_every: int
    eval_probe_items: int = 4


def test_a_competitor_is_a_command_line() -> None:
    one, two = read_competitors(["gpt-jax", 'gpt-jax --layers unroll --text "a b"'])
    assert one == Competitor("gpt-jax", "gpt-jax", (), 1)
    assert (two.name, two.flags) == ("gpt-jax", ("--layers", "unroll", "--text", "a b"))
    assert (one.folder, two.folder) == ("1-gpt-jax", "2-gpt-jax-layers-unroll-text-a-b")
    where = Path("x/plan.toml"), Path("x/y")
    words = two.command(*where, keep=False)
    assert words[1:8] == [
        "-m", "gpt_compare.competitor", "-", "-", "gpt-jax", "--config=x/plan.toml", "--out=x/y",
    ]  # fmt: skip
    assert two._replace(generate=(1, 8)).command(*where, keep=True)[3:5] == ["1,8", "keep"]
    assert tuple(words[8:]) == two.flags


def test_checkpoints_that_nobody_keeps_need_no_room() -> None:
    kept, gone = (task_spec(find_spec("plain"), keep) for keep in (True, False))
    config = PRESETS["gpt2-124m"]
    assert kept.room(config) > 10**9
    assert gone.room(config) == 0
    assert kept.open.func is open_task  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "names no competitor"),
        ([""], "names no competitor"),
        (["plain", "plain"], "'plain' comes twice"),
        (['gpt-jax "'], "is not a command line"),
        (["gpt-jax --out=x"], "--out=x is not for one competitor"),
        (["gpt-jax --eval_only"], "--eval_only is not for one competitor"),
    ],
)
def test_what_is_no_competitor_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match="--runs") as caught:
        read_competitors(texts)
    assert words in str(caught.value)


def test_every_installed_backend_and_the_baseline_compete() -> None:
    assert default_competitors() == ("gpt-triton", "gpt-torchfunc", "gpt-jax", "plain")
    assert find_spec("plain").name == "plain"
    with pytest.raises(InputError, match=r"'gpt-x' is not installed; installed: gpt-jax, .*, plain"):
        find_spec("gpt-x")


def spec(name: str, *, gpu: bool) -> BackendSpec:
    return BackendSpec(name, object, None, lambda: gpu)  # type: ignore[arg-type]


def test_one_that_finds_a_gpu_puts_all_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on a GPU and one on a CPU would compare nothing: the latter is to fail, and say what it lacks."""
    monkeypatch.setattr(request, "find_spec", lambda name: spec(name, gpu=name == "with"))
    devices = [
        read_request(["--runs", *words]).config.runtime.device
        for words in (["without"], ["without", "with", "--device", "auto"], ["with", "--device=cpu"])
    ]
    assert devices == ["cpu", "gpu", "cpu"]
    found = read_request(["--runs", "without", "with --flag"])
    assert (found.preset, found.config.runtime.device) == ("gpt2-124m", "gpu")
    assert (found.config.runtime.precision, found.config.schedule.steps) == ("bfloat16", 200)
    assert [each.label for each in found.competitors] == ["without", "with --flag"]


def test_defaults_are_the_presets_with_few_steps_of_one_micro_batch() -> None:
    config = read_request(["--device", "cpu"]).config
    demo = PRESETS["cpu-demo"]
    assert (config.model, config.data, config.optimizer) == (demo.model, demo.data, demo.optimizer)
    assert config.rows == config.batch.micro_batch == demo.batch.micro_batch
    assert (config.schedule.steps, config.schedule.warmup) == (200, 40)
    assert config.runtime.precision == "float32"


def test_flags_have_the_last_word_and_nothing_comes_between_steps() -> None:
    found = read_request(["--device", "cpu", "--steps", "7", "--lr", "0.5", "--preset", "gpt2-350m"])
    reports = found.config.reports
    assert (found.preset, found.config.schedule.steps, found.config.optimizer.lr) == ("gpt2-350m", 7, 0.5)
    # after the last step, and never between
    assert (reports.eval_every, reports.save_every, reports.sample_every) == (ENDS, 0, 0)


def test_what_all_trainers_take_is_taken(tmp_path: Path) -> None:
    """From a file, from flags, and what is no setting of a run."""
    file = tmp_path / "run.toml"
    file.write_text("minutes = 0.5\nlr = 0.25\neval-rows = 9\n")
    words = [f"--config={file}", "--device=cpu", "--eval-every=50", "--lr=0.5", "--profile=3", "--generate=1"]
    found = read_request([*words, "8"])
    config = found.config
    assert (config.schedule.minutes, config.optimizer.lr) == (0.5, 0.5)
    assert (config.reports.eval_rows, config.reports.eval_every) == (9, 50)
    assert (found.options.profile, found.options.generate) == (3, (1, 8))
    (first, *_) = [equipped(each, found) for each in found.competitors]
    assert first.flags[0] == "--profile=3"
    assert first.generate == (1, 8)
    path = plan.write_plan(tmp_path, found.settings)
    assert tomllib.loads(path.read_text())["minutes"] == 0.5
    for every in (0, 9):
        settings = replace(found, evaluations={"probe": Probe(every)}).settings
        probed = {name: value for name, value in settings.items() if "probe" in name}
        assert probed == ({"eval_probe_every": 9, "eval_probe_items": 4} if every else {})
    assert read_request([*words, "--steps=7"]).config.schedule.flag() == "--steps 7"


def test_weights_bring_their_sizes(tmp_path: Path) -> None:
    model = ModelConfig(n_layer=1, n_head=2, d_model=24, context=32, vocab_size=257)
    weights = init_parameters(model, 0)
    tokenizer = bpe_scratch.Tokenizer.from_bytes().to_json().encode()
    moments = {"first": weights, "second": weights}
    save_checkpoint(tmp_path, CheckpointState(1, model, weights, moments, {"step": 1}, tokenizer))
    found = read_request(["--device=cpu", f"--init-from={tmp_path}"])
    assert (found.config.model.d_model, found.config.model.context) == (24, 32)
    assert found.config.data.tokenizer == str(find_steps(tmp_path)[-1][1] / "tokenizer.json")
    (first, *_) = [equipped(each, found) for each in found.competitors]
    assert first.flags == (f"--init-from={tmp_path}",)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--steps", "0"], "steps=0 is not positive"),
        (["--tokens-per-step", "100"], "is not a multiple of context=128"),
        (["--runs"], "names no competitor"),
        # once known when the competitors before had been trained
        (["--runs", "plain", "tritn"], "--runs 'tritn': unknown name tritn: perhaps you meant gpt-triton"),
        (
            ["--runs", "gpt-jax --layer scan"],
            "scan': unknown flag --layer: perhaps you meant --layers",
        ),
        (["--resume", "run"], "unknown flag --resume"),
        (["--eval-only"], "unknown flag --eval-only"),
        (["--generate", "0"], r"generate=\(0,\) must be positive"),
        (["--reference", "none.csv"], "--reference: none.csv is missing"),
    ],
)
def test_what_does_not_fit_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_request(["--device", "cpu", *flags])


def test_the_plan_says_all_that_the_settings_say(tmp_path: Path) -> None:
    """Quotes, backslashes and other alphabets too; what is not given is not written."""
    config = read_request(["--device", "cpu", "--data", 'text:"a\\b" Ü\x07', "--lr", "1e-9"]).config
    path = plan.write_plan(tmp_path, flat(config))
    assert overlay(TrainConfig(), read_toml(path), "plan") == config
    assert "max_tokens" not in tomllib.loads(path.read_text())


def test_a_plan_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*plan.toml"):
        plan.write_plan(tmp_path / "none", flat(TrainConfig()))


def test_a_published_curve_is_read_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("# another program, another text\n1e6,9.5\n2e6,8.25\n")
    found = read_reference(path)
    assert found == ("another program, another text", (1e6, 2e6), (9.5, 8.25))
    for content in ("", "name\n", "name\n1,2,3\n", "name\nx,y\n"):
        path.write_text(content)
        with pytest.raises(InputError, match="is no name with lines of tokens,loss below it"):
            read_reference(path)
