"""The one door to every check: `uv run nox` runs what must pass, `uv run nox -l` lists the rest."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "tests", "workspace", "install"]

# containers forbid Python to keep what it compiles: each of the hundreds of processes that tests start would
# compile torch and JAX anew, which takes longer than most tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# a command that `uv run` started says so in what it proposes to type; what tests start is not one
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)

ROOT = Path(__file__).parent
MEMBERS = {
    path.name: path
    for path in sorted([*ROOT.glob("packages/*"), *ROOT.glob("shared/*")])
    if (path / "pyproject.toml").is_file()
}
FRAMEWORKS = ("jax", "torch", "triton")
BACKENDS = ("gpt-jax", "gpt-torchfunc", "gpt-triton")
STARTED = time.monotonic()
QUICK_UNTIL = 75
"""Seconds after which `quick` starts no test: the last one, and what pytest says, fit into the rest of 90."""
BESIDE = ("-n=auto", "--maxprocesses=4", "--dist=worksteal")
"""One process a core runs tests; neighbours stay together, as they share what was compiled."""
HANGS = ("-o=faulthandler_timeout=300", "-o=faulthandler_exit_on_timeout=true")
"""A test that hangs says where it stands, and fails with the process that ran it."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PINNED_EXTRAS = ("bleu", "cudnn", "data", "hf", "lm-eval", "plots", "zstd")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}


def metadata(member: str) -> dict:
    """The ``[project]`` table and dependency groups of one member."""
    return tomllib.loads((MEMBERS[member] / "pyproject.toml").read_text())


def requirement_names(requirements: list[str]) -> list[str]:
    """Distribution names of requirement strings: ``["numpy>=1.26"]`` gives ``["numpy"]``."""
    return [re.match(r"[A-Za-z0-9._-]+", requirement)[0] for requirement in requirements]


def closure(member: str) -> list[str]:
    """The member and every workspace member that it needs, itself first."""
    found = [member]
    for name in found:
        needs = requirement_names(metadata(name)["project"]["dependencies"])
        found += [need for need in needs if need in MEMBERS and need not in found]
    return found


def declared_frameworks(member: str) -> set[str]:
    """Frameworks that the member or a member it needs declares; torch's own wheels bring triton."""
    needs = {
        need
        for name in closure(member)
        for need in requirement_names(metadata(name)["project"]["dependencies"])
    }
    declared = needs & set(FRAMEWORKS)
    return declared | {"triton"} if "torch" in declared else declared


def import_name(member: str) -> str:
    """``gpt-data`` is imported as ``gpt_data``."""
    return member.replace("-", "_")


