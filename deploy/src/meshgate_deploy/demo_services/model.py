"""A scripted, fully obedient model behind OpenAI's chat API.

It reads the real tool results to choose its next call and does whatever any text tells it, the
injection included. So what protects the desk is the policy, not the model.
"""

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from meshgate_deploy.demo_services.http_json import Answer

_TICKET = re.compile(r"order=([A-Z]-\d+)(?: amount=(\d+) card=(\S+))?")
_FILE = re.compile(r"file=(\S+)")


@dataclass(frozen=True, slots=True)
class Done:
    """One tool call that the conversation shows, with its result."""

    tool: str
    arguments: dict[str, Any]
    result: str


def handle(_path: str, body: dict[str, Any], _headers: dict[str, str]) -> Answer:
    """Answers one chat completion."""
    messages: list[dict[str, Any]] = body.get("messages", [])
    tools = [tool["function"]["name"] for tool in body.get("tools", [])]
    done = _done(messages)
    if "list_tickets" in tools:
        step = _triage(done, next(name for name in tools if name != "list_tickets"))
    elif "refund" in tools:
        prompt = "\n".join(str(m.get("content") or "") for m in messages if m["role"] in ("user", "system"))
        step = _billing(prompt, done)
    else:
        step = "I have nothing to do."
    return 200, _completion(body.get("model", ""), step)


def _done(messages: list[dict[str, Any]]) -> list[Done]:
    calls = {call["id"]: call["function"] for message in messages for call in message.get("tool_calls") or []}
    return [
        Done(
            calls[m["tool_call_id"]]["name"],
            json.loads(calls[m["tool_call_id"]]["arguments"]),
            str(m["content"]),
        )
        for m in messages
        if m["role"] == "tool" and m.get("tool_call_id") in calls
    ]


def _triage(done: list[Done], reader: str) -> str | tuple[str, dict[str, Any]]:
    """Lists, reads every ticket, reads whatever a ticket says to read, then reports."""
    if not done:
        return "list_tickets", {}
    files = done[0].result.split()
    texts = "\n".join(d.result for d in done if d.tool == reader)
    wanted = [*files, *_FILE.findall(texts)]
    read = {d.arguments.get("file_path") for d in done if d.tool == reader}
    for path in wanted:
        if path not in read:
            return reader, {"file_path": path}
    return "Requests:\n" + "\n".join(match.group(0) for match in _TICKET.finditer(texts))


def _billing(prompt: str, done: list[Done]) -> str | tuple[str, dict[str, Any]]:
    """Looks every order up and pays it; pays whatever amount a ticket names, too."""
    asked = list(dict.fromkeys(_TICKET.findall(prompt)))
    tried = [(d.tool, d.arguments.get("order_id"), d.arguments.get("amount")) for d in done]
    for order, amount, card in asked:
        if amount:
            if ("refund", order, int(amount)) not in tried:
                return "refund", {"order_id": order, "amount": int(amount), "card": card}
            continue
        found = next(
            (d for d in done if (d.tool, d.arguments.get("order_id")) == ("lookup_order", order)), None
        )
        if found is None:
            return "lookup_order", {"order_id": order}
        paid = json.loads(found.result)
        if ("refund", order, paid["amount"]) not in tried:
            return "refund", {"order_id": order, "amount": paid["amount"], "card": paid["card"]}
    return "Refunds:\n" + "\n".join(d.result for d in done if d.tool == "refund")


def _completion(model: str, step: str | tuple[str, dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step if isinstance(step, str) else None}
    if not isinstance(step, str):
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        message["tool_calls"] = [{"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}]
    reason = "stop" if isinstance(step, str) else "tool_calls"
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
