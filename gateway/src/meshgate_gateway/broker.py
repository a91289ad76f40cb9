"""The order of the rooms. Only `handle` knows it."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from meshgate_identities.spiffe_id import SpiffeId
from meshgate_policies.errors import PolicyUnavailable

from meshgate_gateway import calls, ledger, runs
from meshgate_gateway.calls import RunRef, ToolCall
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.decide import Allow, Decision, decide, listed, policy_input
from meshgate_gateway.errors import Conflict, Malformed, NotFound, Refused, Unavailable
from meshgate_gateway.execute import Executor
from meshgate_gateway.ledger import LedgerRow, Opening
from meshgate_gateway.outcomes import Outcomes
from meshgate_gateway.payloads import Payloads
from meshgate_gateway.record import Entry, Recorder
from meshgate_gateway.store import Store, Transaction

MAX_WAIT_SECONDS = 2.0  # then PENDING: a handler's thread is not the caller's to hold
RESERVED_SECONDS = 60.0  # a step's default deadline; then a call never taken has failed


class PolicyEngine(Protocol):
    """Evaluates the decision. Thread-safe; bounded in time; raises PolicyUnavailable, never guesses."""

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw answer."""


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """The engine in force and what it was started on."""

    engine: PolicyEngine
    revision: str
    sha256: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A CallTool message, read off the wire."""

    run_id: str
    attempt: int
    step_key: str
    tool: str
    arguments: bytes
    untrusted: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets: a ledger state, or `pending`, and the result's clear text."""

    call_id: str
    state: str
    decision_id: str = ""
    reasons: tuple[str, ...] = ()
    result_kind: str = ""
    result: bytes = b""
    error_class: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Books:
    """Where everything durable goes."""

    store: Store
    recorder: Recorder
    payloads: Payloads
    clock: Callable[[], datetime]

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return int(self.clock().timestamp() * 1000)

    def refuse(self, caller: str, tool: str, call_id: str, error: Refused) -> None:
        """Records one refused request.

        Raises:
            Unavailable: it could not be recorded.
        """
        fields = {"reason": error.reason, "detail": error.detail[:500]}
        entry = Entry("refusal", caller, tool[:256], call_id[:64], fields)
        self.store.transact(lambda tx: self.recorder.append(tx, entry))


