from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.presets import PRESETS
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.gpt2.spec import gpt2_spec
from gpt_trainer.model_config import MODEL_PRESETS
from gpt_trainer.ranks.place import Place
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Request
from gpt_trainer.settings.command_line import read_early, read_request
from gpt_trainer.settings.values import flat, overlay, read_toml
from gpt_trainer_toy import SPEC


def request(*argv: str) -> Request:
    spec = gpt2_spec(SPEC)
    return read_request(spec, argv, read_early(argv), Fresh(spec))


def test_help_shows_what_a_flag_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        request("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--out PATH" in said
    assert "{None}" not in said
    assert "``" not in said


def test_a_terminal_says_that_a_framework_is_asked_for_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first import takes seconds: nothing was to be seen meanwhile."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    spec = gpt2_spec(SPEC)
    for place, said in ((Place(), True), (Place(1, 2, 1), False)):
        read_request(spec, [], read_early([]), Fresh(spec), place)
        assert ("starting" in capsys.readouterr().err) == said


def test_preset_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'preset = "gpt2-350m"\nlr = 1\n[schedule]\nwarmup = 7\nlr-floor = 0.5\n[x]\nflavour = "sweet"\n'
    )
    got = request(f"--config={file}", "--warmup=9")
    want = PRESETS["gpt2-350m"]
    assert (got.preset, got.config.model) == ("gpt2-350m", want.model)
    assert (got.config.optimizer.lr, got.config.schedule.warmup, got.config.schedule.lr_floor) == (
        1.0,
        9,
        0.5,
    )
    assert got.options["backend"].flavour == "sweet"
    assert request(f"--config={file}", "--preset=cpu-demo").config.model == PRESETS["cpu-demo"].model


def test_ready_tokens_bring_their_own_tokenizer(tmp_path: Path) -> None:
    for data in ("shards:tokens", "nanogpt:train.bin"):
        assert request(f"--data={data}").config.data.tokenizer is None
        assert request("--data", data, "--tokenizer=gpt2").config.data.tokenizer == "gpt2"
        file = tmp_path / "run.toml"
        file.write_text(f'data = "{data}"\n')
        assert request(f"--config={file}").config.data.tokenizer is None
        file.write_text(f'data = "{data}"\ntokenizer = "gpt2"\n')
        assert request(f"--config={file}").config.data.tokenizer == "gpt2"
        assert request(f"--config={file}", "--data=stdlib").config.data.tokenizer == "gpt2"
    assert request("--data=text:a", "--preset=cpu-demo").config.data.tokenizer == "bpe-scratch:2048"


def test_a_file_and_a_flag_may_fit_only_together(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("context = 96\n")
    with pytest.raises(InputError, match="not a multiple of context=96"):
        request(f"--config={file}")
    assert request(f"--config={file}", "--tokens-per-step=3072").config.rows == 32


def test_the_last_word_decides_what_a_run_is_measured_by(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("minutes = 3\n")
    lengths = [
        request(f"--config={file}", *flags).config.schedule
        for flags in ([], ["--steps", "7"], ["--train_tokens=9"], ["--minutes=2", "--steps=7"])
    ]
    assert [length.flag() for length in lengths] == [
        "--minutes 3", "--steps 7", "--train-tokens 9", "--minutes 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("stepz = 3", "unknown key 'stepz'"),
        ('steps = "3"', "steps='3' is not int"),
        ("steps = 3.5", "steps=3.5 is not int"),
        ("steps = true", "steps=True is not int"),
        ('packing = "tight"', "packing='tight' is not one of stream, documents"),
        ("steps = ", "is not TOML"),
        ("lr = 1.0\n[optimizer]\nlr = 2.0", "gives lr twice"),
        ('preset = "huge"', "unknown preset 'huge'"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        request(f"--config={file}")
    assert "\n" not in str(caught.value)


def test_the_default_preset_follows_the_device() -> None:
    assert request().preset == "cpu-demo"
    assert request("--device=gpu").preset == "gpt2-124m"


def test_precision_follows_the_device_unless_given() -> None:
    given = ((), ("--device=gpu",), ("--precision=bfloat16",))
    found = [request(*argv).config.runtime.precision for argv in given]
    assert found == ["float32", "bfloat16", "bfloat16"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_being_written_down(name: str) -> None:
    assert overlay(TrainConfig(), flat(PRESETS[name]), "here") == PRESETS[name]


@pytest.mark.parametrize("name", list(MODEL_PRESETS))
def test_published_sizes(name: str) -> None:
    assert PRESETS[name].model_config(50257) == MODEL_PRESETS[name]


def test_a_key_in_two_sections_would_be_ambiguous() -> None:
    from dataclasses import fields

    names = [item.name for section in vars(TrainConfig()).values() for item in fields(section)]
    assert len(names) == len(set(names))


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        request("--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name in [*flat(TrainConfig()), "resume", "init_from", "eval_only", "profile", "out", "flavour"]:
        assert "--" + name.replace("_", "-") in said


def test_read_toml_names_a_missing_file() -> None:
    with pytest.raises(InputError, match=r"--config: nowhere\.toml is missing"):
        read_toml(Path("nowhere.toml"))


def test_read_toml_takes_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbflr = 0.5\n")
    assert read_toml(tmp_path / "a.toml") == {"lr": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"lr = {'9' * 5000}".encode(), "is not TOML"),
        (b"lr = " + b"[" * 50_000, "is not TOML"),
        (b"lr = '\xff'", "is not TOML"),
        (b"#" * (1 << 21), "has 2097152 bytes, at most 1048576 are accepted"),
    ],
    ids=["digits", "deep", "latin-1", "long"],
)
def test_read_toml_refuses_what_would_end_in_a_traceback(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError, match=rf"--config.*a\.toml {message}"):
        read_toml(tmp_path / "a.toml")


def test_read_toml_waits_for_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        read_toml(tmp_path / "pipe")
