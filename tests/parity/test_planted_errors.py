"""The matrix must be able to fail: an error planted in a backend is found, on its rung, by its tensor.

Runs in the environment of any backend, for every backend that is installed there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cases
import compare
import pytest
from gpt_trainer.registry import installed_backends

HERE = Path(__file__).parent

OPTION = {
    "gpt-jax": "attention=written",
    "gpt-torchfunc": "attention=written",
    "gpt-triton": "kernels=reference",
}
# the op whose own rung must name the error; a wrong gain may sit in the forward or in the backward
WHERE = {
    "epsilon": ("layer_norm", {"y"}),
    "gain": ("layer_norm", {"y", "d_x"}),
    "bias": ("linear", {"y"}),
    "mask": ("attention", {"out", "d_qkv"}),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    cases.write_cases(folder)
    return folder


CASES = ("stream", "muon", "forks", "orthogonalize", "layer_norm", "linear", "attention", "gelu")


def answers_of(
    backend: str,
    error: str | None,
    questions: Path,
    place: Path,
    asked: Sequence[str] = CASES,
    steps: int = 2,
) -> list[compare.Finding]:
    given = [str(HERE / "emit.py"), str(questions), str(place), "--backend", backend, "--label", backend]
    given += ["--precision", "float32", "--option", OPTION[backend], "--steps", str(steps)]
    for name in asked:
        given += ["--only", name]
    done = subprocess.run(
        [sys.executable, *given, *(["--plant", error] if error else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return compare.findings(questions, place)


@pytest.mark.parametrize("backend", installed_backends())
def test_an_honest_backend_passes(backend: str, questions: Path, tmp_path: Path) -> None:
    found = answers_of(backend, None, questions, tmp_path)
    assert {each.rung for each in found} >= {"op forward", "op VJP", "logits", "gradients", "losses"}
    assert [each for each in found if not each.passed] == []


@pytest.mark.parametrize("error", list(WHERE))
@pytest.mark.parametrize("backend", installed_backends())
def test_a_planted_error_is_named(backend: str, error: str, questions: Path, tmp_path: Path) -> None:
    found = answers_of(backend, error, questions, tmp_path)
    failed = [each for each in found if not each.passed]
    op, tensors = WHERE[error]
    assert {each.tensor for each in failed if each.case == op} & tensors
    assert {each.rung for each in failed if each.case == "stream"} >= {"gradients", "weights"}
    assert [each for each in failed if each.case == "gelu"] == []


# another momentum changes the first step's length alone, which Newton-Schulz takes no notice of
@pytest.mark.parametrize(
    ("error", "rungs"),
    [("newton-schulz", {"op forward", "weights"}), ("momentum", {"losses"})],
)
@pytest.mark.parametrize("backend", installed_backends())
def test_an_error_in_muon_alone_is_named(
    backend: str, error: str, rungs: set[str], questions: Path, tmp_path: Path
) -> None:
    asked = ("stream", "muon", "orthogonalize", "orthogonalize-tall")
    found = answers_of(backend, error, questions, tmp_path, asked, steps=4)
    failed = [each for each in found if not each.passed]
    assert {each.rung for each in failed} >= rungs
    assert {each.case for each in failed} <= {"muon", "orthogonalize", "orthogonalize-tall"}


@pytest.mark.parametrize("backend", installed_backends())
def test_an_error_in_a_fork_alone_is_named(backend: str, questions: Path, tmp_path: Path) -> None:
    found = answers_of(backend, "fork", questions, tmp_path, ("forks",))
    failed = [each for each in found if not each.passed]
    assert [(each.rung, each.tensor) for each in failed] == [("logits", "forked_log_probs")]


def test_a_missing_tensor_a_wrong_shape_and_nan_are_infinite_errors(questions: Path, tmp_path: Path) -> None:
    expected = questions / "op" / "gelu" / "expected.safetensors"
    want = compare.load_file(expected)
    broken = {"y": want["y"].copy(), "d_x": want["d_x"]}
    broken["y"][0, 0] = float("nan")
    for name, answer in (
        ("missing", {"y": want["y"]}),
        ("shape", {"y": want["y"][:1], "d_x": want["d_x"]}),
        ("nan", broken),
    ):
        compare_file = tmp_path / f"{name}.safetensors"
        cases.save_file(answer, compare_file)
        errors = compare.errors_of(compare_file, expected, "op")
        assert max(errors.values()) == float("inf"), name
