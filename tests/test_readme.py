"""What the README promises: its first two commands, its members, and every flag that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NAMES = r"gpt-[a-z]+-(?:train|sample)|aiayn-jax-(?:train|translate)|hellaswag-eval|gpt-compare"
COMMANDS = re.findall(rf"^uv run ((?:{NAMES})\b[^#\n]*)", README, re.MULTILINE)


@cache
def help_of(command: str) -> str:
    script = Path(sys.executable).with_name(command)
    return subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout


def test_it_opens_with_the_two_commands_and_the_second_is_what_decides() -> None:
    block = README.split("```")[1]
    get_uv, train, check = block.strip().splitlines()[1:]
    # a bare `pip install` is refused by Debian's and Ubuntu's own Python
    assert get_uv.startswith(
        "python3 -m venv ~/.uv && ~/.uv/bin/pip install uv && export PATH=~/.uv/bin:$PATH "
    )
    assert train.startswith("uv run gpt-triton-train ")
    assert check.startswith("uv run nox ")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "uv run nox"


def test_the_speed_that_it_opens_with_is_the_one_that_it_tells() -> None:
    opening, _, rest = README.partition("```")
    times = re.findall(r"\d\.\d\d times as (?:fast as )?\w+\W?\w*", " ".join(opening.split()))
    assert len(times) == 2
    told = " ".join(rest.split())
    assert not [each for each in times if each not in told]


def test_no_file_of_ours_narrows_what_pythons_may_be_used() -> None:
    """uv refuses a machine that has only Python 3.12 where a `.python-version` says 3.11."""
    assert not (ROOT / ".python-version").exists()


@pytest.mark.parametrize("member", sorted(path.parent.name for path in ROOT.glob("*/*/pyproject.toml")))
def test_every_member_is_listed_and_says_how_it_is_installed(member: str) -> None:
    folder = next(ROOT.glob(f"*/{member}")).relative_to(ROOT)
    assert f"[{member}]({folder})" in README
    assert f"uv pip install ./{folder}" in README
    assert (ROOT / folder / "README.md").read_text().startswith(f"# {member}\n")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_flag_that_it_shows_exists(line: str) -> None:
    command, *words = shlex.split(line)
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}[ ,]", help_of(command)), f"{command} has no {flag}"


def test_links_lead_somewhere() -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", README):
        if target.startswith("http"):
            continue
        place = ROOT / (target or "README.md")
        assert place.exists(), target
        if heading:
            # GitHub's name of a heading
            titles = re.findall(r"(?m)^#+ (.+)$", place.read_text("utf-8"))
            names = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in names, f"{target}#{heading}"


def test_formulas_hold_only_what_github_renders() -> None:
    page = (ROOT / "packages/gpt-triton/docs/derivations.md").read_text()
    assert r"\operatorname" not in page  # refused there
    text = re.sub(r"\$\$.*?\$\$|\$`.*?`\$", "", page, flags=re.DOTALL)
    # Markdown takes the backslash of `\,` away before the formula is read, unless it stands in backquotes
    assert re.findall(r"(?<!\$)\$[^$]*?\\[,;!:{}|][^$]*?\$", text) == []
