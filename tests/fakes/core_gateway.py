"""FAKE: the gateway's real core behind the fake gateway's wire, so that real agents meet a real ledger."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes.fake_gateway import FakeGateway
from fakes.gateway_parts import peer
from meshgate_gateway.adapters import wire
from meshgate_gateway.errors import GatewayError
from meshgate_gateway.own_calls import OwnCall
from meshgate_gateway.server import REASON_KEY, status_of
from meshgate_wire import broker_pb2 as pb

DESK = peer("desk")


@dataclass
class CoreGateway(FakeGateway):
    """Calls and runs are the world's; what the fake would count, it counts too."""

    world: Any = None

    @staticmethod
    def _served(context: Any, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except GatewayError as error:
            code, reason = status_of(error)
            context.set_trailing_metadata(((REASON_KEY, reason),))
            context.abort(code, reason)

    def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = self.world.runs.start(DESK, run_id=request.run_id, input_json=request.input_json)
        super().StartRun(request, context)
        return pb.StartRunResponse(run_id=run.run_id, state=run.state, attempt=run.attempt)

    def StartAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        ask = {"run_id": request.run_id, "launcher": request.launcher_instance, "after": request.after}
        run = self._served(context, lambda: self.world.runs.start_attempt(DESK, **ask))
        return pb.StartAttemptResponse(attempt=run.attempt)

    def CallTool(self, request: Any, context: Any) -> Any:  # noqa: N802
        call = wire.call_request(request)
        return self._served(context, lambda: wire.answer(self.world.broker.handle(DESK, call)))

    def FinishOwnCall(self, request: Any, context: Any) -> Any:  # noqa: N802
        call, outcome = OwnCall(request.call_id, request.attempt, request.take), wire.own_outcome(request)
        return self._served(context, lambda: wire.answer(self.world.own_calls.finish(DESK, call, outcome)))

    def ReadJournal(self, request: Any, context: Any) -> Any:  # noqa: N802
        ask = {"run_id": request.run_id, "attempt": request.attempt}
        yield from map(wire.entry, self._served(context, lambda: self.world.journal.read(DESK, **ask)))

    def AppendStep(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._served(
            context,
            lambda: self.world.journal.append(
                DESK,
                run_id=request.run_id,
                attempt=request.attempt,
                step=wire.step(request.step),
                request=request.request_json,
                reply=request.reply_json,
                milliseconds=request.milliseconds,
            ),
        )
        return super().AppendStep(request, context)

    def Heartbeat(self, request: Any, context: Any) -> Any:  # noqa: N802
        ask = {"run_id": request.run_id, "attempt": request.attempt, "steps": request.steps}
        run = self._served(context, lambda: self.world.runs.heartbeat(DESK, **ask))
        return pb.HeartbeatResponse(state=run.state)

    def EndAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        super().EndAttempt(request, context)
        ask = {name: getattr(request, name) for name in ("run_id", "attempt", "state", "detail", "traceback")}
        run = self._served(context, lambda: self.world.runs.end_attempt(DESK, **ask))
        return pb.EndAttemptResponse(state=run.state)

    def FinishRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = ("run_id", "attempt", "state", "detail", "traceback", "result")
        ask = {name: getattr(request, name) for name in names}
        self._served(context, lambda: self.world.runs.finish(DESK, **ask))
        return super().FinishRun(request, context)
