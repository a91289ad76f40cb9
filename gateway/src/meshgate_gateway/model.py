"""The typed values that cross the rooms; no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an app of the catalogue is."""

    CREW = "crew"
    PROGRAM = "program"
    AGENT = "agent"
    TOOLHOST = "toolhost"
    GATEWAY = "gateway"
    OPERATOR = "operator"


RUNNERS = frozenset({Kind.CREW, Kind.PROGRAM, Kind.AGENT})  # what has runs


class ToolKind(StrEnum):
    """What a call of a catalogue entry starts."""

    TOOL = "tool"
    DELEGATE = "delegate"


class State(StrEnum):
    """States of the ledger. `reserved` has certainly not begun, `sent` may have begun."""

    RESERVED = "reserved"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class ResultKind(StrEnum):
    """How the bytes of a result are to be read."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Presented:
    """What a connection shows of its peer, before anything is believed."""

    chain_pem: bytes
    tls_version: str | None
    address: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the verified SPIFFE ID and what the catalogue says of it."""

    spiffe_id: str
    trust_domain: str
    namespace: str
    app: str
    kind: Kind | None
    serial_hex: str
    leaf_sha256: str
    address: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One entry of the frozen catalogue.

    Attributes:
        in_agent: its host is an agent's own app, whose process runs it; no tool host does.
    """

    id: str
    host: str
    kind: ToolKind
    description: str
    schema: Mapping[str, object]
    effect: str
    idempotent: bool
    repeat: str
    deadline_seconds: float
    definition_sha256: str
    reconcile: bool = False
    in_agent: bool = False

    @property
    def repeatable(self) -> bool:
        """True when running it twice under one key is harmless."""
        return self.idempotent or self.effect == "read"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """`CallTool` as it came in: types checked, nothing believed."""

    run_id: str
    attempt: int
    step_key: str
    tool: str
    arguments_json: bytes
    deadline_ms: int
    untrusted: Mapping[str, str]
    scope: str = ""
    turn: int = 0
    task: str = ""
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What is asked, after strict parsing: these bytes are decided on, recorded and executed."""

    call_id: str
    tool: Tool
    arguments: bytes
    arguments_sha256: str
    run_id: str
    attempt: int
    step_key: str
    deadline_ms: int
    untrusted: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What policy sees of the run a call belongs to."""

    id: str
    attempt: int
    origin: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Where clear text lies, and what commits to it: HMAC-SHA-256(salt, bytes)."""

    payload_id: str
    commitment: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of the ledger: a call and how far its effect has come.

    Attributes:
        likeness: equal for equal calls of one task of a run; empty outside of a task.
        repeats: id of the first such call, when this one is not it.
        task: digest of that task.
        copied_from: id of another run's call whose answer this is; it was never executed here.
        busy_until_ms: until then a process that was told to run it may be at work on it.
        asked_ms: when a host last took it as a question what came of it; of one that may begin it, a time
            at which nobody else can be at it.
        asks: how often the sweeper has put that question.
        next_ask_ms: when it puts it next; 0 for a call about which there is none.
        place: among the steps of its run, from 1; 0 outside of a run.
    """

    call_id: str
    caller: str
    run_id: str
    attempt: int
    step_key: str
    tool: str
    host: str
    effect: str
    idempotent: bool
    definition_sha256: str
    state: State
    decision_id: str
    reasons: tuple[str, ...]
    detail: str
    arguments: Sealed
    deadline_ms: int
    gateway: str
    created_ms: int
    updated_ms: int
    take: int = 0
    host_instance: str = ""
    deadline_at_ms: int = 0
    result: Sealed | None = None
    result_kind: str = ""
    error_class: str = ""
    scope: str = ""
    turn: int = 0
    likeness: str = ""
    repeats: str = ""
    task: str = ""
    copied_from: str = ""
    busy_until_ms: int = 0
    asked_ms: int = 0
    asks: int = 0
    next_ask_ms: int = 0
    place: int = 0

    @property
    def repeatable(self) -> bool:
        """True when running it twice under one key is harmless."""
        return self.idempotent or self.effect == "read"

    @property
    def in_agent(self) -> bool:
        """True for a tool that its caller runs itself: no tool host is ever a caller."""
        return bool(self.host) and self.caller.rpartition("/")[2] == self.host and not self.delegates

    @property
    def delegates(self) -> bool:
        """True for a task that is given to another agent's app: a run of that app is what it starts."""
        return bool(self.host) and self.tool == f"agent:{self.host}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What execution gave. `data` is the result's bytes, or the failure's one-line message.

    Attributes:
        reconciled: its host looked at the service that the tool acts on, and did not run the tool.
    """

    state: State
    data: bytes
    result_kind: str = ""
    error_class: str = ""
    reconciled: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What `CallTool` tells its caller.

    Attributes:
        arguments: what the caller is to run the tool with itself; empty for every other tool.
        take: of that permit.
    """

    call_id: str
    state: State
    decision_id: str
    reasons: tuple[str, ...] = ()
    result_kind: str = ""
    result: bytes = b""
    error_class: str = ""
    message: str = ""
    arguments: bytes = b""
    take: int = 0