class Broker:
    """Decides, records, executes, records."""

    def __init__(
        self, *, books: Books, catalogue: Catalogue, policy: ActivePolicy, executor: Executor,
        outcomes: Outcomes, waiters: int,
    ) -> None:  # fmt: skip
        self._books = books
        self._catalogue = catalogue
        self.policy = policy
        self._executor = executor
        self._outcomes = outcomes
        self._waiters = threading.BoundedSemaphore(waiters)

    def handle(self, caller: SpiffeId, request: CallRequest) -> Answer:
        """One brokered call.

        1. (authenticate: done by the server, which gives `caller`)
        2. read the arguments strictly; what cannot be read is recorded and refused
        3. a call id that is known is answered or joined, never decided twice
        4. decide, on the canonical bytes
        5. record the decision and the ledger row in one durable transaction
        6. execute the permit
        7. wait a little for the outcome, which TakeCall and FinishCall record

        Raises:
            Refused: recorded; nothing ran.
            Unavailable: no verdict, nothing ran, or the outcome is not known yet; ask again.
        """
        call_id = calls.call_id(str(caller), request.run_id, request.step_key)
        try:
            call = self._read(caller, call_id, request)
            row = self._books.store.read(lambda tx: self._existing(tx, call))
            if row is None:
                row = self._decide_and_record(caller, call)
        except Refused as error:
            self._books.refuse(str(caller), request.tool, call_id, error)
            if isinstance(error, Malformed | NotFound) and error.reason in (
                "arguments_invalid",
                "tool_unknown",
            ):
                return Answer(call_id, "denied", reasons=(error.reason,), message=error.detail)
            raise
        if row.state in ("reserved", "sent"):
            self._executor.drive_again(row)
            row = self._wait(row)
        return self._answer(row)

    def list_tools(self, caller: SpiffeId) -> list[str]:
        """The ids of tools that the caller may call with some arguments.

        Raises:
            Unavailable: the engine gave no answer.
        """
        shown = []
        for tool in self._catalogue.tools.values():
            call = ToolCall("", str(caller), None, "", tool, b"{}", {}, "")
            if listed(self._ask(call, caller)):
                shown.append(tool.id)
        return shown

    def _read(self, caller: SpiffeId, call_id: str, request: CallRequest) -> ToolCall:
        if not request.step_key or len(request.step_key) > 128:  # noqa: PLR2004 - a hex digest is 64
            raise Malformed("step_key_invalid", "a step key has 1 to 128 characters")
        if not request.run_id and self._catalogue.apps.get(caller.app) != "program":
            raise Refused("run_required", "only a program may call outside a run")
        tool = calls.find_tool(self._catalogue, request.tool)
        arguments, args = calls.read_arguments(tool, request.arguments)
        return ToolCall(
            call_id=call_id,
            caller=str(caller),
            run=RunRef(request.run_id, request.attempt) if request.run_id else None,
            step_key=request.step_key,
            tool=tool,
            arguments=arguments,
            args=args,
            args_sha256=hashlib.sha256(arguments).hexdigest(),
            untrusted=request.untrusted,
        )

    def _existing(self, tx: Transaction, call: ToolCall) -> LedgerRow | None:
        if call.run:
            runs.check_attempt(tx, call.caller, call.run.id, call.run.attempt)
        row = ledger.find(tx, call.call_id)
        if row and (row.caller, row.tool, row.args_sha256) != (call.caller, call.tool.id, call.args_sha256):
            raise Conflict("call_id_taken", "the step key was used for another call")
        return row

    def _ask(self, call: ToolCall, caller: SpiffeId) -> object:
        now = self._books.clock().astimezone(UTC).isoformat(timespec="milliseconds")
        try:
            return self.policy.engine.evaluate(policy_input(call, caller, now))
        except PolicyUnavailable as error:
            raise Unavailable("policy_unavailable", str(error)) from error

    def _decide_and_record(self, caller: SpiffeId, call: ToolCall) -> LedgerRow:
        policy = self.policy
        decision = decide(call, self._ask(call, caller), policy.revision)
        row, is_new = self._books.store.transact(lambda tx: self._write(tx, call, decision, policy))
        if is_new and isinstance(decision, Allow):
            self._executor.execute(decision.permit)
        return row

    def _write(
        self, tx: Transaction, call: ToolCall, decision: Decision, policy: ActivePolicy
    ) -> tuple[LedgerRow, bool]:
        raced = self._existing(tx, call)  # the fence and the id again, now inside the write
        if raced is not None:
            return raced, False
        now_ms = self._books.now_ms()
        allowed = isinstance(decision, Allow)
        reasons = () if isinstance(decision, Allow) else decision.reasons
        commitment = self._books.payloads.put(tx, call.arguments)
        opening = Opening(
            state="reserved" if allowed else "denied",
            decision_id=decision.decision_id,
            policy_revision=policy.revision,
            reasons=reasons,
            args_payload=commitment.payload_id,
            deadline_ms=now_ms + int(RESERVED_SECONDS * 1000),
            created_ms=now_ms,
        )
        ledger.open_call(tx, call, opening)
        fields = {
            "decision_id": decision.decision_id,
            "verdict": "allow" if allowed else "deny",
            "reasons": list(reasons),
            "run_id": call.run.id if call.run else "",
            "attempt": call.run.attempt if call.run else 0,
            "step_key": call.step_key,
            "effect": call.tool.effect,
            "host": call.tool.host,
            "definition_sha256": call.tool.definition_sha256,
            "args_commitment": commitment.hmac_sha256,
            "args_payload": commitment.payload_id,
            "policy_revision": policy.revision,
            "policy_sha256": policy.sha256,
            "untrusted": {k[:64]: v[:256] for k, v in call.untrusted.items()},
        }
        self._books.recorder.append(tx, Entry("decision", call.caller, call.tool.id, call.call_id, fields))
        row = ledger.find(tx, call.call_id)
        if row is None:
            raise RuntimeError("the row just written is not there")
        return row, True

    def _wait(self, row: LedgerRow) -> LedgerRow:
        """Waits for a settled state, at most MAX_WAIT_SECONDS, and only with a free waiter's place."""
        if not self._waiters.acquire(blocking=False):
            return row
        try:
            end = time.monotonic() + MAX_WAIT_SECONDS
            while True:
                seen = self._outcomes.version()
                current = self._books.store.read(lambda tx: ledger.find(tx, row.call_id))
                left = end - time.monotonic()
                if current is None or current.state in ledger.SETTLED or left <= 0:
                    return current or row
                self._outcomes.wait(seen, left)
        finally:
            self._waiters.release()

    def _answer(self, row: LedgerRow) -> Answer:
        if row.state not in ledger.SETTLED:
            return Answer(row.call_id, "pending", row.decision_id)
        result = b""
        if row.result_payload:
            result = self._books.store.read(lambda tx: self._books.payloads.get(tx, row.result_payload))
        self._executor.forget(row.call_id)
        return Answer(
            row.call_id, row.state, row.decision_id, row.reason_ids, row.result_kind, result,
            row.error_class, row.message,
        )  # fmt: skip