def sync(session: nox.Session, *arguments: str) -> None:
    """Install from the workspace, and nothing else, into the session's own environment."""
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        "--no-default-groups",
        *arguments,
        f"--python={session.virtualenv.location}",
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types of everything, the frameworks' own types at hand."""
    sync(session, "--all-packages", "--group=lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *(str(path / "src") for path in MEMBERS.values()))


@nox.session
@nox.parametrize("member", list(MEMBERS), ids=list(MEMBERS))
def tests(session: nox.Session, member: str) -> None:
    """Run one member's tests with only that member installed."""
    sync(session, f"--package={member}", "--group=test")
    folder = MEMBERS[member].relative_to(ROOT)
    checks = shape_checks(member)
    flags = ("-m", "not slow", *BESIDE, *HANGS, *checks, *session.posargs)
    session.run("pytest", str(folder / "tests"), *flags, env=OFFLINE | ONE_THREAD)


def shape_checks(member: str) -> list[str]:
    """Pytest's flag that turns a member's shape annotations into checks, if it has any."""
    needs = requirement_names(metadata(member)["project"]["dependencies"])
    return [f"--jaxtyping-packages={import_name(member)},beartype.beartype"] if "jaxtyping" in needs else []


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Check in 90 s what differs from main: style, types, the nearest tests; stop at the first fault."""
    sync(session, "--all-packages", "--group=lint", "--group=test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    changed = changed_modules(session)
    if changed:
        session.run("mypy", *(str(MEMBERS[member] / "src") for member in changed))
    for place, (member, modules) in enumerate(changed.items()):
        share = (QUICK_UNTIL - (time.monotonic() - STARTED)) / (len(changed) - place)
        session.run(
            *("pytest", str(MEMBERS[member] / "tests"), "-x", "-m", "not slow", *shape_checks(member)),
            *("-p", "quick", f"--seconds={share:.0f}", "--changed", *modules, *session.posargs),
            env=OFFLINE | {"PYTHONPATH": "tests"},
        )


def changed_modules(session: nox.Session) -> dict[str, list[str]]:
    """By member, the modules of its sources and tests that differ from main; new files count."""

    def git(*words: str) -> list[str]:
        return session.run("git", *words, external=True, silent=True, log=False).splitlines()

    base = [name for name in ("origin/main", "main") if git("branch", "--all", "--list", f"*{name}")]
    lines = git("diff", "--name-only", "--merge-base", *base[:1])
    lines += git("ls-files", "--others", "--exclude-standard")
    found: dict[str, list[str]] = {}
    for member, folder in MEMBERS.items():
        for path in (ROOT / line for line in lines):
            if path.suffix == ".py" and path.is_relative_to(folder):
                inside = path.relative_to(folder).with_suffix("").parts
                name = ".".join(inside[1:]) if inside[0] == "src" else inside[-1]
                found.setdefault(member, []).append(name)
    return found


@nox.session
def workspace(session: nox.Session) -> None:
    """Run what crosses packages: the README's promises, and checkpoints handed from backend to backend."""
    sync(session, "--all-packages", "--group=test", "--group=oracle")
    flags = ("--ignore=tests/parity", *BESIDE, *HANGS, *session.posargs)
    session.run("pytest", "tests", *flags, env=OFFLINE | ONE_THREAD)


@nox.session
def install(session: nox.Session) -> None:
    """Build every wheel, then use each in a fresh environment outside the workspace."""
    wheels = Path(session.create_tmp()).resolve()
    shutil.rmtree(wheels, ignore_errors=True)
    session.run_install("uv", "build", "--quiet", "--all-packages", "--wheel", f"--out-dir={wheels}")
    constraints = wheels / "constraints.txt"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    constraints.write_text("\n".join(pins) + "\n")
    for member in session.posargs or MEMBERS:
        install_alone(session, member, wheels, constraints)


def install_alone(session: nox.Session, member: str, wheels: Path, constraints: Path) -> None:
    """Install one wheel with the wheels it needs; import it, run its commands, look for strangers."""
    place = wheels / f"env-{member}"
    session.run_install("uv", "venv", "--quiet", f"--python={session.virtualenv.location}", str(place))
    python = place / "bin" / "python"
    # every wheel of ours is named by path: a namesake on an index can never take its place
    ours = [str(next(wheels.glob(f"{import_name(name)}-*.whl"))) for name in closure(member)]
    session.run_install(
        "uv", "pip", "install", "--quiet", f"--python={python}", f"--constraint={constraints}", *ours
    )
    check = (
        f"import importlib.util, {import_name(member)}\n"
        f"found = {{name for name in {FRAMEWORKS!r} if importlib.util.find_spec(name)}}\n"
        f"assert found == {declared_frameworks(member)!r}, found"
    ).replace("set()", "set(())")
    with session.chdir(place):
        session.run(str(python), "-c", check, external=True, env=OFFLINE)
        for command in metadata(member)["project"].get("scripts", {}):
            session.run(str(place / "bin" / command), "--help", external=True, silent=True, env=OFFLINE)
    packages = len(list(place.glob("lib/*/site-packages/*.dist-info")))
    weight = sum(path.lstat().st_size for path in place.rglob("*")) / 1e6
    session.log(
        f"{member}: installed alone, imported, commands answer --help; {packages} packages, {weight:.0f} MB"
    )
    shutil.rmtree(place)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need a GPU, every kernel compiled."""
    sync(session, "--package=gpt-triton", "--group=test")
    # without one every such test is skipped, which looks like a pass
    seen = (
        "import torch; raise SystemExit(None if torch.cuda.is_available() else 'torch finds no CUDA device')"
    )
    session.run("python", "-c", seen)
    session.run("pytest", "packages/gpt-triton/tests", *session.posargs, env=OFFLINE)


@nox.session
def parity(session: nox.Session) -> None:
    """Hold every backend against a float64 referee; `-- --device gpu` does it on a GPU."""
    sync(session, "--only-group=parity")
    place = Path(session.create_tmp()).resolve()
    on_gpu = {"gpt-jax": ["--extra=cuda13"], "gpt-torchfunc": ["--extra=cudnn"]}
    more = on_gpu if "gpu" in session.posargs else {}
    pythons = {member: place / member / "bin" / "python" for member in BACKENDS}
    for member in BACKENDS:
        session.run_install(
            *("uv", "sync", "--quiet", "--no-default-groups", f"--package={member}", "--group=test"),
            *more.get(member, []),
            f"--python={session.virtualenv.location}",
            env={"UV_PROJECT_ENVIRONMENT": str(place / member)},
        )
    oracle = pythons["gpt-torchfunc"]
    session.run_install("uv", "pip", "install", "--quiet", f"--python={oracle}", "transformers>=5")
    session.run(str(oracle), "-m", "pytest", "tests/parity/test_referee.py", external=True, env=OFFLINE)
    for python in pythons.values():
        planted = "tests/parity/test_planted_errors.py"
        session.run(str(python), "-m", "pytest", planted, external=True, env=OFFLINE)
    given = [f"--python={member}={python}" for member, python in pythons.items()]
    session.run("python", "tests/parity/run.py", str(place / "work"), *given, *session.posargs, env=OFFLINE)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages into build/site: one training step in three dialects, derivations, API."""
    sync(session, "--all-packages", "--group=docs")
    out = ROOT / "build" / "site"
    flags = ("-q", "-W", "--keep-going", *session.posargs)
    # JAX looks for a TPU otherwise, and says that there is none
    session.run("sphinx-build", *flags, "shared/site", str(out), env={"JAX_PLATFORMS": "cpu"})
    session.log(f"open {out / 'index.html'}")


@nox.session
def bench(session: nox.Session) -> None:
    """Train every backend beside plain PyTorch; flags of gpt-compare behind `--`, as `-- --device gpu`."""
    on_gpu = ["--package=gpt-jax", "--extra=cuda13"] if "gpu" in session.posargs else []
    sync(session, "--package=gpt-compare", *on_gpu)
    session.run("gpt-compare", *session.posargs)


@nox.session
def harness(session: nox.Session) -> None:
    """Hold HellaSwag's scores against lm-evaluation-harness, item by item, in an environment apart."""
    sync(session, "--package=hellaswag-eval", "--package=gpt-torchfunc", "--extra=lm-eval", "--group=test")
    session.run("pytest", "packages/hellaswag-eval/tests/test_lm_eval.py", *session.posargs, env=OFFLINE)


@nox.session
def count(session: nox.Session) -> None:
    """Count lines, files and long functions, what one step takes to read, and the calls to the loop."""
    sync(session, "--package=gpt-jax")
    session.run("python", "tests/count.py", *session.posargs, env=OFFLINE)


@nox.session
def pins(session: nox.Session) -> None:
    """Resolve everything anew and write the exact versions into [tool.uv] constraint-dependencies."""
    project = ROOT / "pyproject.toml"
    write_pins(project, [])
    session.run_install("uv", "lock", "--quiet", "--upgrade", external=True)
    exported = session.run(
        "uv", "export", "--quiet", "--frozen", "--all-packages", "--all-groups",
        *(f"--extra={extra}" for extra in PINNED_EXTRAS), "--no-emit-workspace", "--no-hashes",
        "--no-annotate", "--no-header", external=True, silent=True,
    )  # fmt: skip
    write_pins(project, sorted(line for line in exported.splitlines() if "==" in line))
    # what it warns of, each newcomer would read first
    session.run_install("uv", "lock", external=True)


def write_pins(project: Path, pins: list[str]) -> None:
    """Replace the list of constraints in the root's project file."""
    lines = "".join(f"    {json.dumps(pin)},\n" for pin in pins)
    block = f"constraint-dependencies = [\n{lines}]" if pins else "constraint-dependencies = []"
    text = re.sub(
        r"constraint-dependencies = \[.*?\]\n", lambda _: block + "\n", project.read_text(), flags=re.DOTALL
    )
    project.write_text(text)
