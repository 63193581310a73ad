"""From the command line to competitors and to the settings that they share."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from gpt_compare import plan
from gpt_compare.commands import read_request
from gpt_compare.competitor import Competitor, default_competitors, find_spec, read_competitors
from gpt_trainer.backend import BackendSpec
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.gpt2.presets import PRESETS
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.settings.values import overlay, read_toml


def test_a_competitor_is_a_command_line() -> None:
    one, two = read_competitors(["gpt-jax", 'gpt-jax --layers unroll --text "a b"'])
    assert one == Competitor("gpt-jax", "gpt-jax", (), 1)
    assert (two.name, two.flags) == ("gpt-jax", ("--layers", "unroll", "--text", "a b"))
    assert (one.folder, two.folder) == ("1-gpt-jax", "2-gpt-jax-layers-unroll-text-a-b")
    words = two.command(Path("x/plan.toml"), Path("x/y"))
    assert words[1:6] == ["-m", "gpt_compare.competitor", "gpt-jax", "--config=x/plan.toml", "--out=x/y"]
    assert tuple(words[6:]) == two.flags


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
    monkeypatch.setattr(plan, "find_spec", lambda name: spec(name, gpu=name == "with"))
    assert plan.choose_device(None, read_competitors(["without"])) == "cpu"
    assert plan.choose_device("auto", read_competitors(["without", "with"])) == "gpu"
    assert plan.choose_device("cpu", read_competitors(["with"])) == "cpu"
    request = read_request(["--runs", "without", "with --flag"])
    assert (request.preset, request.config.runtime.device) == ("gpt2-124m", "gpu")
    assert (request.config.runtime.precision, request.config.schedule.steps) == ("bfloat16", 200)
    assert [each.label for each in request.competitors] == ["without", "with --flag"]


def test_defaults_are_the_presets_with_few_steps_of_one_micro_batch() -> None:
    config = read_request(["--device", "cpu"]).config
    demo = PRESETS["cpu-demo"]
    assert (config.model, config.data, config.optimizer) == (demo.model, demo.data, demo.optimizer)
    assert config.rows == config.batch.micro_batch == demo.batch.micro_batch
    assert (config.schedule.steps, config.schedule.warmup) == (200, 40)
    assert config.runtime.precision == "float32"


def test_flags_have_the_last_word_and_nothing_comes_between_steps() -> None:
    request = read_request(["--device", "cpu", "--steps", "7", "--lr", "0.5", "--preset", "gpt2-350m"])
    reports = request.config.reports
    assert (request.preset, request.config.schedule.steps, request.config.optimizer.lr) == (
        "gpt2-350m",
        7,
        0.5,
    )
    assert (reports.eval_every, reports.save_every, reports.sample_every) == (7, 0, 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--steps", "0"], "steps=0 is not positive"),
        (["--tokens-per-step", "100"], "is not a multiple of context=128"),
        (["--runs"], "names no competitor"),
    ],
)
def test_what_does_not_fit_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_request(["--device", "cpu", *flags])


def test_the_plan_says_all_that_the_settings_say(tmp_path: Path) -> None:
    """Quotes, backslashes and other alphabets too; what is not given is not written."""
    config = read_request(["--device", "cpu", "--data", 'text:"a\\b" Ü\x07', "--lr", "1e-9"]).config
    path = plan.write_plan(tmp_path, config)
    assert overlay(TrainConfig(), read_toml(path), "plan") == config
    assert "max_tokens" not in tomllib.loads(path.read_text())


def test_a_plan_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*plan.toml"):
        plan.write_plan(tmp_path / "none", TrainConfig())
