"""HellaSwag for any model that gives log-probabilities."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hellaswag_eval.evaluation import evaluate, evaluate_backend
    from hellaswag_eval.items import Item
    from hellaswag_eval.protocols import PROTOCOLS, Example, Protocol, encode_items
    from hellaswag_eval.results import Answer, Evaluation, Figure
    from hellaswag_eval.scoring import EvaluationStoppedError, Plan
    from hellaswag_eval.sources import choose, read_items

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Evaluation",
    "EvaluationStoppedError",
    "Example",
    "Figure",
    "Item",
    "Plan",
    "Protocol",
    "choose",
    "encode_items",
    "evaluate",
    "evaluate_backend",
    "read_items",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command answers Ctrl-C before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    places = ("evaluation", "items", "protocols", "results", "scoring", "sources")
    modules = (import_module(f"{__name__}.{place}") for place in places)
    value = next(getattr(module, name) for module in modules if hasattr(module, name))
    globals()[name] = value
    return value
