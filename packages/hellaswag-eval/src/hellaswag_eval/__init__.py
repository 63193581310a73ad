"""HellaSwag for any model that gives log-probabilities."""

from __future__ import annotations

from hellaswag_eval.evaluation import evaluate, evaluate_backend
from hellaswag_eval.items import Item
from hellaswag_eval.protocols import PROTOCOLS, Example, Protocol, encode_items
from hellaswag_eval.results import Answer, Evaluation, Figure
from hellaswag_eval.scoring import Plan, StoppedError
from hellaswag_eval.sources import choose, read_items

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Evaluation",
    "Example",
    "Figure",
    "Item",
    "Plan",
    "Protocol",
    "StoppedError",
    "choose",
    "encode_items",
    "evaluate",
    "evaluate_backend",
    "read_items",
]
