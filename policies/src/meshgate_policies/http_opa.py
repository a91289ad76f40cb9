"""Managing an OPA that listens on HTTP: health and what it holds. Never for decisions.

The package has no Unix sockets and one timeout for all; a decision goes through `engine`.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from opa_client.opa import OpaClient

from meshgate_policies.errors import PolicyUnavailable

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class OpaStatus:
    """What an OPA holds.

    Attributes:
        policies: ids of its modules, sorted.
    """

    policies: tuple[str, ...]


class HttpOpa:
    """One OPA over HTTP. Asks once: the package's own retries would hide that it is away."""

    def __init__(
        self, *, host: str, port: int, token: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._client = OpaClient(host=host, port=port, headers=headers, retries=0, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close_connection()

    def health(self) -> bool:
        """Whether it answers and its bundles are active."""
        return bool(self._client.check_health(query={"bundles": "true"}))

    def status(self) -> OpaStatus:
        """What it holds.

        Raises:
            PolicyUnavailable: it is away or refuses our token.
        """
        try:
            listed = self._client.get_policies_list()
        except (OSError, ValueError) as error:  # the package lets those of requests through
            raise PolicyUnavailable(f"OPA gave no answer: {error!r}") from error
        return OpaStatus(tuple(sorted(listed)))
