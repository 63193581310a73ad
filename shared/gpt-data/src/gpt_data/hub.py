"""The Hugging Face hub, asked once and quietly: what its client prints while it retries is not ours."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from importlib import import_module
from typing import Any, TypeVar

from gpt_data.errors import InputError, first_line

ANSWER_SECONDS = 10.0
Answer = TypeVar("Answer")


class HubBusyError(Exception):
    """The hub answers that it cannot answer now: waiting may help."""


def client() -> Any:
    """The library ``huggingface_hub``, told to print errors alone.

    Raises:
        InputError: If it is not installed.
    """
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise InputError("the hub is read with the extra gpt-data[hf], which is not installed") from error
    import_module("huggingface_hub.utils.logging").set_verbosity_error()
    return hub


def ask(question: Callable[[Any], Answer]) -> Answer:
    """The hub's answer to one question, without a second try.

    Args:
        question: Gets an ``HfApi``; its request must not be one that the library repeats.

    Raises:
        InputError: If the hub does not answer, or refuses.
        HubBusyError: If it answers with a status that does not last.
    """
    hub = client()
    try:
        return question(hub.HfApi())
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise HubBusyError(first_line(error)) from error
        raise InputError(f"the hub refuses: {first_line(error)}") from error
    except ValueError as error:  # a name that cannot be one
        raise InputError(first_line(error)) from error
    except Exception as error:  # the library passes on whatever its network stack raises
        raise InputError(f"the hub does not answer ({first_line(error)})") from error
