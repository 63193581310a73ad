"""A backend used from Python: what a folder gives, and steps in one's own loop."""

from __future__ import annotations

import numpy as np
import pytest
from gpt_data.batch import Batch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.library import generate, load_model, train_step
from gpt_trainer_runs import Train
from gpt_trainer_toy import SPEC

IDS = np.arange(40).reshape(4, 10) % 7


def test_steps_are_those_of_the_backend(train: Train, flags: list[str]) -> None:
    assert train(*flags, "--steps=2", "--out=done") == 0
    slow = OptimizerConfig(beta1=0.5)
    model, other = (load_model(SPEC, "done", optimizer=slow) for _ in range(2))
    batch = Batch(IDS[:, :-1].astype(np.int32), IDS[:, 1:].astype(np.int32), None)
    for step in range(3):
        got = train_step(model, IDS, 1e-2)
        assert got == other.backend.train_step([batch], 1e-2, step).fetch()
    assert model.steps == 3
    before = model.backend.export()
    assert not train_step(model, IDS, 1e-2, skip_above=0.0).updated
    after = model.backend.export()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_text_repeats_itself_and_starts_with_its_prompt(train: Train, flags: list[str]) -> None:
    assert train(*flags, "--steps=2", "--out=done") == 0
    model = load_model(SPEC, "done")
    texts = [generate(model, "def ", tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("def ") for text in texts)
    model.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        generate(model)


def test_what_does_not_fit_is_a_value_error(train: Train, flags: list[str]) -> None:
    assert train(*flags, "--steps=1", "--out=done") == 0
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_model(SPEC, "nowhere")
    with pytest.raises(ValueError, match="unexpected keyword argument 'flavor'"):
        load_model(SPEC, "done", flavor="sweet")
    with pytest.raises(ValueError, match="device='gpu'"):
        load_model(SPEC, "done", device="gpu")
