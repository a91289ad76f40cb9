"""Tool-call ids that CrewAI makes up of a memory address, for models that give none (Gemini). Pure.

They stand in the next prompts and differ in each attempt; in a step's content their order stands for them.
"""

import re

# In canonical JSON, as a value of its own: quotes within a text are escaped and never match.
_ADDRESS = re.compile(r'("(?:id|tool_call_id)":)"call_(\d{9,20})"')


def without_addresses(messages: list[str]) -> list[str]:
    """Messages in canonical JSON, each made-up id replaced by its place among them."""
    known: dict[str, int] = {}

    def place(found: "re.Match[str]") -> str:
        return f'{found[1]}"call #{known.setdefault(found[2], len(known))}"'

    return [_ADDRESS.sub(place, message) for message in messages]
