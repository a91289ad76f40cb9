"""`DurableRunner.run` in a plain script: the same script once more, under `meshgate run`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_agents.runner import plan, reexecution
from meshgate_agents.runner.errors import CannotRun, RunFailed

POLL_SECONDS = 0.1  # how often events are looked for
END_SECONDS = 30.0  # after a signal: the launcher gives its child 10 s and then records the end
NOT_FOUND, UNAVAILABLE = 4, 5  # exit codes of our command line
INPUT, RESULT = "input", "result"  # kinds of steps, as `meshgate runs show` names them


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run.

    Attributes:
        event: attempt_started, step_replayed, step_finished, attempt_ended or run_ended.
        attempt: which one; 0 for run_ended.
        kind: of a step: model, tool or delegate.
        what: the model, the tool by its name in the program, the app that was asked, or the run's state.
    """

    event: str
    attempt: int = 0
    kind: str = ""
    what: str = ""


OnEvent = Callable[[RunEvent], None]
_earlier: list[dict[str, Any]] = []  # how the calls of `run` in this process ended


def run(*, name: str, inputs: str, run_id: str | None, on_event: OnEvent | None) -> dict[str, Any]:
    """Runs one call of `run` in an inner process, or finds its recorded result.

    Returns:
        The result's JSON form.

    Raises:
        CannotRun: nothing was run.
        RunFailed: the run ended without a result.
    """
    command = reexecution.command(sys.orig_argv)
    folder = reexecution.project((Path.cwd(), _script_folder()))
    reexecution.check_app(folder, name)
    mesh = _Mesh(reexecution.meshgate(), folder)
    chosen = run_id or str(uuid.uuid4())
    try:
        with mesh.up():
            form = mesh.recorded(chosen, app=name, inputs=inputs) if run_id else None
            if form is None:
                form = _played(
                    mesh, name=name, run_id=chosen, inputs=inputs, command=command, on_event=on_event
                )
    except RunFailed as error:
        fields = ("run_id", "state", "detail", "traceback")
        _earlier.append({"failed": {field: getattr(error, field) for field in fields}})
        raise
    _earlier.append({"result": form})
    return form


def _script_folder() -> Path:
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).parent if file else Path.cwd()


def _played(  # noqa: PLR0913 - one call of `run`
    mesh: "_Mesh", *, name: str, run_id: str, inputs: str, command: Sequence[str], on_event: OnEvent | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="meshgate-run-") as folder:  # made with mode 0700
        planned = plan.Plan(Path(folder), tuple(_earlier), inputs)
        planned.write()
        arguments = ("run", "--app", name, "--run-id", run_id, "--project", str(mesh.project), "--", *command)
        environment = {**os.environ, plan.VARIABLE: folder}
        feed = _Feed(planned.events, on_event)
        status = _watched([mesh.command, *arguments], environment, feed)
        run = mesh.show(run_id)
        feed.ended(str(run["state"]) if run else "failed")
    form = _step(run, RESULT)
    if run is None or form is None or run["state"] != "completed":
        shown = run or {"state": "failed", "detail": f"it was not started, status {status}", "traceback": ""}
        kept = {field: str(shown[field]) for field in ("state", "detail", "traceback")}
        raise RunFailed(run_id=run_id, **kept)
    return dict(json.loads(form))


def _watched(argv: Sequence[str], environment: dict[str, str], feed: "_Feed") -> int:
    """Runs our client with this process's own streams; whatever ends the wait ends the run."""
    sys.stdout.flush()
    sys.stderr.flush()
    client = subprocess.Popen(argv, env=environment)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return client.wait(POLL_SECONDS if feed.wanted else None)
            feed.drain()
    except BaseException:
        _end(client)
        raise


def _end(client: "subprocess.Popen[bytes]") -> None:
    if client.poll() is None:
        client.send_signal(signal.SIGINT)
    try:
        client.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        client.kill()
        client.wait()


class _Feed:
    """The inner process's events, as it writes them down; the end of an attempt is ours to say."""

    def __init__(self, path: Path, on_event: OnEvent | None) -> None:
        self._path, self._tell = path, on_event
        self._read, self._attempt = 0, 0

    @property
    def wanted(self) -> bool:
        return self._tell is not None

    def drain(self) -> None:
        """Tells what is new."""
        if self._tell is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a process may have been killed in the middle of a line
        self._read += len(whole)
        for line in whole.splitlines():
            event = RunEvent(**json.loads(line))
            if event.event == "attempt_started":
                self._attempt_ended()
                self._attempt = event.attempt
            self._tell(event)

    def ended(self, state: str) -> None:
        """The run is over."""
        self.drain()
        self._attempt_ended()
        if self._tell is not None:
            self._tell(RunEvent("run_ended", what=state))

    def _attempt_ended(self) -> None:
        if self._attempt and self._tell is not None:
            self._tell(RunEvent("attempt_ended", self._attempt))


class _Mesh:
    """Our command line, for one project."""

    def __init__(self, command: str, project: Path) -> None:
        self.command, self.project = command, project

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """The mesh is up inside; one that was not is taken down again."""
        ours = self._ask("ps", "-o", "json").returncode == UNAVAILABLE
        if ours:
            self._do("up", "-d")
        try:
            yield
        finally:
            if ours:
                self._do("down")

    def recorded(self, run_id: str, *, app: str, inputs: str) -> dict[str, Any] | None:
        """The result of a run that has completed; None when there is something to run.

        Raises:
            CannotRun: the run had other inputs, or is another app's.
        """
        run = self.show(run_id)
        if run is not None and str(run["app"]).rpartition("/")[2] != app:
            raise CannotRun(f"run {run_id} is another app's", next_step="choose another run_id")
        given, form = _step(run, INPUT), _step(run, RESULT)
        if given is not None and given.partition("\n")[0] != inputs:  # a later call of a script keeps more
            raise CannotRun(f"run {run_id} was started with other inputs", next_step="choose another run_id")
        if run is None or form is None or run["state"] != "completed":
            return None
        return dict(json.loads(form))

    def show(self, run_id: str) -> dict[str, Any] | None:
        """A run with its steps; None when there is no such run.

        Raises:
            CannotRun: the mesh does not answer.
        """
        done = self._ask("runs", "show", run_id, "--steps", "-o", "json")
        if done.returncode == NOT_FOUND:
            return None
        if done.returncode:
            raise CannotRun(f"run {run_id} cannot be looked at: {done.stderr.strip()}")
        return dict(json.loads(done.stdout))

    def _ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [self.command, *arguments, "--project", str(self.project)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def _do(self, *arguments: str) -> None:
        argv = [self.command, *arguments, "--project", str(self.project)]
        done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise CannotRun(
                f"meshgate {arguments[0]} ended with status {done.returncode}; its error is above"
            )


def _step(run: dict[str, Any] | None, kind: str) -> str | None:
    """What a step of that kind, of which a run has at most one, holds."""
    found = [step["output"] for step in run["steps"] if step["kind"] == kind] if run else []
    return str(found[0]) if found else None
