"""Who asked whom: the callers above a run, as the store keeps them with it. Pure.

A run that a delegation started has the list from the moment it is made, built from its caller's own run.
No request can name it, and nothing changes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway import narrowing
from meshgate_gateway.model import Caller, Run

MAX_DEPTH = 8  # callers above a run; real crews need two, and each holds a process


@dataclass(frozen=True, slots=True)
class Link:
    """A caller, and the run in which it asked."""

    app: str
    spiffe_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Above:
    """What stands above the calls of a run.

    Attributes:
        links: its callers, the outermost first; empty for a run that nobody delegated.
        narrows: what each of them that narrowed allows, in the same order.
    """

    links: tuple[Link, ...] = ()
    narrows: tuple[Mapping[str, object], ...] = ()


def above(run: Run | None) -> Above:
    """What stands above the calls of this run; outside of a run nothing does."""
    if run is None:
        return Above()
    return Above(read(run.chain), narrowing.read(run.narrow))


def read(text: str) -> tuple[Link, ...]:
    """The callers, as a run keeps them."""
    return tuple(Link(**link) for link in json.loads(text)) if text else ()


def written(links: Sequence[Link]) -> str:
    """As a run keeps them."""
    return json.dumps([asdict(link) for link in links], separators=(",", ":"))


def below(caller: Caller, run: Run) -> tuple[Link, ...]:
    """The callers above a run that this caller starts out of its own one."""
    return (*read(run.chain), Link(caller.app, caller.spiffe_id, run.run_id))


def refusal(links: Sequence[Link], caller: Caller, host: str) -> str:
    """Why the caller, below these, may not delegate to that app; empty when it may."""
    called = spiffe_id(caller, host)
    if called == caller.spiffe_id or any(link.spiffe_id == called for link in links):
        return "delegation_cycle"
    return "delegation_too_deep" if len(links) >= MAX_DEPTH else ""


def spiffe_id(caller: Caller, host: str) -> str:
    """Of an app of the caller's own mesh."""
    return f"spiffe://{caller.trust_domain}/ns/{caller.namespace}/{host}"


def parent_run(run: Run) -> str:
    """The run that delegated this one; empty when none did."""
    links = read(run.chain)
    return links[-1].run_id if links else ""


def shown(links: Sequence[Link]) -> list[dict[str, str]]:
    """As a rule and a record see them."""
    return [_shown(link) for link in links]


def _shown(link: Link) -> dict[str, str]:
    peer = SpiffeId.parse(link.spiffe_id)
    return {
        "spiffe_id": link.spiffe_id,
        "trust_domain": peer.trust_domain,
        "namespace": peer.namespace,
        "app": link.app,
        "run_id": link.run_id,
    }
