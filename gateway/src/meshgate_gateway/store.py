"""The port to the gateway's database."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = Sequence[Any]


class Transaction(Protocol):
    """Statements that become durable together. `?` marks a parameter."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Runs one statement and returns its rows."""

    def changed(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Runs one statement and returns how many rows it changed: the compare-and-set's answer."""


class Store(Protocol):
    """A durable store.

    `transact` returns only after its work is on disk; many callers may share one sync. Work may
    raise: then nothing of it is kept and the exception comes back. Nobody retries inside.
    """

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in one durable transaction.

        Raises:
            Unavailable: the database failed; nothing was written.
        """

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` without writing. Sees every transaction that returned before.

        Raises:
            Unavailable: the database failed.
        """

    def close(self) -> None:
        """Releases the database."""
