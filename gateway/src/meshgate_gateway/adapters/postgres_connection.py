"""Connections to PostgreSQL on which nothing waits for ever.

The server bounds its statements, locks and idle transactions. Where it cannot, because it was stopped
or the way to it is cut, the client does: the kernel of a stopped process acknowledges all that is sent.
"""

from typing import Any, Self, TypeVar

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen

T = TypeVar("T")

CONNECT_SECONDS = 3
STATEMENT_MS = 5_000  # one statement, the commit's sync among them
LOCK_MS = 3_000  # another gateway's transaction takes milliseconds
IDLE_MS = 5_000  # a gateway that stops inside a transaction loses it, and the lock with it
UNANSWERED_MS = 5_000  # bytes that the peer's kernel does not acknowledge
ANSWER_SECONDS = 8.0  # longer than a statement and a lock: a server that works has answered by then

_OPTIONS = (
    f"-c synchronous_commit=on -c statement_timeout={STATEMENT_MS} -c lock_timeout={LOCK_MS} "
    f"-c idle_in_transaction_session_timeout={IDLE_MS}"
)
PARAMETERS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "options": _OPTIONS,
    "application_name": "meshgate-gateway",
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": UNANSWERED_MS,
}


class Bounded(Connection[Any]):
    """Gives up on a server that does not answer, and is closed then: what it was doing is not known."""

    @classmethod
    def to(cls, url: str, *, autocommit: bool) -> Self:
        """Connects; what `url` leaves out comes from libpq's variables, PGPASSWORD among them."""
        return cls.connect(url, autocommit=autocommit, **PARAMETERS)

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Waits for an answer, ANSWER_SECONDS at most."""
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is None:  # not an answer of the server
                self.pgconn.finish()
            raise
