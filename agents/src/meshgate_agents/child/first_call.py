"""What OpenAI's client builds with the first call of a process, built before any program is there.

None of it depends on the call: the types of what is sent and of what comes back, and headers that name the
machine and the interpreter. No call is made: what would be sent is answered in this process.
"""

import contextlib
import json
import sys
from typing import Any

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
REPLY = {
    "id": "c", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


def build() -> None:
    """Does nothing where that client is not imported; one that works otherwise builds it later, as ever."""
    openai: Any = sys.modules.get("openai")
    httpx: Any = sys.modules.get("httpx")
    if openai is None or httpx is None:
        return
    answered = httpx.MockTransport(lambda _: httpx.Response(200, content=json.dumps(REPLY)))
    asked = {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, MESSAGE],
        "tools": [{"type": "function", "function": FUNCTION}],
    }
    with (
        contextlib.suppress(openai.OpenAIError, AttributeError, TypeError, ValueError),
        httpx.Client(transport=answered, trust_env=False) as client,
    ):
        own = openai.OpenAI(api_key="none", base_url="http://127.0.0.1", http_client=client, max_retries=0)
        own.chat.completions.with_raw_response.create(**asked).parse()
