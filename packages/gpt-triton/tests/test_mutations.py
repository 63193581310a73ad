"""The checks can fail: each term of each backward, off by one part in a hundred, is noticed.

A mutant is a copy of ``gpt_triton.reference`` with one line changed, imported under another name.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import gpt_triton.reference
import pytest
import torch
from gpt_triton_cases import CASES, jacobians
from torch import Tensor

Check = Callable[..., None]

# file, the text, its mutation, the case that must notice
MUTATIONS = [
    ("gelu.py", "square.mul_(6 * C * A)", "square.mul_(6.06 * C * A)", "gelu"),
    ("gelu.py", ".add_(2 * C).mul_(x)  # x 2u'", ".add_(2.02 * C).mul_(x)  # x 2u'", "gelu"),
    ("gelu.py", "addcmul_(slope, s, value=-1.0)", "addcmul_(slope, s, value=-1.01)", "gelu"),
    ("gelu.py", ".add_(1.0).mul_(s)", ".add_(1.01).mul_(s)", "gelu"),
    ("layer_norm.py", "d_bias.add_(g.sum(0))", "d_bias.add_(g.sum(0), alpha=1.01)", "layer_norm"),
    (
        "layer_norm.py",
        "d_gain.add_((g * x_hat).sum(0))",
        "d_gain.add_((g * x_hat).sum(0), alpha=1.01)",
        "layer_norm",
    ),
    ("layer_norm.py", "g = g * gain", "g = g * gain * 1.01", "layer_norm"),
    ("layer_norm.py", "g.mean(1, keepdim=True)", "(1.01 * g.mean(1, keepdim=True))", "layer_norm"),
    (
        "layer_norm.py",
        "addcmul_(x_hat, projection, value=-1.0)",
        "addcmul_(x_hat, projection, value=-0.99)",
        "layer_norm",
    ),
    ("layer_norm.py", "g.add_(d_skip[tile])", "g.add_(d_skip[tile], alpha=1.01)", "norm_and_skip"),
    ("linear.py", "return d_y @ weight.T", "return d_y @ weight.T * 1.01", "linear"),
    ("linear.py", "gelu_bwd(pre, torch", "gelu_bwd(pre * 1.01, torch", "gelu_linear"),
    ("linear.py", "return gelu_fwd(pre)", "return gelu_fwd(pre) * 1.01", "gelu_linear"),
    ("linear.py", ".mul_(slope)", ".mul_(slope * 1.01)", "mlp"),
    (
        "linear.py",
        "d_weight.addmm_(x.to(d_weight.dtype).T, d_y)",
        "d_weight.addmm_(x.to(d_weight.dtype).T, d_y, alpha=1.01)",
        "linear",
    ),
    ("linear.py", "d_bias.add_(d_y.sum(0))", "d_bias.add_(d_y.sum(0), alpha=1.01)", "linear"),
    ("attention.py", "alpha=scale).exp_()", "alpha=1.01 * scale).exp_()", "attention"),
    (
        "attention.py",
        "torch.baddbmm(-delta[here], d_o",
        "torch.baddbmm(-1.01 * delta[here], d_o",
        "attention",
    ),
    (
        "attention.py",
        ".mul_(tile_scale).sub_(delta[here])",
        ".mul_(tile_scale).sub_(1.01 * delta[here])",
        "attention_dropout",
    ),
    ("attention.py", "mul_(tile_scale)", "mul_(1.01 * tile_scale)", "attention_dropout"),
    ("attention.py", "p_kept = p * tile_scale", "p_kept = p", "attention_dropout"),
    (
        "attention.py",
        "d_v[seen].baddbmm_(p_kept.mT, d_o[here])",
        "d_v[seen].baddbmm_(p_kept.mT, d_o[here], alpha=1.01)",
        "attention",
    ),
    ("attention.py", "out=d_q[here]).mul_(scale)", "out=d_q[here]).mul_(1.01 * scale)", "attention"),
    (
        "attention.py",
        "q[here], alpha=scale)\n    return",
        "q[here], alpha=1.01 * scale)\n    return",
        "attention",
    ),
    (
        "attention.py",
        "_fill_hidden(p, starts, heads, first, last, 0.0)",
        "_fill_hidden(p, None, heads, first, last, 0.0)",
        "attention_segments",
    ),
    ("attention.py", "heads.start) * context", "heads.start) * (context + 1)", "attention_dropout"),
    (
        "cross_entropy.py",
        "d_logits.gather(1, index) - 1.0",
        "d_logits.gather(1, index) - 1.01",
        "cross_entropy",
    ),
    (
        "cross_entropy.py",
        "d_logits.mul_(valid * weight)",
        "d_logits.mul_(1.01 * valid * weight)",
        "cross_entropy",
    ),
    ("cross_entropy.py", "d_logits.mul_(valid * weight)", "d_logits.mul_(weight)", "cross_entropy"),
    (
        "cross_entropy.py",
        "d_logits.to(x.dtype) @ head",
        "d_logits.to(x.dtype) @ head * 1.01",
        "cross_entropy",
    ),
    (
        "cross_entropy.py",
        "d_head.addmm_(d_logits.mT, x[part].to(d_head.dtype))",
        "d_head.addmm_(d_logits.mT, x[part].to(d_head.dtype), alpha=1.01)",
        "cross_entropy",
    ),
    (
        "embedding.py",
        "table.index_add_(0, index, rows)",
        "table.index_add_(0, index, rows, alpha=1.01)",
        "embedding",
    ),
    ("embedding.py", "d_x = dropout_bwd(d_x, dropout)", "d_x = d_x / (1 - dropout.rate)", "embedding"),
    (
        "dropout.py",
        "rule.dropout(d_y, dropout.key, dropout.rate)",
        "rule.dropout(1.01 * d_y, dropout.key, dropout.rate)",
        "dropout",
    ),
]


@pytest.fixture
def mutant(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    file, old, new, _ = request.param
    source = Path(gpt_triton.reference.__file__).parent
    name = f"mutated_{abs(hash(request.param))}"
    copy = tmp_path / name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob("*.py"):
        path.write_text(path.read_text().replace("gpt_triton.reference", name))
    text = (copy / file).read_text()
    assert old in text, f"{file} no longer holds {old!r}: rewrite this mutation"
    (copy / file).write_text(text.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    for loaded in [key for key in sys.modules if key.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    return module


@pytest.mark.parametrize(
    ("mutant", "case"),
    [pytest.param(m, m[3], id=f"{m[0]}-{number}") for number, m in enumerate(MUTATIONS)],
    indirect=["mutant"],
)
def test_a_wrong_term_is_noticed(mutant: ModuleType, case: str, assert_close: Check) -> None:
    built = CASES[case](mutant)
    want = torch.func.jacrev(built.plain, argnums=tuple(range(len(built.inputs))))(*built.inputs)
    with pytest.raises(AssertionError, match="relative error"):
        _check_all(case, jacobians(built), want, assert_close)


def _check_all(case: str, got: Iterable[Tensor], want: Iterable[Tensor], assert_close: Check) -> None:
    for number, pair in enumerate(zip(got, want, strict=True)):
        assert_close(f"{case}, input {number}", *pair, "float64")


def test_every_case_sees_a_mutation() -> None:
    untouched = set(CASES) - {mutation[3] for mutation in MUTATIONS}
    # these run the ops of the others in another order or at another size
    assert untouched == {"linear_residual", "attention_two_tiles"}
