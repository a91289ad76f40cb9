"""The policy engine's port, and which engine is in force."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from meshgate_gateway.errors import ListingMismatch, PolicyBusy

SWITCH_SECONDS = 3.0  # a question to the engine ends within 1 s; then its record is written


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
class PolicyPlace:
    """Where a policy's engine listens, which bundle it was started on, and where its listing lies."""

    socket: str
    token_file: str
    revision: str
    digest: str
    listing: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Which tools each app may call with some arguments, computed from one policy.

    Advice for agents: only a decision allows.
    """

    apps: Mapping[str, frozenset[str]]

    def of(self, app: str) -> frozenset[str]:
        """The app's tools; none for an app it does not name."""
        return self.apps.get(app, frozenset())


def parse_listing(text: bytes, *, revision: str, digest: str) -> Listing:
    """Reads the listing of exactly this policy.

    Raises:
        ListingMismatch: it is no listing, or another policy's.
    """
    try:
        document = json.loads(text)
        named = (document["revision"], document["digest"])
        apps = {str(app): frozenset(map(str, tools)) for app, tools in document["apps"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ListingMismatch(f"the listing cannot be read: {error!r}") from error
    if named != (revision, digest):
        raise ListingMismatch(f"the listing is of policy {named[0]}, not of {revision}")
    return Listing(MappingProxyType(apps))


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """An engine, the bundle it was started on, and that bundle's listing; swapped as one."""

    engine: PolicyEngine
    revision: str
    digest: str
    listing: Listing = Listing(MappingProxyType({}))


class PolicySlot:
    """The policy in force. Swapped whole, between decisions: no decision mixes revisions.

    A decision lasts from its question until its record is durable. So in the log every decision
    before the activation's record names the old policy and every one after it the new.
    """

    def __init__(self, *, active: ActivePolicy) -> None:
        self._active = active
        self._changed = threading.Condition()
        self._deciding = 0
        self._switching = False

    @property
    def active(self) -> ActivePolicy:
        """The policy in force now, for what is no decision."""
        return self._active

    @contextlib.contextmanager
    def deciding(self) -> Iterator[ActivePolicy]:
        """The policy of one decision; it stays in force until the block ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._switching)
            self._deciding += 1
        try:
            yield self._active
        finally:
            with self._changed:
                self._deciding -= 1
                self._changed.notify_all()

    def activate(self, policy: ActivePolicy, *, record: Callable[[], object]) -> None:
        """Waits for the decisions under way, records, and puts a policy in force.

        Args:
            policy: what to put in force.
            record: makes the activation durable; when it raises, the old policy stays.

        Raises:
            PolicyBusy: another activation is under way, or a decision did not end; the old policy stays.
        """
        with self._changed:
            if self._switching:
                raise PolicyBusy(detail="another activation is under way")
            self._switching = True
            try:
                if not self._changed.wait_for(lambda: self._deciding == 0, SWITCH_SECONDS):
                    raise PolicyBusy(detail=f"a decision did not end within {SWITCH_SECONDS:g} s")
                record()
                self._active = policy
            finally:
                self._switching = False
                self._changed.notify_all()
