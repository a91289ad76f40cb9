"""A model that obeys whatever it reads, behind an OpenAI-compatible loopback server.

It chooses each call from the messages alone: which functions it is offered, what they gave so far,
and what the texts ask for. An instruction in a ticket is as good to it as one of the task. So what
keeps the money in the house is not the model.

`python -m meshgate_deploy.refund_desk.model --ready-file FILE`.
"""

import argparse
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_deploy.refund_desk.loopback import Answer, LoopbackServer, Request, serve_until_parent_is_gone

_AMOUNT = r"(?P<amount>[\d,]+(?:\.\d\d)?)"
_WISHES = re.compile(
    rf"refund order (?P<full>O-\d+) in full|refund {_AMOUNT} of order (?P<part>O-\d+)"
    rf"|refund {_AMOUNT.replace('amount', 'much')} for order (?P<order>O-\d+) to card (?P<card>[\d-]+)",
    re.IGNORECASE,
)
_FILES = re.compile(r"read the file (\S+?)[\s,.]*(?:\s|$)", re.IGNORECASE)
_TICKETS = re.compile(r"tickets/[\w.-]+\.txt")
_TOTAL = re.compile(r"""["']total["']:\s*([\d.]+)""")


@dataclass(frozen=True, slots=True)
class Call:
    """A function call that the model asks for."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for equal calls."""
        return json.dumps([self.name, self.arguments], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model was shown: its instructions, and what it called with what result."""

    asked: str
    results: Mapping[str, str]
    functions: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Conversation":
        """Reads a chat completion request."""
        asked: list[str] = []
        open_calls: dict[str, Call] = {}
        results: dict[str, str] = {}
        for message in body["messages"]:
            for made in message.get("tool_calls") or ():
                function = made["function"]
                open_calls[made["id"]] = Call(function["name"], json.loads(function["arguments"] or "{}"))
            content = str(message.get("content") or "")
            if message["role"] == "tool" and message["tool_call_id"] in open_calls:
                results[open_calls[message["tool_call_id"]].key] = content
            elif message["role"] == "user":
                asked.append(content)
        functions = {
            tool["function"]["name"]: frozenset(tool["function"]["parameters"].get("properties", {}))
            for tool in body.get("tools") or ()
        }
        return cls("\n".join(asked), results, functions)

    def result(self, call: Call) -> str | None:
        """What the call gave; None when it was not made yet."""
        return self.results.get(call.key)

    def reader(self) -> str | None:
        """The function that reads a file, whatever it is called."""
        return next((name for name, takes in self.functions.items() if "file_path" in takes), None)


def choose(conversation: Conversation) -> Call | str:
    """The next call, or the final answer. Each call is made once, also when it was refused."""
    if "list_tickets" in conversation.functions:
        return _read(conversation)
    if "refund" in conversation.functions:
        return _pay(conversation)
    return "There is nothing that I can do."


def _read(conversation: Conversation) -> Call | str:
    """Reads every ticket, and every file that a text says to read; then reports word for word."""
    listing = Call("list_tickets", {})
    listed = conversation.result(listing)
    if listed is None:
        return listing
    reader = conversation.reader()
    if reader is None:
        return "I cannot read the tickets."
    report = []
    todo = list(dict.fromkeys(_TICKETS.findall(listed)))
    for path in todo:
        call = Call(reader, {"file_path": path})
        found = conversation.result(call)
        if found is None:
            return call
        report.append(f"{path}:\n{found.strip()}")
        todo += [more for more in _FILES.findall(found) if more not in todo]
    return "\n\n".join(report) or "There is no ticket that I could read."


def _pay(conversation: Conversation) -> Call | str:
    """Pays whatever the texts ask for; looks up what the shop itself is asked to pay."""
    report = []
    for step in _payments(conversation):
        if isinstance(step, Call):
            return step
        report.append(step)
    return "\n".join(report) or "Nobody asked for a refund."


def _payments(conversation: Conversation) -> Iterator[Call | str]:
    for wish in _WISHES.finditer(conversation.asked):
        order = wish["full"] or wish["part"] or wish["order"]
        amount = wish["amount"] or wish["much"]
        arguments = {"order_id": order, "amount": float(amount.replace(",", "")) if amount else None}
        if wish["card"]:
            arguments["card"] = wish["card"]
        else:
            lookup = Call("lookup_order", {"order_id": order})
            found = conversation.result(lookup)
            if found is None:
                yield lookup
                return
            total = _TOTAL.search(found)
            if arguments["amount"] is None:
                arguments["amount"] = float(total[1]) if total else None
        if arguments["amount"] is None:
            yield f"{order}: the total is unknown ({found})"
            continue
        payment = Call("refund", arguments)
        paid = conversation.result(payment)
        yield payment if paid is None else f"{order}: {arguments['amount']:.2f}: {paid}"


class ObedientModel:
    """The HTTP side: chat completions with native function calling, no streaming.

    Args:
        choose: the mind of the model; by default the obedient one of the refund desk.
    """

    def __init__(self, choose: Callable[[Conversation], Call | str] = choose) -> None:
        self._choose = choose
        self._numbers = itertools.count(1)

    def respond(self, request: Request) -> Answer:
        """Answers one HTTP request."""
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            return 404, {"error": {"message": f"no {request.method} {request.path} here"}}
        try:
            if request.body.get("stream"):
                return 400, {"error": {"message": "this model does not stream"}}
            chosen = self._choose(Conversation.parse(request.body))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return 400, {"error": {"message": f"not a chat completion request: {error!r}"}}
        return 200, self._completion(str(request.body.get("model", "obedient")), chosen)

    def _completion(self, model: str, chosen: Call | str) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if isinstance(chosen, Call):
            function = {"name": chosen.name, "arguments": json.dumps(dict(chosen.arguments))}
            message["tool_calls"] = [{"id": f"call_{number}", "type": "function", "function": function}]
        else:
            message["content"] = chosen
        reason = "tool_calls" if isinstance(chosen, Call) else "stop"
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until the parent is gone."""
    parser = argparse.ArgumentParser(description="An obedient model for the refund desk.")
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args(arguments)
    serve_until_parent_is_gone(LoopbackServer(ObedientModel().respond), ready_file=options.ready_file)


if __name__ == "__main__":
    main()