ORIGINS = ("start", "fork", "rerun")


@dataclass(frozen=True, slots=True)
class Run:
    """One durable execution of a program; the store is the truth about it.

    Attributes:
        trusted_from: steps of older attempts do not count when a divergence is looked for,
            because a person said so.
        origin: one of ORIGINS; of a delegated run its caller's run's.
        origin_run: the run that it came from; empty for one that was started or delegated.
        origin_step: so many steps of that run were copied.
        purged_ms: when its clear text was deleted; 0 while it is there.
        launcher: which process the current attempt is of; empty once that attempt has ended.
        recorded_steps: model replies and calls so far, of all attempts.
        recorded_bytes: clear text of these steps.
        driven: the worker of its app plays it; else a launcher that somebody started.
        crashes: attempts that ended in a crash, or because the gateway stayed away.
        lost: attempts in a row that nobody ended and that brought no new step: their worker died.
        begun_steps: `recorded_steps` when the current attempt began.
        result: what it gave, one JSON value, where its program tells.
        purging: its clear text is being deleted.
        parent_call: the delegation that started it, which ends with it; empty for any other run.
        chain: the callers above it, as `chains` writes them.
        narrow: what they allow below them, as `narrowing` writes it.
        caller: SPIFFE ID of the app that delegated it, the last of `chain`; empty for any other run.
        delegated: so many delegations were made below it, also by the runs that these started; of a run
            that nobody delegated, any other's is 0.
        recalling: not all that it had asked for below has been cancelled with it yet.
    """

    run_id: str
    app: str
    state: str
    attempt: int
    launcher: str
    created_ms: int
    updated_ms: int
    heartbeat_ms: int
    steps: int
    detail: str
    trusted_from: int = 0
    origin: str = "start"
    origin_run: str = ""
    origin_step: int = 0
    purged_ms: int = 0
    recorded_steps: int = 0
    recorded_bytes: int = 0
    driven: bool = False
    crashes: int = 0
    lost: int = 0
    begun_steps: int = 0
    purging: bool = False
    parent_call: str = ""
    chain: str = ""
    narrow: str = ""
    caller: str = ""
    delegated: int = 0
    recalling: bool = False
    input: Sealed | None = None
    traceback: Sealed | None = None
    result: Sealed | None = None

    @property
    def ended(self) -> bool:
        """True when nothing may act in it any more."""
        return self.state in ("completed", "failed", "cancelled")

    @property
    def progress(self) -> int:
        """Finished steps as people see them: its last attempt may have ended before it could tell."""
        return max(self.steps, self.recorded_steps)


@dataclass(frozen=True, slots=True)
class Step:
    """Where in a run something happened: a deterministic key, and its scope and turn."""

    key: str
    scope: str
    turn: int
    kind: str


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One model step: the reply that a later attempt is answered with.

    Attributes:
        attempt: 0 and below for a copy of another run's step; below 0 it does not count when a
            divergence is looked for.
        place: among the steps of its run, from 1.
    """

    run_id: str
    step_key: str
    scope: str
    turn: int
    attempt: int
    created_ms: int
    milliseconds: int
    place: int
    request: Sealed
    reply: Sealed


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One log entry: a kind and fields that hold no clear text."""

    kind: str
    body: Mapping[str, object]
