"""Starts the agent's program, passes signals on, and leaves nothing of it behind."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshgate_identities import attestation

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
KILL_AFTER_SECONDS = 5.0

# What is switched off in the program, whatever its own settings say; printed at start.
SWITCHES = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "OTEL_SDK_DISABLED": "true",
    "CREWAI_DESERIALIZE_CALLBACKS": "",
    "CREWAI_ALLOW_FLOW_SCRIPT_EXECUTION": "",
    "CREWAI_TOOLS_ALLOW_UNSAFE_PATHS": "",
    "PYTHON_DOTENV_DISABLED": "1",
    "PYTHONUNBUFFERED": "1",
}
CHILD_PATH = Path(__file__).parents[1] / "child" / "path"


def environment(
    base: Mapping[str, str], *, socket_path: Path, project_root: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """The program's whole environment, and the part of it that we set."""
    search = os.pathsep.join(p for p in (str(CHILD_PATH), base.get("PYTHONPATH", "")) if p)
    ours = {
        **SWITCHES,
        "PYTHONPATH": search,
        "MESHGATE_SOCKET": str(socket_path),
        "MESHGATE_PROJECT_ROOT": str(project_root),
    }
    return {**base, **ours}, ours


class Program:
    """One child process in the launcher's own terminal session, with all its descendants."""

    def __init__(self, *, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        # Orphans of the program become our children, so none can hide from the end.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._self = attestation.process(os.getpid())
        self._process = subprocess.Popen(list(argv), env=dict(env), cwd=cwd)

    def signal(self, number: int) -> None:
        """Passes a signal to the program."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the program at once."""
        self.signal(signal.SIGKILL)

    def wait(self) -> int:
        """Waits for the program; its status, 128 + n when a signal ended it."""
        status = self._process.wait()
        return 128 - status if status < 0 else status

    def end_descendants(self) -> None:
        """Kills whatever the program left running, and waits until it is gone."""
        deadline = time.monotonic() + KILL_AFTER_SECONDS
        while (left := self._descendants()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
                except (ProcessLookupError, ChildProcessError):
                    continue
            time.sleep(0.01)

    def _descendants(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._self.pid:
                pid = int(entry.name)
                try:
                    if attestation.is_descendant(pid, self._self):
                        found.append(pid)
                except ProcessLookupError:
                    continue
        return found
