"""One delivery of a call id: take, run, write down, finish.

A delivery is only a hint. What counts is the gateway's answer to TakeCall; so a forged, repeated
or stale delivery has no effect here.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from meshgate_toolhost import definitions, reconcile, results
from meshgate_toolhost.delivery import Delivery
from meshgate_toolhost.errors import CallRefused, GatewayUnavailable, LedgerUnavailable
from meshgate_toolhost.execution import Execution, Job, parse_arguments
from meshgate_toolhost.finished import FinishedLedger
from meshgate_toolhost.gateway import Gateway
from meshgate_toolhost.model import Failure, Finished, LoadedTool, Outcome, Result, TakenCall

TAKE_PATIENCE_SECONDS = 20.0  # a gateway that restarts is back within; else Dapr delivers again
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
TAKEN_BY_US = "call_taken"  # the gateway's reason for a second take by one and the same process

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one tool in this host.

    Attributes:
        deadline_seconds: None: the gateway's deadline alone.
    """

    deadline_seconds: float | None = None
    max_result_bytes: int = results.MAX_RESULT_BYTES


@dataclass(frozen=True, slots=True)
class _Served:
    tool: LoadedTool
    digest: str
    limits: Limits


class Invoker:
    """Serves deliveries; every method may be called from any thread."""

    def __init__(  # noqa: PLR0913 - one place composes the host
        self,
        *,
        tools: Mapping[str, LoadedTool],
        limits: Mapping[str, Limits],
        gateway: Gateway,
        finished: FinishedLedger,
        delivery: Delivery,
        instance: str,
        withheld: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tools = {
            tool_id: _Served(tool, definitions.digest(tool), limits.get(tool_id, Limits()))
            for tool_id, tool in tools.items()
        }
        self._gateway = gateway
        self._finished = finished
        self._delivery = delivery
        self._instance = instance
        self._withheld = withheld
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way: dict[str, threading.Event] = {}
        self._abandoned: dict[str, Execution] = {}  # bodies that went on past their deadline
        self._stop = threading.Event()

    def close(self) -> None:
        """Lets waiting takes give up."""
        self._stop.set()

    def invoke(self, call_id: str) -> None:
        """Serves one delivery. A second one of a call under way waits for the first.

        Raises:
            GatewayUnavailable: no verdict on the call; nothing ran.
            LedgerUnavailable: nothing ran.
        """
        with self._lock:
            other = self._under_way.get(call_id)
            if other is None:
                mine = self._under_way[call_id] = threading.Event()
        if other is not None:
            other.wait()
            return
        try:
            self._serve(call_id)
        finally:
            with self._lock:
                del self._under_way[call_id]
            mine.set()

    def _serve(self, call_id: str) -> None:
        if self._goes_on(call_id):
            return
        self._finished.check()
        known = self._finished.get(call_id)
        own = known.outcome if known is not None else None
        if known is not None and own is not None and self._delivery.deliver(known) and not _doubtful(own):
            return
        # Asked even when the call is known to be over: it is the gateway that records a replay.
        try:
            call = self._take(call_id, fresh=known is None)
        except CallRefused as error:
            _log.warning("call.refused", extra={"call_id": call_id, "reason": error.reason})
            return
        if call.ambiguous:
            self._reconcile(call, known)
        elif known is not None:
            self._settle(call, self._known_outcome(known))
        else:
            self._run_and_settle(call)

    def _goes_on(self, call_id: str) -> bool:
        """Whether the body is under way past its deadline: what it gives in the end settles the call."""
        body = self._abandoned.get(call_id)
        if body is not None and not body.running:
            self._abandoned.pop(call_id, None)
        return body is not None and body.running

    def _run_and_settle(self, call: TakenCall) -> None:
        outcome = self._run(call)
        if _doubtful(outcome) and self._goes_on(call.call_id):
            found = self._ask(call)  # nothing but a result is believed
            if isinstance(found, Result):
                self._told(call, found)
                return
        self._settle(call, outcome)

    def _reconcile(self, call: TakenCall, known: Finished | None) -> None:
        """An earlier take may have begun: first what we wrote down ourselves, then what `reconcile` says."""
        own = known.outcome if known is not None else None
        if own is not None and not _doubtful(own):
            self._settle(call, own)
            return
        found = self._ask(call)
        if found is not None:
            self._told(call, found)
        elif call.may_begin and known is None and call.deadline_unix_ms / 1000 > self._clock():
            self._run_and_settle(replace(call, taken_before=False))
        else:
            self._told(call, Failure("not_begun", "it had not begun, and may not begin any more"))

    def _ask(self, call: TakenCall) -> Outcome | None:
        """What the tool's `reconcile` says; None: it has not begun, and will not by itself."""
        served = self._tools.get(call.tool)
        if served is None:
            return reconcile.UNKNOWN
        try:
            arguments = parse_arguments(call.arguments_json)
        except ValueError:
            return reconcile.UNKNOWN
        return reconcile.ask(
            Job(call, served.tool, arguments, served.limits.max_result_bytes, self._withheld)
        )

    def _told(self, call: TakenCall, found: Outcome) -> None:
        self._delivery.deliver_or_keep(
            Finished(call.call_id, call.take, self._instance, found, reconciled=True)
        )

    def _take(self, call_id: str, *, fresh: bool) -> TakenCall:
        pause = FIRST_PAUSE_SECONDS
        unanswered = False
        give_up = time.monotonic() + TAKE_PATIENCE_SECONDS
        while True:
            try:
                return self._gateway.take(call_id, self._instance)
            except CallRefused as error:
                if unanswered and fresh and error.reason == TAKEN_BY_US:
                    self._never_started(call_id)
                raise
            except GatewayUnavailable:
                unanswered = True
                if time.monotonic() + pause > give_up or self._stop.wait(pause):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _never_started(self, call_id: str) -> None:
        """Our own take went through and its answer was lost: we know that nothing began.

        A call that may not be repeated is taken once, so this was take 1.
        """
        failure = Failure("never_started", "the connection was lost before the tool began")
        finished = Finished(call_id, 1, self._instance, failure)
        self._finished.record(finished)
        self._delivery.deliver_or_keep(finished)

    def _known_outcome(self, known: Finished) -> Outcome:
        """It ran here before; never again, whatever the gateway has forgotten."""
        if known.outcome is not None:
            return known.outcome
        return Failure(
            "already_finished", "this call ran before; its result is no longer here", ambiguous=True
        )

    def _run(self, call: TakenCall) -> Outcome:
        job = self._verified(call)
        if isinstance(job, Failure):
            return job
        served = self._tools[call.tool]
        seconds = call.deadline_unix_ms / 1000 - self._clock()
        if served.limits.deadline_seconds is not None:
            seconds = min(seconds, served.limits.deadline_seconds)
        if seconds <= 0:
            return Failure("timeout", "its deadline had passed before it began")
        execution = Execution(job, on_late=lambda outcome: self._late(call, outcome))
        execution.start()
        outcome = execution.wait(seconds)
        if outcome is not None:
            return outcome
        if served.tool.reconcile is not None:
            self._abandoned[call.call_id] = execution
        _log.warning("tool.timeout", extra={"call_id": call.call_id, "tool": call.tool})
        return Failure("timeout", "no answer before its deadline", ambiguous=call.effect != "read")

    def _late(self, call: TakenCall, outcome: Outcome) -> None:
        self._settle(call, outcome)
        self._abandoned.pop(call.call_id, None)

    def _verified(self, call: TakenCall) -> Job | Failure:
        """Nothing runs that is not exactly what was decided on."""
        served = self._tools.get(call.tool)
        if served is None:
            return Failure("tool_missing", "its tool host does not have this tool")
        if served.digest != call.definition_sha256:
            return Failure("definition_changed", "the tool's definition is not the one that was decided on")
        if call.taken_before and not (call.idempotent or call.effect == "read"):
            return Failure("interrupted", "an earlier attempt may have had its effect", ambiguous=True)
        try:
            arguments = parse_arguments(call.arguments_json)
        except ValueError:
            return Failure("arguments_invalid", "the arguments are no JSON object")
        return Job(call, served.tool, arguments, served.limits.max_result_bytes, self._withheld)

    def _settle(self, call: TakenCall, outcome: Outcome) -> None:
        """Writes the outcome down, then delivers it, now or later."""
        finished = Finished(call.call_id, call.take, self._instance, outcome)
        try:
            self._finished.record(finished)
        except LedgerUnavailable as error:
            # The effect has happened: the gateway must still hear of it.
            _log.error("ledger.unavailable", extra={"call_id": call.call_id, "error": str(error)})
        self._delivery.deliver_or_keep(finished)


def _doubtful(outcome: Outcome) -> bool:
    """Whether it says that nobody knows."""
    return isinstance(outcome, Failure) and outcome.ambiguous
