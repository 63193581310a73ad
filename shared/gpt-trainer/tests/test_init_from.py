"""Beginning from another run's weights, and evaluating a run alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bpe_scratch
import pytest
from gpt_data.store.lock import FolderLock
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.checkpoint.model_json import model_to_json
from gpt_trainer.errors import InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.origin import open_model, tokenizer_of
from gpt_trainer.parameters import init_parameters
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer_runs import Capture, Train, the_line
from safetensors.numpy import save_file


def test_a_vocabulary_that_does_not_fit_the_checkpoint(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "text.txt").write_text("one two three four five six seven\n" * 300)
    capsys.readouterr()
    other = [
        f"--data=text:{tmp_path}/texts",
        "--tokenizer=bpe-scratch:262",
        f"--data-cache={tmp_path}/cache",
    ]
    assert train(*flags, *other, "--init-from=small") == 65
    assert "the data has a vocabulary of 262, the model of --init-from one of 257" in capsys.readouterr().err


def test_a_context_longer_than_the_models(train: Train, flags: list[str], capsys: Capture) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    capsys.readouterr()
    assert train(*flags, "--init-from=small", "--context=32") == 65
    assert "--context 32 is longer than the model's: --init-from has 16 positions" in the_line(capsys)


def test_a_shorter_context_than_the_models_trains(train: Train, flags: list[str], tmp_path: Path) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    assert train(*flags, "--init-from=small", "--context=8", "--steps=2", "--out=short") == 0
    step = load_checkpoint(find_steps(tmp_path / "short")[-1][1])
    assert step.model.context == 16
    assert step.trainer["init_from"] == "small"


def test_weights_from_another_run_and_a_fresh_optimizer(
    train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=first") == 0
    assert train(*flags, "--init-from=first", "--out=second", "--steps=4") == 0
    last, first = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("first", "second"))
    assert first[0]["val_loss"] == [line for line in last if "val_loss" in line][-1]["val_loss"]


def test_evaluation_only(train: Train, flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert train(*flags, "--out=done") == 0
    last = [line for line in read_metrics(tmp_path / "done" / "metrics.jsonl") if "val_loss" in line][-1]
    capsys.readouterr()
    with FolderLock(tmp_path / "done"):
        assert train("--resume=done", "--eval-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] == last["val_loss"]


def test_evaluation_says_first_what_it_scores_on_and_nothing_of_training(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags, "--out=done", "--steps=3") == 0
    capsys.readouterr()
    # so many steps would be said to be epochs, and another micro-batch to be other last bits
    assert train(*flags, "--resume=done", "--eval-only", "--steps=1000", "--micro-batch=4") == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"scored on the held-out text of {flags[-2].replace('=', ' ', 1)}, tokenizer bytes"]
    # and a terminal what it waits for
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for plain, shown in (("--plain", []), ("--no-plain", ["loading the model", "evaluating"])):
        assert train(*flags, "--resume=done", "--eval-only", plain) == 0
        said = capsys.readouterr().err
        assert [what for what in ("loading the model", "evaluating") if what in said] == shown


def test_a_presets_name_is_not_its_size(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Fewer ids than asked for, and other sizes than the name stands for, are said in the first line."""
    assert train(*flags, "--steps=1", "--out=own") == 0
    assert "own: 7,680 parameters, vocabulary 257, 1 steps" in capsys.readouterr().out.splitlines()[0]
    (tmp_path / "text.txt").write_text("the cat and the dog and the cow\n" * 100)
    given = [f"--data=text:{tmp_path / 'text.txt'}", f"--data-cache={tmp_path}"]
    given += ["--tokenizer=bpe-scratch:50257", "--preset=gpt2-350m", "--steps=1", "--eval-every=0"]
    assert train(*flags, *given, "--out=few") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert " parameters (gpt2-350m itself has 354,823,168), vocabulary 2" in first
    assert " of 50,257 asked for, 1 steps" in first


def test_a_tokenizer_beside_the_weights_is_read_within_bounds_and_through_links(tmp_path: Path) -> None:
    tokenizer = bpe_scratch.Tokenizer.from_bytes()
    model = ModelConfig(n_layer=1, n_head=1, d_model=2, context=2, vocab_size=tokenizer.vocab_size)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes(model_to_json(model, None))
    save_file(init_parameters(model, 0), folder / "model.safetensors")
    tokenizer.save(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to(Path("..", "blob"))
    assert tokenizer_of(open_model(folder), folder).to_json() == tokenizer.to_json()
    with (tmp_path / "blob").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"tokenizer\.json has 1099511627776 bytes, at most 268435456"):
        open_model(folder)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2s_two_files_are_found_by_either_names(tmp_path: Path, names: tuple[str, str]) -> None:
    tokenizer = bpe_scratch.Tokenizer.from_bytes()
    model = ModelConfig(n_layer=1, n_head=1, d_model=2, context=2, vocab_size=tokenizer.vocab_size)
    (tmp_path / "config.json").write_bytes(model_to_json(model, None))
    save_file(init_parameters(model, 0), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="has no tokenizer; name its files with --tokenizer-files"):
        tokenizer_of(open_model(tmp_path), tmp_path)
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    (tmp_path / names[0]).write_text(json.dumps(vocab))
    (tmp_path / names[1]).write_text("#version: 0.2\n")
    origin = open_model(tmp_path)
    assert (origin.tokenizer, origin.tokenizer_files) == ("gpt2", tmp_path)
    found = tokenizer_of(origin, tmp_path)
    assert (found.pattern, found.special_tokens) == ("gpt2", {"<|endoftext|>": 256})
    assert found.encode("déjà vu") == tokenizer.encode("déjà vu")


def test_evaluation_of_a_model_encodes_the_held_out_split_alone(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--out=done", "--steps=3") == 0
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"def function_{number}(x):\n    return x + {number}\n" * 20)
    given = [f"--data=text:{texts}", "--tokenizer=bytes", f"--data-cache={tmp_path / 'cache'}"]
    losses = []
    # the second time both splits are there, and the same loss is found
    for again in (False, True):
        if again:
            assert train(*flags, *given, "--steps=1", "--out=other") == 0
        capsys.readouterr()
        assert train(*flags, *given, "--init-from=done", "--eval-only", "--json") == 0
        losses.append(json.loads(capsys.readouterr().out)["val_loss"])
    assert losses[0] == losses[1]
    folders = {path.name[-4:]: path for path in (tmp_path / "cache").iterdir()}
    alone = folders.pop("-val")
    assert not list(alone.glob("train-*.bin"))
    assert list(alone.glob("val-*.bin"))
