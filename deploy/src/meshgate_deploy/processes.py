"""Processes that we start, watch by pid, and end by pid."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from meshgate_identities import attestation

from meshgate_deploy.errors import EXIT_UNAVAILABLE, UserError

TERM_SECONDS = 4.0  # daprd drains; Dapr 1.18.2's scheduler may hang, so a kill follows
LOG_TAIL = 1_500


@dataclass(slots=True)
class Managed:
    """One running process of ours."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    started: attestation.Process

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def tail(self) -> str:
        """The end of its log, for an error message."""
        return self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace")


class ProcessTable:
    """Every process of one supervisor; written to a file, so that a crash leaves no orphan unknown."""

    def __init__(self, *, folder: Path, logs: Path) -> None:
        self._file = folder / "processes.json"
        self._logs = logs
        self.rows: dict[str, Managed] = {}

    def start(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path,
        stdio: tuple[int, int, int] | None = None,
    ) -> Managed:  # fmt: skip
        """Starts a process in a session of its own; its output goes to its log, or to `stdio`."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            streams = stdio or (subprocess.DEVNULL, output.fileno(), output.fileno())
            popen = subprocess.Popen(
                list(argv), env=dict(env), cwd=cwd, start_new_session=True,
                stdin=streams[0], stdout=streams[1], stderr=streams[2],
            )  # fmt: skip
        managed = Managed(name, popen, log, attestation.process(popen.pid))
        self.rows[name] = managed
        self._write()
        return managed

    def stop(self, name: str) -> None:
        """Ends one process and its group: SIGTERM, then SIGKILL."""
        managed = self.rows.pop(name, None)
        if managed:
            _end([managed])
            self._write()

    def stop_all(self, order: Sequence[str] = ()) -> None:
        """Ends everything: the named first, in order, the rest together."""
        for name in order:
            self.stop(name)
        _end(list(self.rows.values()))
        self.rows.clear()
        self._write()

    def clean_leftovers(self) -> list[str]:
        """Ends what a crashed supervisor left, told by pid and start time; returns the names."""
        if not self._file.exists():
            return []
        cleaned = []
        for row in json.loads(self._file.read_text()):
            try:
                same = attestation.process(row["pid"]).start_ticks == row["start_ticks"]
            except ProcessLookupError:
                continue
            if same:
                os.killpg(row["pid"], signal.SIGKILL)
                cleaned.append(row["name"])
        self._file.unlink()
        return cleaned

    def _write(self) -> None:
        rows = [
            {"name": m.name, "pid": m.popen.pid, "start_ticks": m.started.start_ticks}
            for m in self.rows.values()
        ]
        temporary = self._file.with_suffix(".part")
        temporary.write_text(json.dumps(rows))
        temporary.replace(self._file)


def _end(rows: Sequence[Managed]) -> None:
    for managed in rows:
        if managed.alive():
            managed.popen.terminate()
    deadline = time.monotonic() + TERM_SECONDS
    for managed in rows:
        try:
            managed.popen.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            managed.popen.kill()
        with suppress(ProcessLookupError):
            os.killpg(managed.popen.pid, signal.SIGKILL)  # what it started in its session
        managed.popen.wait()


def wait_for(managed: Managed, ready: Callable[[], bool], seconds: float) -> None:
    """Polls until `ready()`, failing at once when the process ends.

    Raises:
        UserError: it ended or took too long, with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if not managed.alive() or time.monotonic() > deadline:
            state = (
                f"ended with {managed.popen.returncode}"
                if not managed.alive()
                else f"not ready in {seconds} s"
            )
            raise UserError(
                f"{managed.name} did not start: {state}",
                why=managed.tail() or "it wrote nothing",
                fix=f"look at {managed.log}",
                exit_code=EXIT_UNAVAILABLE,
            )
        time.sleep(0.02)
