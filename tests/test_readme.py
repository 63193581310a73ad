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
NAMES = r"gpt-[a-z]+-(?:train|sample|prepare)|aiayn-jax-(?:train|translate)|hellaswag-eval|gpt-compare"
MEMBERS = {path.parent.name: path.parent for path in ROOT.glob("*/*/pyproject.toml")}
PAGES = [README, *((folder / "README.md").read_text() for folder in MEMBERS.values())]
TYPED = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", "".join(PAGES), re.DOTALL)).replace("\\\n", "")
COMMANDS = re.findall(rf"^(?:uv run )?((?:{NAMES}) [^#\n]*)", TYPED, re.MULTILINE)


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


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_every_member_is_listed_and_says_how_it_is_installed(member: str) -> None:
    folder = MEMBERS[member].relative_to(ROOT)
    assert f"[{member}]({folder})" in README
    assert f"uv pip install ./{folder}" in README
    assert (ROOT / folder / "README.md").read_text().startswith(f"# {member}\n")


@pytest.mark.parametrize("command", sorted({line.split()[0] for line in COMMANDS}))
def test_every_flag_that_a_readme_shows_exists(command: str) -> None:
    words = [word for line in COMMANDS for word in shlex.split(line) if line.split()[0] == command]
    flags = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
    assert not [flag for flag in flags if not re.search(rf"{flag}[ ,|]", help_of(command))]


# the two others list what is read first
@pytest.mark.parametrize("member", sorted(MEMBERS.keys() - {"bpe-scratch", "gpt-data"}))
def test_a_list_of_files_lacks_none(member: str) -> None:
    page, sources = (MEMBERS[member] / "README.md").read_text(), MEMBERS[member] / "src"
    named = {*re.findall(r"(\w+)\.py\b", page), *re.findall(r"`(\w+)`", page), "__init__"}
    rooms = {*re.findall(r"\b(\w+)/", page)} - {path.name for path in sources.iterdir()}
    files = [path for path in sources.rglob("*.py") if path.parent.name not in rooms]
    assert [path.name for path in files if path.stem not in named] == []


GOALS = "packages/{}/docs/performance.md"
SPEED = r"over nanoGPT \(`torch.compile`, no biases\), B=64 \|[^|]*\| \*\*([\d.]+)"
TOLD = {
    r"gpt-triton is ([\d.]+) times as fast as llm\.c": (
        GOALS.format("gpt-triton"),
        r"over llm\.c \([^|]*B=64 \|[^|]*\| \*\*([\d.]+)",
    ),
    r"([\d.]+) times as nanoGPT": (GOALS.format("gpt-triton"), SPEED),
    r"trains in ([\d.]+) GB": (GOALS.format("gpt-triton"), r"`--keep less`[^|]*\|[^|]*\| \*\*([\d.]+) GB;"),
    r"at ([\d.]+) of its speed": (
        GOALS.format("gpt-triton"),
        r"`--keep less`[^|]*\|[^|]*\|[^|]*; ([\d.]+)\*\*",
    ),
    r"with its extra `cudnn` ([\d.]+) times": (GOALS.format("gpt-torchfunc"), SPEED),
    r"takes (\d+) % of the steps": (
        "packages/gpt-compare/README.md",
        r"\*\*(\d+) % of the steps \(20 to 27\)\*\*",
    ),
    r"gpt-jax ([\d.]+) s,": ("packages/hellaswag-eval/README.md", r"\| gpt-jax \|[^|]*\| \*\*([\d.]+)"),
    r"gpt-triton ([\d.]+) s,": ("packages/hellaswag-eval/README.md", r"\| gpt-triton \|[^|]*\| \*\*([\d.]+)"),
    r"gpt-torchfunc ([\d.]+) s\.": (
        "packages/hellaswag-eval/README.md",
        r"\| gpt-torchfunc \|[^|]*\| \*\*([\d.]+)",
    ),
    r"([\d.]+) to [\d.]+ times the speed of": (
        "packages/hellaswag-eval/README.md",
        r"\*\*([\d.]+) to [\d.]+ times the harness",
    ),
    r"\): ([\d.]+) ms a step": ("packages/aiayn-jax/README.md", r"--no-wide-logits` \| ([\d.]+)"),
    r"tokens/s, ([\d.]+) GB\), beside": (
        "packages/aiayn-jax/README.md",
        r"--no-wide-logits` \|.*\| ([\d.]+) GB \|\n",
    ),
    r"beside ([\d.]+) to": ("packages/aiayn-jax/README.md", r"CUDA graphs\) \| ([\d.]+)"),
    r"([\d.]+) BLEU": ("packages/aiayn-jax/README.md", r"\*\*([\d.]+) BLEU"),
}
"""What the README says of figures that other pages have, and where."""


@pytest.mark.parametrize("said", TOLD)
def test_it_says_what_the_page_says_where_it_was_measured(said: str) -> None:
    page, measured = TOLD[said]
    numbers = re.findall(said, " ".join(README.partition("## What each costs")[2].split()))
    numbers = numbers or re.findall(said, " ".join(README.split()))
    found = re.search(measured, (ROOT / page).read_text())
    assert found is not None, "not measured there any more"
    assert numbers
    for number in numbers:
        assert number == f"{float(found[1]):.{len(number.partition('.')[2])}f}"


def test_recipes_reckon_with_the_speed_that_is_published() -> None:
    row = re.search(r"^\| gpt-triton \| [^|]+ \| ([\d,]+) \|", README, re.MULTILINE)
    assert row is not None
    speed = int(row[1].replace(",", ""))
    recipes = ROOT / "shared/gpt-trainer/recipes"
    for recipe in recipes.glob("gpt2-124m-*.toml"):
        assert f"({round(speed / 1e3)} k tokens/s, gpt-triton," in recipe.read_text(), recipe.name
    assert (
        f"it takes {1e10 / speed / 3600:.1f} hours"
        in (recipes / "gpt2-124m-fineweb-edu-10b.toml").read_text()
    )


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
