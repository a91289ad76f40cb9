"""`meshgate policy activate`: the project's policies put in force without a restart, or not at all.

Steps: read once; check and build; test; a second OPA, started cold; samples and listing; the gateway switches
between two decisions; the OPA before is stopped. Whatever fails before the switch leaves the old policy.
"""

import contextlib
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from meshgate_deploy.errors import DependencyUnavailable, MeshError
from meshgate_deploy.policy_plane import Listing, Policy, PolicyPlane
from meshgate_deploy.policy_sources import Sources
from meshgate_deploy.services import Services

ANSWER_SECONDS = 20.0  # a gateway that was killed is back in 3 s
POLL_SECONDS = 0.1

Say = Callable[[str], None]


class Gateway(Protocol):
    """The gateway's Admin service."""

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Calls one method.

        Raises:
            MeshError: refused, or no answer.
        """


class Activation:
    """Activates policies of one running mesh, one at a time. From any thread."""

    def __init__(
        self, *, plane: PolicyPlane, services: Services, gateway: Gateway, tools: Mapping[str, Any]
    ) -> None:
        self._plane, self._services, self._gateway, self._tools = plane, services, gateway, tools
        self._one = threading.Lock()
        self._live: dict[str, Policy] = {}

    def activate(self, *, dry_run: bool, say: Say) -> dict[str, Any]:
        """Puts the project's policies in force, if they differ from those that are.

        Args:
            dry_run: ends before the switch.
            say: gets each step.

        Returns:
            `status` (activated, unchanged, would_activate), `revision` old and new, `digest`, and the
            pairs of app and tool that `appear` or `vanish` from the listing.

        Raises:
            PolicyProblems: a check or test failed; nothing was changed.
            MeshError: another step failed. The message says what is in force.
        """
        if not self._one.acquire(blocking=False):
            raise DependencyUnavailable("another activation is under way", next_step="try again")
        try:
            before = self._in_force()
            with self._told(before), self._plane.sources() as sources:
                return self._activate(before, sources, dry_run=dry_run, say=say)
        finally:
            self._one.release()

    def _activate(self, before: Policy, sources: Sources, *, dry_run: bool, say: Say) -> dict[str, Any]:
        built = self._plane.build(sources)
        say(f"checked: revision {built.revision}")
        result: dict[str, Any] = {
            "status": "unchanged", "revision": {"old": before.revision, "new": built.revision},
            "digest": built.sha256, "appear": [], "vanish": [],
        }  # fmt: skip
        if built.revision == before.revision:
            return result
        say(f"tested: {self._plane.test(sources)} tests of the project are green")
        with self._started(self._plane.engine(built)) as started:
            policy = self._plane.rehearse(started, self._tools)
            say("rehearsed: a second OPA answers, the listing is computed")
            result |= _difference(before.listing, policy.listing)
            if dry_run:
                return result | {"status": "would_activate"}
            self._switch(before, policy)
        say(f"in force: {policy.revision}; stopping the OPA of {before.revision}")
        self._drop(before)
        return result | {"status": "activated"}

    @contextlib.contextmanager
    def _started(self, policy: Policy) -> Iterator[Policy]:
        """A running engine; stopped again unless its policy came in force, or may have."""
        self._live[policy.revision] = policy
        try:
            self._services.start(policy.service)
            yield policy
        finally:
            active = self._plane.active
            if policy.revision in self._live and (active is None or active.revision != policy.revision):
                self._drop(policy)

    def _switch(self, before: Policy, policy: Policy) -> None:
        # From here on a gateway that ends is started again with the new one: both engines are up.
        self._plane.active = self._live[policy.revision] = policy
        place = policy.place()
        request = {
            "socket_path": place["socket"], "token_file": place["token_file"],
            "revision": place["revision"], "digest": place["digest"], "listing_file": place["listing"],
            "operator": _operator(),
        }  # fmt: skip
        try:
            self._gateway.call("ActivatePolicy", request)
        except MeshError:
            # The answer may be what was lost. A gateway that stays away keeps both engines.
            if self._revision() != policy.revision:
                self._plane.active = before
                raise

    @contextlib.contextmanager
    def _told(self, before: Policy) -> Iterator[None]:
        """Says of every failure what is in force after it."""
        try:
            yield
        except MeshError as error:
            if self._plane.active is before:
                error.what += f"; nothing was changed, policy {before.revision} stays in force"
            raise

    def _in_force(self) -> Policy:
        """The policy that the gateway uses; engines of others, left when it gave no answer, are stopped."""
        active, revision = self._plane.active, self._revision()
        if active is None:
            raise RuntimeError("an activation before the start was over")
        found = self._live.setdefault(active.revision, active)
        if revision != active.revision:
            found = self._live.get(revision, active)
            self._plane.active = found
        for other in [policy for policy in self._live.values() if policy.revision != found.revision]:
            self._drop(other)
        return found

    def _revision(self) -> str:
        give_up_at = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                return str(self._gateway.call("Status", {})["policy_revision"])
            except DependencyUnavailable as error:
                if time.monotonic() > give_up_at:
                    raise DependencyUnavailable(
                        "the gateway does not say which policy is in force",
                        why=f"{error.what}\n{error.why}",
                        next_step="meshgate ps, then meshgate policy activate again",
                    ) from error
            time.sleep(POLL_SECONDS)

    def _drop(self, policy: Policy) -> None:
        self._live.pop(policy.revision, None)
        self._services.retire(policy.service)
        self._plane.discard(policy)


def _difference(old: Listing, new: Listing) -> dict[str, list[dict[str, str]]]:
    before = {(app, tool) for app, tools in old.items() for tool in tools}
    after = {(app, tool) for app, tools in new.items() for tool in tools}
    return {
        "appear": [{"app": app, "tool": tool} for app, tool in sorted(after - before)],
        "vanish": [{"app": app, "tool": tool} for app, tool in sorted(before - after)],
    }


def _operator() -> str:
    """Name and uid for the record; the control socket admits this process's user only."""
    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name}:{uid}"
    except KeyError:
        return str(uid)
