"""The policy engine's port, and which engine is in force."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class PolicyEngine(Protocol):
    """Answers one constant question about an input.

    Durability: none. Concurrency: safe for threads. Nobody retries inside.
    """

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw answer, judged by `decide`.

        Raises:
            PolicyUnavailable: no answer.
        """


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """An engine and the bundle it was started on; one decision uses exactly one of these."""

    engine: PolicyEngine
    revision: str
    digest: str


class PolicySlot:
    """The policy in force. Swapped whole: a decision never mixes revisions."""

    def __init__(self, *, active: ActivePolicy) -> None:
        self._active = active
        self._lock = threading.Lock()

    @property
    def active(self) -> ActivePolicy:
        """The policy in force now; take it once per decision."""
        return self._active

    def activate(self, policy: ActivePolicy) -> ActivePolicy:
        """Puts a policy in force and returns the one before."""
        with self._lock:
            before, self._active = self._active, policy
            return before
