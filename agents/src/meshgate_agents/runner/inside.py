"""`DurableRunner.run` in a launcher's child: kicks off, records inputs and result as steps of the run."""

import contextlib
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshgate_agents.runner import plan, results
from meshgate_agents.runner.errors import CannotRun, RunFailed

if TYPE_CHECKING:
    from meshgate_agents.runner import DurableRunner

SOCKET_VARIABLE = "MESHGATE_SOCKET"
APP_VARIABLE = "MESHGATE_APP"
# Keys of two steps that a run has at most once; the gateway shows them under these names.
INPUT, RESULT = "meshgate.run.input", "meshgate.run.result"


class _Calls:
    """Which call of `run` this is, in this process."""

    def __init__(self) -> None:
        self.begun, self.depth = 0, 0
        self.given: plan.Given | None = None  # on record, where no outer process says it


_calls = _Calls()


def run(runner: "DurableRunner", inputs: str) -> Any:
    """Kicks off; in a process that an outer one started, ends it afterwards.

    Raises:
        CannotRun: the process is not under interception, or it is another app's.
    """
    if _calls.depth:  # a flow that uses a runner itself: a part of the same run
        return runner.kick_off(json.loads(inputs))
    number, _calls.begun = _calls.begun, _calls.begun + 1
    planned = plan.read()
    if planned is not None and number < len(planned.earlier):
        return _earlier(runner, planned.earlier[number])
    if planned is None:
        return _by_itself(runner, number, inputs)
    _check(runner.name)
    with _last(planned):
        journal = _Journal()
        text = journal.once(
            INPUT, about=runner.name, value=plan.Given(planned.inputs, planned.earlier).text()
        )
        _, form = _kicked_off(runner, plan.Given.parse(text).inputs, journal)
        if isinstance(form, Exception):
            raise form
    raise SystemExit(0)


def _by_itself(runner: "DurableRunner", number: int, inputs: str) -> Any:
    """A call without an outer process: by hand, or in a run that is played again, by a fork say.

    The run is for one call of the script, and knows which: those before it are answered as they were then.
    """
    _check_brokered()
    journal = _Journal()
    if number == 0:
        found = journal.find(INPUT)
        _calls.given = plan.Given.parse(found) if found is not None else None
    given = _calls.given
    earlier = given.earlier if given else ()
    if number < len(earlier):
        return _earlier(runner, earlier[number])
    _check(runner.name)
    if number > len(earlier):
        return _kicked_off(runner, inputs, None)[0]
    chosen = given.inputs if given else journal.once(INPUT, about=runner.name, value=inputs)
    return _kicked_off(runner, chosen, journal)[0]


def _earlier(runner: "DurableRunner", ended: dict[str, Any]) -> Any:
    if "failed" in ended:
        raise RunFailed(**ended["failed"])
    return results.rebuild(ended["result"], classes=runner.classes)


def _check(name: str) -> None:
    _check_brokered()
    app = os.environ.get(APP_VARIABLE, "")
    if app != name:
        raise CannotRun(
            f"this process runs as app {app!r}, the runner is named {name!r}; a run starts no other",
            next_step=f"meshgate run --app {name} -- …",
        )


def _check_brokered() -> None:
    if "_meshgate_child" not in sys.modules:
        raise CannotRun(
            "this process is below a launcher, but its tools are not brokered: it was started with "
            "python -I, -E or -S, or with another PYTHONPATH"
        )


@contextlib.contextmanager
def _last(planned: plan.Plan) -> Iterator[None]:
    """Around the call that this process is for: an exception ends the process as if nobody had caught it."""
    progress = importlib.import_module("_meshgate_child.progress")
    progress.observe(functools.partial(_write, planned.events, threading.Lock()))
    try:
        yield
    except Exception:  # noqa: BLE001 - the process ends of it, as of one that nobody caught
        sys.excepthook(*sys.exc_info())  # told to the launcher, which has the run tried again or failed
        raise SystemExit(1) from None


def _write(path: Path, lock: threading.Lock, event: dict[str, Any]) -> None:
    with lock, path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def _kicked_off(runner: "DurableRunner", inputs: str, journal: "_Journal | None") -> tuple[Any, Any]:
    """The result, and its recorded form or why there is none."""
    begun = time.monotonic()
    _calls.depth += 1
    try:
        result = runner.kick_off(json.loads(inputs))
    finally:
        _calls.depth -= 1
    form: Any = None
    if journal is not None:
        try:
            text = _form(result)
            milliseconds = int((time.monotonic() - begun) * 1000)
            form = journal.once(RESULT, about=runner.name, value=text, milliseconds=milliseconds)
        except results.NoForm as error:
            form = error
    return result, form


def _form(result: Any) -> str:
    for messages in (True, False):
        text = json.dumps(results.encode(result, messages=messages), ensure_ascii=False)
        if len(text.encode("utf-8", "surrogatepass")) <= results.MAX_RESULT_BYTES:
            return text
    raise results.NoForm(f"a result over {results.MAX_RESULT_BYTES} bytes")


class _Journal:
    """Values of the run that are written once: a later attempt gets the first one's."""

    def __init__(self) -> None:
        channel = importlib.import_module("_meshgate_child.channel")
        self._channel = channel.from_environment()
        self._digest = importlib.import_module("_meshgate_child.step_keys").digest

    def find(self, name: str) -> str | None:
        """The value that is on record; None when there is none yet."""
        answer = self._channel.ask({"op": "seek", "step": self._step(name)})
        return str(answer["reply"]) if answer["state"] == "recorded" else None

    def _step(self, name: str) -> dict[str, Any]:
        key = self._digest([name.encode()])
        return {"key": key, "scope": key, "turn": 0}

    def once(self, name: str, *, about: str, value: str, milliseconds: int = 0) -> str:
        """Records a value, or gives the one that is on record."""
        step = self._step(name)
        answer = self._channel.ask({"op": "model", "step": step})
        if answer["state"] == "recorded":
            return str(answer["reply"])
        request = json.dumps({"runner": about})
        record = {"op": "reply", "step": step, "request": request, "reply": value}
        self._channel.ask({**record, "milliseconds": milliseconds})
        return value
