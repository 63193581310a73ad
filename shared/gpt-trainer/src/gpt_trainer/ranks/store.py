"""The table that the processes of a run share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Store(Protocol):
    """A table that all processes see: ``torch.distributed.TCPStore``, or JAX's coordination service."""

    def set(self, key: str, value: bytes) -> None:
        """Write a value; the last word counts.

        Raises:
            ConnectionError: If the process that keeps the table is gone.
        """
        ...

    def get(self, key: str, seconds: float) -> bytes | None:
        """A value, once it is there; None if it is not by then.

        Raises:
            ConnectionError: If the process that keeps the table is gone.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget a value."""
        ...
