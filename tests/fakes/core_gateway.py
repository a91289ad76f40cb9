"""FAKE: the gateway's real core behind the fake gateway's wire, so that real agents meet a real ledger."""

from dataclasses import dataclass
from typing import Any

from fakes.fake_gateway import FakeGateway
from fakes.gateway_parts import peer
from meshgate_gateway.adapters import wire
from meshgate_wire import broker_pb2 as pb


@dataclass
class CoreGateway(FakeGateway):
    """Tool calls go to the world's broker; the journal of model replies stays the fake's."""

    world: Any = None

    def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.world.runs.start(peer("desk"), run_id=request.run_id, input_json=request.input_json)
        return super().StartRun(request, context)

    def StartAttempt(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = self.world.runs.start_attempt(
            peer("desk"), run_id=request.run_id, launcher=request.launcher_instance
        )
        return pb.StartAttemptResponse(attempt=run.attempt)

    def CallTool(self, request: Any, context: Any) -> Any:  # noqa: N802
        return wire.answer(self.world.broker.handle(peer("desk"), wire.call_request(request)))
