"""A model that answers from a script."""
# ruff: noqa: A002, RUF012 - names and defaults as CrewAI and pydantic have them

import json
from types import SimpleNamespace
from typing import Any

from crewai import BaseLLM


def call(name: str, *, id: str = "call_1", **arguments: Any) -> Any:
    return SimpleNamespace(
        id=id, type="function", function=SimpleNamespace(name=name, arguments=json.dumps(arguments))
    )


def react(name: str, **arguments: Any) -> str:
    return f"Thought: go\nAction: {name}\nAction Input: {json.dumps(arguments)}"


def final(text: str = "finished") -> str:
    return f"Thought: I now can give a great answer\nFinal Answer: {text}"


class Scripted(BaseLLM):
    """Replies in order; the last one again and again. Remembers what it was shown."""

    replies: list[Any] = []
    native: bool = True
    shown: list[Any] = []

    def __init__(self, replies: list[Any], native: bool) -> None:
        super().__init__(model="scripted", replies=list(replies), native=native)

    def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.shown.append(json.dumps(messages, default=str))
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    async def acall(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self.call(messages, tools, *args, **kwargs)

    def supports_function_calling(self) -> bool:
        return self.native

    def supports_stop_words(self) -> bool:
        return True

    def get_context_window_size(self) -> int:
        return 100_000
