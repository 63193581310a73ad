"""The compiled step: traced whole and once, and the same numbers as without a compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpt_torchfunc.backend import TorchFuncBackend
from gpt_torchfunc.device import can_compile
from gpt_torchfunc.options import Options
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.parameters import init_parameters

pytestmark = [
    # torch.compile cannot look through the wrapper of the shape checks
    pytest.mark.usefixtures("unchecked"),
    # torch's compiler uses parts of Python and of torch that are going away
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # torch's advice to users of Python 3.13.0
    pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning"),
]


@pytest.fixture
def graphs(monkeypatch):
    """Trace, count the graphs, and run them as they are."""
    found = []

    def keep(graph, examples):
        found.append(graph)
        return graph.forward

    def traced(function, **settings):
        del settings["options"]
        return compile_(function, backend=keep, **settings)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(("dropout", "functions"), [(0.0, 12), (0.1, 14)])
def test_the_first_step_traces_everything_once(dropout, functions, graphs, build, batch, assert_close):
    """Eleven functions of a micro-batch, two more that draw masks, and the update; blocks share theirs."""
    traced, plain = build(dropout=dropout, options=Options(compile="on")), build(dropout=dropout)
    for index in range(4):
        lr, limit = 1e-2 / (index + 1), 100.0 + index
        halves = [batch.rows(0, 2), batch.rows(2, 4)]
        got, want = (b.train_step(halves, lr, index, skip_above=limit).fetch() for b in (traced, plain))
        assert_close("loss", got.loss, want.loss, rel=1e-6)
        assert len(graphs) == functions, f"step {index} was traced again"


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_steps_match_plain_ones(config, packed, assert_close):
    # one block: compiling a kernel takes a second or two, whatever the sizes
    small = replace(config, n_layer=1)
    compiled, plain = (
        TorchFuncBackend(small, OptimizerConfig(), Runtime(device="cpu"), Options(compile=choice))
        for choice in ("on", "off")
    )
    for backend in (compiled, plain):
        backend.load(init_parameters(small, 0))
    for index in range(5):
        got, want = (b.train_step([packed], 1e-2, index).fetch() for b in (compiled, plain))
        assert_close(f"loss {index}", got.loss, want.loss, rel=1e-5)
