"""What a child has the gateway do: tools, and work of agents that are apps of their own."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.launcher import requests
from meshgate_agents.launcher.colleagues import Colleagues
from meshgate_agents.launcher.gateway import Answer, Call, Gateway, Step, call_until_settled
from meshgate_agents.launcher.tools import Limits, Refusal, ToolMap

Away = Callable[[], AbstractContextManager[None]]  # around a wait for another agent


@dataclass(frozen=True, slots=True)
class Attempt:
    """What every forwarded call is stamped with."""

    run_id: str
    number: int


class Calls:
    """Of one attempt. Of a request nothing goes on but what is named here. Safe for threads."""

    def __init__(  # noqa: PLR0913 - keyword-only, each a collaborator
        self,
        *,
        gateway: Gateway,
        tools: ToolMap,
        colleagues: Colleagues,
        attempt: Attempt,
        unavailable_seconds: float,
        stopped: threading.Event,
        away: Away = nullcontext,
    ) -> None:
        self._gateway, self._tools, self._colleagues = gateway, tools, colleagues
        self._attempt, self._unavailable_seconds, self._stopped = attempt, unavailable_seconds, stopped
        self._away = away

    def named(self, request: Message) -> str | Refusal:
        """What the gateway knows it as; the refusal of what the manifest does not have.

        Raises:
            BadFrame: the request does not say.
        """
        if request.get("op") == "delegate":
            return self._colleagues.tool(request)
        identity = request.get("identity")
        if not isinstance(identity, dict):
            raise BadFrame("a call without identity")
        return self._tools.find(identity=requests.texts(identity), name=str(request.get("name", "")))

    def own_limits(self, request: Message) -> Limits | None:
        """The bounds of a body that runs in the child; None for everything else."""
        return self._tools.own_limits(self.named(request))

    def settle(
        self, tool: str, request: Message, step: Step, *, left_out: str, waits: Callable[[], None]
    ) -> Answer:
        """The outcome of a call. `waits` is told when a delegation is found under way.

        Raises:
            AttemptEnded: there is none, see `call_until_settled`.
        """
        call = Call(
            run_id=self._attempt.run_id,
            attempt=self._attempt.number,
            step_key=step.key,
            tool=tool,
            arguments_json=str(request.get("arguments", "")).encode("utf-8", "surrogatepass"),
            untrusted=requests.untrusted(request.get("untrusted")),
            scope=step.scope,
            turn=step.turn,
            task=step.task,
            left_out=left_out,
        )
        delegated = request.get("op") == "delegate"
        with self._away() if delegated else nullcontext():
            return call_until_settled(
                gateway=self._gateway,
                call=call,
                unavailable_seconds=self._unavailable_seconds,
                stopped=self._stopped,
                on_pending=waits if delegated else lambda: None,
            )
