"""A tool call in the agent's process: what is sent to the launcher and what CrewAI gets back.

Most answers are an outcome. For a tool that runs in the agent itself (`execute: agent`) the first one is a
permit; its body is run by `own_tools`, and what it gave is told, which gives the outcome.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import own_tools, progress
from .arguments import BadArguments, canonical
from .channel import Channel, end_process
from .framing import Message
from .scopes import current, tool_step
from .tool_identity import describe


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be sent, made where the program made it."""

    request: Message


@dataclass(frozen=True)
class Permit:
    """The launcher's word that the body of this very call is to be run here."""

    prepared: Prepared
    terms: Message


class Asked:
    """A prepared call that is asked for on another thread, and whose asker may be cancelled meanwhile."""

    def __init__(self, broker: "Broker", prepared: Prepared) -> None:
        self._broker, self._prepared = broker, prepared
        self._lock = threading.Lock()
        self._left, self._settled = False, None

    def settle(self) -> Any:
        """As Broker does."""
        settled = self._broker.settle(self._prepared)
        with self._lock:
            self._settled = settled
            left = self._left
        if left:
            self._give_back(settled)
        return settled

    def leave(self) -> None:
        """Nobody waits for it any more: its body is not run."""
        with self._lock:
            self._left = True
            settled = self._settled
        self._give_back(settled)

    def _give_back(self, settled: Any) -> None:
        if isinstance(settled, Permit):
            self._broker.ran(settled, own_tools.INTERRUPTED)


class Broker:
    """Turns tool calls into requests, and answers into what CrewAI takes. Never runs a tool."""

    def __init__(self, *, channel: Channel) -> None:
        self._channel = channel

    def prepare(
        self, *, tool: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "Prepared | Any":
        """Fixes arguments, identity and step of a call.

        Returns:
            A Prepared, or the ToolFailure that is the answer already.
        """
        try:
            arguments = canonical(tool=tool, body=body, args=args, kwargs=kwargs)
        except BadArguments as error:
            return failure(f"Tool {tool.name!r}: {error}", reason="invalid_input")
        identity = describe(tool)
        subject = f"{identity['qualname']} {identity['fields_sha256']}"
        return Prepared(
            request={
                "op": "call",
                "identity": dict(identity),
                "name": str(tool.name),
                "arguments": arguments.decode(),
                "step": tool_step(subject=subject, arguments=arguments),
                "untrusted": {"role": current().role},
                "nested": own_tools.is_within(),
            }
        )

    def settle(self, prepared: Prepared) -> Any:
        """Sends a prepared call and waits for its outcome.

        Returns:
            The tool's result (text or JSON value), a ToolFailure, or a Permit. Never raised: one raised
            error makes CrewAI's ReAct loop repeat the call several times.
        """
        answer = self._channel.ask(prepared.request)
        if answer.get("state") == "run":
            return Permit(prepared, answer)
        return self._outcome(prepared, answer)

    def ran(self, permit: Permit, outcome: Message) -> Any:
        """Tells what a body gave; what CrewAI gets for it."""
        request = {"op": "ran", "step": permit.prepared.request["step"], "outcome": outcome}
        return self._outcome(permit.prepared, self._channel.ask(request))

    @staticmethod
    def _outcome(prepared: Prepared, answer: Message) -> Any:
        state = answer.get("state")
        progress.step(kind="tool", what=prepared.request["name"], replayed=bool(answer.get("replayed")))
        if state == "done":
            result = answer["result"]
            return result if answer["kind"] == "text" else json.loads(result)
        if state in ("denied", "failed", "refused"):
            return failure(
                str(answer["text"]), details={"state": state, "call_id": str(answer.get("call_id", ""))}
            )
        end_process(f"the launcher gave an unknown answer: {state!r}")
        return None


def failure(text: str, *, reason: str = "tool_reported", details: dict[str, str] | None = None) -> Any:
    """CrewAI's own value for a tool that did not do what was asked."""
    from crewai.tools.tool_failure import ToolFailure, ToolFailureReason

    return ToolFailure(message=text, reason=ToolFailureReason(reason), details=details or {})
