"""Exact versions of the root lie in the ranges of every member: else nothing can be installed at all."""

from __future__ import annotations

import ast
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MEMBERS = [*sorted(ROOT.glob("packages/*/pyproject.toml")), *sorted(ROOT.glob("shared/*/pyproject.toml"))]


def pins() -> list[Requirement]:
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [Requirement(line) for line in root["tool"]["uv"]["constraint-dependencies"]]


@pytest.mark.parametrize("path", MEMBERS, ids=lambda path: path.parent.name)
def test_every_pin_is_a_version_that_the_members_take(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    wanted = map(
        Requirement, chain(project["dependencies"], *project.get("optional-dependencies", {}).values())
    )
    ranges = {requirement.name: requirement.specifier for requirement in wanted}
    refused = [
        f"{pin} is not {ranges[pin.name]}"
        for pin in pins()
        if pin.name in ranges and not ranges[pin.name].contains(str(pin.specifier).removeprefix("=="))
    ]
    assert not refused


LEFT_OUT = {
    *("cuda12", "cuda13"),  # one excludes the other
    *("tensorboard", "trackio", "wandb"),  # whose version is the user's
    *("parquet", "transformers"),  # in hf
}


def test_every_extra_is_pinned_or_left_out_for_a_reason() -> None:
    """An extra that the session forgets loses its pins when they are renewed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if type(node) is ast.Assign}
    extras = {
        extra
        for path in MEMBERS
        for extra in tomllib.loads(path.read_text())["project"].get("optional-dependencies", {})
    }
    assert {*ast.literal_eval(constants["PINNED_EXTRAS"])} == extras - LEFT_OUT
