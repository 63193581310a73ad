"""The recipes: each is read whole, says what came of it, and trains with everything small put over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer.settings.values import read_toml
from gpt_trainer_runs import Train

HERE = Path(__file__).parents[1]
RECIPES = sorted((HERE / "recipes").glob("*.toml"))
SMALL = ("--sample-every=0", "--eval-every=2", "--save-every=0", "--steps=3", "--dropout=0", "--plain")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts(train: Train, flags: list[str], tmp_path: Path, recipe: Path) -> None:
    assert train(f"--config={recipe}", *flags, *SMALL, "--out=run") == 0
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(steps) == 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_length_and_says_whether_it_was_run(recipe: Path) -> None:
    values = read_toml(recipe)
    assert len({"minutes", "train_tokens", "steps"} & values.keys()) == 1
    words = " ".join(line.strip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert ("Not run here." in words) != ("Measured " in words)
    assert f"--config {recipe.name}" in words


def test_the_readme_lists_them_all() -> None:
    text = (HERE / "README.md").read_text()
    assert RECIPES
    assert [recipe.name for recipe in RECIPES if f"recipes/{recipe.name}" not in text] == []
