"""What holds for every command: help without its framework, Ctrl-C from the start, the narrowest window."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    name: place
    for project in sorted(ROOT.glob("*/*/pyproject.toml"))
    for name, place in tomllib.loads(project.read_text())["project"].get("scripts", {}).items()
}
FRAMEWORKS = ("torch", "jax")
INTERRUPTS = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose frameworks, and NumPy, are interrupted while they are imported."""
    folder = tmp_path_factory.mktemp("interrupted")
    for name in FRAMEWORKS:
        (folder / "frameworks" / name).mkdir(parents=True)
        (folder / "frameworks" / name / "__init__.py").write_text(INTERRUPTS)
    (folder / "numpy" / "numpy").mkdir(parents=True)
    (folder / "numpy" / "numpy" / "__init__.py").write_text(INTERRUPTS)
    return folder


def run(
    command: str, *arguments: str, first: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command as its script runs it; ``first`` holds packages that hide the installed ones."""
    module, _, function = SCRIPTS[command].partition(":")
    places = ([] if first is None else [str(first)]) + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", f"from {module} import {function}; {function}()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **environment},
    )


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_needs_no_framework_ends_in_the_narrowest_window_and_has_flags_that_a_readme_knows(
    command: str, interrupted: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run(command, "--help", first=interrupted / "frameworks", COLUMNS="1")
    assert (done.returncode, done.stderr) == (0, "")
    # one second is promised on a quiet machine; a framework alone takes more than this
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2.0
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    assert "None" not in said, "nothing is shown as a default"
    assert set(re.findall(r"(\S) \(default:", said)) <= {"."}, "what a flag does is a sentence"
    flags = {flag for flag in re.findall(r"--[a-z0-9-]+", done.stdout) if not flag.startswith("--no-")}
    assert "--help" in flags
    missing = sorted(
        flag for flag in flags - {"--help"} if not re.search(rf"{flag}(?![a-z0-9-])", known(command))
    )
    assert not missing, f"no README knows {' '.join(missing)}"


def known(command: str) -> str:
    """The READMEs that may say a flag of a command: its member's, and those that bring flags to it."""
    member = next(
        project.parent
        for project in ROOT.glob("*/*/pyproject.toml")
        if command in tomllib.loads(project.read_text())["project"].get("scripts", {})
    )
    places = [member, ROOT / "shared" / "gpt-trainer", ROOT / "packages" / "hellaswag-eval"]
    return "".join((place / "README.md").read_text() for place in places)


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_mistyped_flag_needs_no_framework(command: str, interrupted: Path) -> None:
    needed = ["train", "text.txt"] if command == "bpe-scratch" else []
    done = run(command, *needed, "--deice=cpu", first=interrupted / "frameworks")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.startswith(f"{command}: unknown flag --deice")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", SCRIPTS)
def test_ctrl_c_during_the_imports_is_130_and_nothing_else(command: str, interrupted: Path) -> None:
    needed = ["--model=x"] if command == "aiayn-jax-translate" else []
    done = run(command, *needed, first=interrupted / "numpy")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("command", [name for name in SCRIPTS if name.endswith("-train")])
def test_ctrl_c_while_the_framework_is_imported_is_130_and_nothing_else(
    command: str, interrupted: Path, tmp_path: Path
) -> None:
    done = run(command, f"--out={tmp_path / 'run'}", first=interrupted / "frameworks")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not (tmp_path / "run").exists()
