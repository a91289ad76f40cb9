"""`DurableRunner`: a crew, an agent or a flow as a durable run, from a program's own code."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from typing import Any

from meshgate_agents.runner import inside, outside, results
from meshgate_agents.runner.errors import CannotRun, RunFailed

KINDS = ("crew", "agent", "flow")
MAX_INPUT_BYTES = 1_048_576  # as the gateway takes for the input of a run


class DurableRunner:
    """Runs a crew, an agent or a flow as a durable run of one app of the manifest.

    In a plain script, `run` starts that same script once more under `meshgate run` and hands its
    result back. So the lines before `run` are executed in both processes, in the inner one again
    in each attempt; the inner one ends where `run` ends, and the lines after it are executed once, in
    the outer one. Under `meshgate run` by hand, `run` kicks off at once and returns like `kickoff`.
    """

    def __init__(
        self,
        *,
        name: str,
        crew: Any = None,
        agent: Any = None,
        flow: Any = None,
        max_iterations: int | None = None,
    ) -> None:
        """Args: `name` is the app's in the manifest; exactly one of the three; `max_iterations` of an agent.

        Raises:
            ValueError: none or several of crew, agent and flow, or `max_iterations` without an agent.
        """
        given = {kind: thing for kind, thing in zip(KINDS, (crew, agent, flow), strict=True) if thing}
        if len(given) != 1:
            raise ValueError("exactly one of crew=, agent= and flow=")
        ((self.kind, self.thing),) = given.items()
        if max_iterations is not None:
            if agent is None:
                raise ValueError("max_iterations= goes with agent=")
            agent.max_iter = max_iterations
        self.name = name

    def run(
        self,
        inputs: Any = None,
        *,
        run_id: str | None = None,
        on_event: Callable[[outside.RunEvent], None] | None = None,
    ) -> Any:
        """Runs to the end.

        Args:
            inputs: what `kickoff` takes: a dict for a crew or a flow, a question or messages for an
                agent. JSON, because every attempt is given the ones of the first.
            run_id: names the run. The id of a run that has completed gives its recorded result, and
                nothing runs; of one that was cut, it goes on. With other inputs it is refused.
                Under `meshgate run` by hand it has no meaning: that run has an id already.
            on_event: told of progress, in this thread, while the run goes on. What it raises cancels the run.

        Returns:
            CrewAI's own result object. The outer process rebuilds it from JSON: a pydantic result
            whose class no task of the crew names becomes `json_dict`.

        Raises:
            CannotRun: nothing was run.
            RunFailed: in the outer process, the run ended without a result.
            Exception: under `meshgate run` by hand, what the crew raises.
        """
        _check_place()
        text = _text(inputs)
        if not os.environ.get(inside.SOCKET_VARIABLE):
            form = outside.run(name=self.name, inputs=text, run_id=run_id, on_event=on_event)
            return results.rebuild(form, classes=self.classes)
        return inside.run(self, text)

    def kick_off(self, inputs: Any) -> Any:
        """CrewAI's own way to run the thing."""
        return self.thing.kickoff(inputs) if self.kind == "agent" else self.thing.kickoff(inputs=inputs)

    @property
    def classes(self) -> list[Any]:
        """The pydantic classes that a result may hold: those that the program itself names."""
        tasks = self.thing.tasks if self.kind == "crew" else ()
        names = ("output_pydantic", "output_json", "response_model")
        found = [getattr(task, name, None) for task in tasks for name in names]
        return [found for found in found if isinstance(found, type)]


def _check_place() -> None:
    """One script, one main thread: any other place would be reached twice, or never.

    Raises:
        CannotRun: this is another.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CannotRun("DurableRunner.run() is for the main thread of a script")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise CannotRun("DurableRunner.run() waits, so it is not for a running event loop")


def _text(inputs: Any) -> str:
    try:
        text = json.dumps(inputs, ensure_ascii=False, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CannotRun(f"the inputs are no JSON: {error}") from error
    if len(text.encode("utf-8", "surrogatepass")) > MAX_INPUT_BYTES:
        raise CannotRun(f"the inputs are over {MAX_INPUT_BYTES} bytes")
    return text


__all__ = ["CannotRun", "DurableRunner", "RunFailed"]
