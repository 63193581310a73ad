"""For tests: Triton's interpreter without the work that it repeats for every helper that a kernel calls.

Before a kernel runs, the interpreter (of Triton 3.9) looks through ``triton.language`` and replaces its
functions. It does so again at each call of a jitted helper from inside the kernel, for the language as the
helper's module sees it. Once for each of these modules is enough: the rest is half of all its time.
"""

from __future__ import annotations

from typing import Any

from triton.runtime.interpreter import InterpretedFunction


def replace_language_once() -> None:
    """Let the first helper of a module have the language replaced; the others are only called."""
    replace_and_call = InterpretedFunction.__call__
    seen: set[str] = set()

    def call(helper: InterpretedFunction, *given: Any, **named: Any) -> Any:
        module = helper.fn.__module__
        if module in seen:
            return helper.rewrite()(*given, **named)
        seen.add(module)
        return replace_and_call(helper, *given, **named)

    InterpretedFunction.__call__ = call
