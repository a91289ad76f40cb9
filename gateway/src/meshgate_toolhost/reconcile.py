"""What came of a call that may have begun: the function that the manifest names is asked.

It is the project's own. It runs here, with the host's credentials, and looks at what the tool acts on:

    def find_refund(key: str, arguments: dict) -> object:
        refund = payments.find(key)
        return ("done", refund.receipt) if refund else "unknown"

It says `("done", result)`, `("failed", reason)`, `"not_begun"` or `"unknown"`. Not begun is a promise that
this call, begun by an earlier process, will not take effect any more: it is run then. Not found is no such
promise, a request may be on its way. A function that raises, hangs or says something else has said `unknown`;
it is asked again.
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from meshgate_toolhost import entries, results
from meshgate_toolhost.errors import ToolError, ToolNotLoadable
from meshgate_toolhost.execution import Execution, Job
from meshgate_toolhost.model import Arguments, Failure, LoadedTool, Outcome, Result, ResultKind

SECONDS = 10.0  # for one answer: a look at a service, not the tool's work
NOT_BEGUN = "not_begun"
UNKNOWN = Failure("not_reconciled", "nobody knows whether it took effect", ambiguous=True)
PAIR = 2
MAX_ANSWER_BYTES = 16_777_216  # of the pair; its result is held to the tool's own limit

_log = logging.getLogger(__name__)


def load(
    tools: Mapping[str, LoadedTool], named: Mapping[str, str], *, project_root: Path
) -> Mapping[str, LoadedTool]:
    """The tools, each with its function where one is named.

    Raises:
        ToolNotLoadable: a name that leads to no function, or is for a tool that is not here.
    """
    loaded = dict(tools)
    for tool_id, written in named.items():
        if tool_id not in tools:
            raise ToolNotLoadable(written, f"reconcile of {tool_id}, which this host does not have")
        found = entries.resolve(entries.parse(written), project_root)
        if not callable(found):
            raise ToolNotLoadable(written, f"reconcile of {tool_id} cannot be called")
        loaded[tool_id] = replace(tools[tool_id], reconcile=found)
    return loaded


def ask(job: Job) -> Outcome | None:
    """What came of a call; None when it certainly has not begun.

    Args:
        job: the call, and the tool whose function is asked in place of its body.
    """
    function, key = job.tool.reconcile, job.call.idempotency_key
    if function is None:
        return UNKNOWN

    def answer(arguments: Arguments) -> object:
        said = function(key, arguments)
        return asyncio.run(said) if inspect.iscoroutine(said) else said

    asked = replace(job, tool=replace(job.tool, run=answer), max_result_bytes=MAX_ANSWER_BYTES)
    execution = Execution(asked, on_late=lambda _: None)
    execution.start()
    said = execution.wait(SECONDS)
    found = _read(said, job.max_result_bytes) if isinstance(said, Result) else UNKNOWN
    word = "not_begun" if found is None else type(found).__name__.lower()
    _log.info("reconcile.answered", extra={"call_id": job.call.call_id, "found": word})
    return found


def _read(said: Result, limit_bytes: int) -> Outcome | None:
    if said.kind is ResultKind.TEXT:
        return None if said.data == NOT_BEGUN.encode() else UNKNOWN
    pair = json.loads(said.data)
    if not isinstance(pair, list) or len(pair) != PAIR:
        return UNKNOWN
    word, value = pair
    if word == "failed" and isinstance(value, str):
        return Failure("reconciled", value)
    if word != "done":
        return UNKNOWN
    try:
        return results.encode(value, limit_bytes=limit_bytes)
    except ToolError as error:  # it took effect, and its result cannot be told
        return Failure(error.error_class, str(error))
