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

# Of a crew whose agents are apps. The call is the delegation, but for the tool's in `during_tool`.
SPLIT_PHASES = (
    "before_delegation",
    "after_delegation",
    "during_reply",
    "during_tool",
    "while_pending",
    "after_answer",
    "during_replay",
)
EVERY_PHASE = tuple(dict.fromkeys((*PHASES, *SPLIT_PHASES)))

# Victims of one app's own, and those that every app shares.
OWN = ("child", "launcher", "agent-daprd")
SHARED = ("gateway", "opa", "toolhost", "gateway-daprd", "host-daprd")
CONTROL = ("scheduler", "placement", "sentry")
STORE = ("postgresql",)
# Of a split crew: the app that kicks it off, the agent that has the task, and what both share.
CREW = ("crew-child", "crew-worker", "crew-daprd")
AGENT = ("agent-child", "agent-worker", "split-daprd")
SPLIT_SHARED = ("split-gateway", "split-toolhost")
SPLIT = (*CREW, *AGENT, *SPLIT_SHARED)
VICTIMS = (*OWN, *SHARED, *CONTROL, *STORE)
SPLIT_STOPPED = ("crew-worker", "agent-worker", "crew-daprd", "split-daprd")
STOPPED = ("launcher", "gateway", "agent-daprd", "gateway-daprd", "host-daprd")

SQLITE, POSTGRESQL = STORES = ("sqlite", "postgresql")
NEEDS_POSTGRESQL = "the mesh of this report keeps its store in SQLite"
IDLE_IN_REPLAY = (
    "a replay is answered from what the launcher read from the gateway: nothing of it lies with this process"
)
NO_PROGRAM = "an agent's program runs from the begin of its task to its answer"
HOLDS_IT = "that process is stopped to hold this phase, and goes on when the phase is over"
NO_TOOL = "a delegation needs no tool host; the tool's own phases are those of the other crews"


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A victim, what it gets, and the phase of a call in which it gets it."""

    victim: str
    signal: str
    phase: str

    @property
    def shared(self) -> bool:
        """Whether the kill is felt by every app."""
        return self.victim not in (*OWN, *CREW, *AGENT)

    @property
    def split(self) -> bool:
        """Whether it is of a crew whose agents are apps."""
        return self.victim in SPLIT

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
    for victim in SPLIT:
        for phase in SPLIT_PHASES:
            yield Pair(victim, "KILL", phase)
    for victim in SPLIT_STOPPED:
        for phase in SPLIT_PHASES:
            yield Pair(victim, "STOP", phase)


def impossible(pair: Pair, *, store: str = POSTGRESQL) -> str:
    """Why a pair cannot exist on a store; empty when it does."""
    if pair.victim in STORE and store != POSTGRESQL:
        return NEEDS_POSTGRESQL
    if pair.split:
        return _impossible_split(pair)
    takes_part = (*OWN, "gateway", *STORE)
    if pair.phase == "during_replay" and pair.victim not in takes_part:
        return IDLE_IN_REPLAY
    return ""


def _impossible_split(pair: Pair) -> str:
    held_by = {"after_delegation": "agent-worker", "after_answer": "crew-worker"}
    if pair.signal == "STOP" and held_by.get(pair.phase) == pair.victim:
        return HOLDS_IT
    if pair.victim == "agent-child":
        absent = pair.phase in ("before_delegation", "after_delegation", "after_answer")
        return NO_PROGRAM if absent else ""
    return NO_TOOL if pair.victim == "split-toolhost" and pair.phase != "during_tool" else ""


def possible(*, store: str = POSTGRESQL) -> list[Pair]:
    """The pairs of the full set, on a store."""
    return [pair for pair in every_pair() if not impossible(pair, store=store)]


def quick() -> list[Pair]:
    """Those that leave the control plane alone once each, each part of it once, some of a split crew.

    A stopped sidecar is one victim here: the three take turns by phase.
    """
    turns = dict(zip(PHASES, ("gateway-daprd", "host-daprd", "agent-daprd") * 2, strict=True))
    chosen = [
        pair
        for pair in possible(store=SQLITE)
        if pair.victim not in CONTROL
        and not pair.split
        and not (pair.signal == "STOP" and pair.victim.endswith("daprd") and turns[pair.phase] != pair.victim)
    ]
    control = zip(CONTROL, ("before_decision", "after_decision", "during_tool"), strict=True)
    return [*chosen, *(Pair(victim, "KILL", phase) for victim, phase in control), *quick_split()]


def quick_split() -> list[Pair]:
    """A handful of a split crew: each victim, and each phase; two are stopped."""
    chosen = (
        ("crew-child", "while_pending"),
        ("crew-worker", "after_answer"),
        ("crew-daprd", "after_delegation"),
        ("agent-child", "during_tool"),
        ("agent-worker", "during_reply"),
        ("split-daprd", "before_delegation"),
        ("split-gateway", "while_pending"),
        ("split-toolhost", "during_tool"),
        ("crew-child", "during_replay"),
    )
    stopped = (("agent-worker", "during_tool"), ("crew-daprd", "while_pending"))
    return [
        *(Pair(victim, "KILL", phase) for victim, phase in chosen),
        *(Pair(victim, "STOP", phase) for victim, phase in stopped),
    ]


def quick_postgresql() -> list[Pair]:
    """The server of the store in every phase, on a mesh that has one."""
    return [pair for pair in possible() if pair.victim in STORE]


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """In an order of the seed's, so that one part of the mesh is not killed again and again."""
    mixed = list(pairs)
    random.Random(seed).shuffle(mixed)
    return mixed
