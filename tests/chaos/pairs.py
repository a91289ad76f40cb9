"""Who is killed, how, and when: the pairs that exist, and why the others do not."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PHASES = (
    "before_decision",
    "after_decision",
    "during_tool",
    "after_tool",
    "during_reply",
    "during_replay",
)

# Victims of one app's own, and those that every app shares.
OWN = ("child", "launcher", "agent-daprd")
SHARED = ("gateway", "opa", "toolhost", "gateway-daprd", "host-daprd")
CONTROL = ("scheduler", "placement", "sentry")
STORE = ("postgresql",)
VICTIMS = (*OWN, *SHARED, *CONTROL, *STORE)
STOPPED = ("launcher", "gateway", "agent-daprd", "gateway-daprd", "host-daprd")

SQLITE, POSTGRESQL = STORES = ("sqlite", "postgresql")
NEEDS_POSTGRESQL = "the mesh of this report keeps its store in SQLite"
IDLE_IN_REPLAY = (
    "a replay is answered from what the launcher read from the gateway: nothing of it lies with this process"
)


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A victim, what it gets, and the phase of a call in which it gets it."""

    victim: str
    signal: str
    phase: str

    @property
    def shared(self) -> bool:
        """Whether the kill is felt by every app."""
        return self.victim not in OWN

    @property
    def label(self) -> str:
        """The victim's name in the report."""
        return self.victim if self.signal == "KILL" else f"{self.victim} (stopped)"


def every_pair() -> Iterator[Pair]:
    """All that the proof asks for, whether they exist or not."""
    for victim in VICTIMS:
        for phase in PHASES:
            yield Pair(victim, "KILL", phase)
    for victim in STOPPED:
        for phase in PHASES:
            yield Pair(victim, "STOP", phase)


def impossible(pair: Pair, *, store: str = POSTGRESQL) -> str:
    """Why a pair cannot exist on a store; empty when it does."""
    if pair.victim in STORE and store != POSTGRESQL:
        return NEEDS_POSTGRESQL
    takes_part = (*OWN, "gateway", *STORE)
    if pair.phase == "during_replay" and pair.victim not in takes_part:
        return IDLE_IN_REPLAY
    return ""


def possible(*, store: str = POSTGRESQL) -> list[Pair]:
    """The pairs of the full set, on a store."""
    return [pair for pair in every_pair() if not impossible(pair, store=store)]


def quick() -> list[Pair]:
    """Those that leave the control plane alone once each, and each part of it once.

    A stopped sidecar is one victim here: the three take turns by phase.
    """
    turns = dict(zip(PHASES, ("gateway-daprd", "host-daprd", "agent-daprd") * 2, strict=True))
    chosen = [
        pair
        for pair in possible(store=SQLITE)
        if pair.victim not in CONTROL
        and not (pair.signal == "STOP" and pair.victim.endswith("daprd") and turns[pair.phase] != pair.victim)
    ]
    control = zip(CONTROL, ("before_decision", "after_decision", "during_tool"), strict=True)
    return [*chosen, *(Pair(victim, "KILL", phase) for victim, phase in control)]


def quick_postgresql() -> list[Pair]:
    """The server of the store in every phase, on a mesh that has one."""
    return [pair for pair in possible() if pair.victim in STORE]


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """In an order of the seed's, so that one part of the mesh is not killed again and again."""
    mixed = list(pairs)
    random.Random(seed).shuffle(mixed)
    return mixed
