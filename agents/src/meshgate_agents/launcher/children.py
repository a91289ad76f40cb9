"""The programs below this process, each with a family of its own.

Every program is a subreaper: what it starts stays below it for as long as it lives, orphans too. So
whoever descends from it belongs to its run and to no other, and whatever hangs directly below this
process without being one of the programs was left by one that ended, and is killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshgate_agents.launcher.budget import SOFT_DESCRIPTORS
from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.forks import Forked, Forks, Streams
from meshgate_agents.launcher.peers import children_of, descendants, descends, start_time

ADOPT = Path(__file__).with_name("adopt.py")
LATER = "MESHGATE_LATER_"  # `adopt` takes it away
OF_THE_LIBRARY = ("GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES")  # the C library's, beside LD_…
KILL_SECONDS = 5.0  # a killed process that is still there after this is stuck in the kernel
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a run starts.

    Attributes:
        env: over the environment that the app's config gives.
        given: the run's input, one JSON value; the program finds it in the file MESHGATE_INPUT.
        streams: its standard ones, each as `subprocess.Popen` takes it; None is ours.
        rules: what it may do on this host, as `child.confine` reads it; empty where it may do what we may.
    """

    command: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] | None = None
    given: bytes | None = None
    streams: Streams = (None, None, None)
    rules: str = ""


@dataclass(frozen=True, slots=True)
class Child:
    """A program that was started.

    Attributes:
        popen: our child, or forked from elsewhere; either way its pid is its own until `poll` tells.
    """

    popen: "subprocess.Popen[bytes] | Forked"
    started: int

    @property
    def pid(self) -> int:
        """Its process, and the group it leads."""
        return self.popen.pid

    def has(self, pid: int) -> bool:
        """Whether a process is this program or descends from it."""
        try:
            same = start_time(self.pid) == self.started
        except ProcessLookupError:
            return False
        return same and descends(pid, self.pid)

    def until_ended(self) -> None:
        """Waits for its end, and leaves it to be reaped."""
        if isinstance(self.popen, Forked):
            self.popen.until_ended()
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


class Children:
    """All of this process. Safe for threads; make one, after `peers.become_subreaper`."""

    def __init__(self, forks: Forks | None = None) -> None:
        self._lock = threading.Lock()
        self._known: set[int] = set()
        self._forks, self._forked = forks, set[Forked]()

    def start(self, program: Program, env: Mapping[str, str]) -> Child:
        """Starts a program in a process group of its own.

        Raises:
            LauncherError: it cannot be started.
        """
        command = program.command
        found = _found(command[0], program.cwd, env)
        if found is None:
            raise LauncherError(f"cannot start {command[0]!r}: No such file or directory")
        popen = self._fork(program, found, env) or self._execute(program, env)
        try:
            started = start_time(popen.pid)
        except ProcessLookupError:
            started = -1  # over already: nobody belongs to it
        return Child(popen, started)

    def _fork(self, program: Program, found: str, env: Mapping[str, str]) -> Forked | None:
        if self._forks is None:
            return None
        forked = self._forks.start(
            program.command, python=found, cwd=program.cwd, env=env, streams=program.streams,
            descriptors=SOFT_DESCRIPTORS, rules=program.rules,
        )  # fmt: skip
        if forked is not None:
            with self._lock:
                self._forked.add(forked)
        return forked

    def _execute(self, program: Program, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        command = program.command
        argv = [sys.executable, "-I", "-S", str(ADOPT), str(SOFT_DESCRIPTORS), program.rules, *command]
        environ = {LATER + name if _for_the_loader(name) else name: value for name, value in env.items()}
        with self._lock:  # a sweep must not take it for a stray before it is known
            try:
                given, out, err = program.streams
                popen = subprocess.Popen(
                    argv, env=environ, cwd=program.cwd, stdin=given, stdout=out, stderr=err, process_group=0
                )
            except OSError as error:
                raise LauncherError(f"cannot start {command[0]!r}: {error.strerror}") from error
            except ValueError as error:  # a zero byte in a word or a variable
                raise LauncherError(f"cannot start {command[0]!r}: {error}") from error
            self._known.add(popen.pid)
        return popen

    def reap(self, child: Child) -> int | None:
        """The exit status of a program that ended, negative after a signal; None while it runs."""
        with self._lock:
            status = child.popen.poll()
            if status is not None:
                self._forget(child)
        return status

    def _forget(self, child: Child) -> None:
        if isinstance(child.popen, Forked):
            self._forked.discard(child.popen)
        else:
            self._known.discard(child.pid)

    def end(self) -> None:
        """Kills every program with all that is below it."""
        with self._lock:
            self._known.clear()
            forked = list(self._forked)
            self._forked.clear()
        for one in forked:
            one.end()
        self.sweep()

    def kill(self, child: Child) -> None:
        """Kills a program and all that is below it, whatever group it put itself into."""
        with self._lock:
            if child.popen.poll() is None:
                for pid in (child.pid, *descendants(child.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def abandon(self, child: Child) -> None:
        """Kills a program of which nobody wants to know how it ends."""
        self.kill(child)
        if isinstance(child.popen, Forked):
            child.popen.end()
        with self._lock:
            self._forget(child)
        self.sweep()

    def sweep(self) -> None:
        """Kills what ended programs left behind, also what left their group or session."""
        give_up_at = time.monotonic() + KILL_SECONDS
        while time.monotonic() < give_up_at:
            with self._lock:
                strays = [pid for pid in children_of(os.getpid()) if pid not in self._known]
                for stray in strays:
                    _kill_tree(stray)
            if not strays:
                return
            time.sleep(POLL_SECONDS)


def _kill_tree(root: int) -> None:
    for pid in (root, *descendants(root)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(root, os.WNOHANG)


def _for_the_loader(name: str) -> bool:
    """Whether a variable would make what runs in front of the program, as us, load what the program wrote."""
    return name.startswith("LD_") or name in OF_THE_LIBRARY


def _found(name: str, cwd: Path | None, env: Mapping[str, str]) -> str | None:
    if "/" in name:
        name = str((cwd or Path.cwd()) / name)
    return shutil.which(name, path=env.get("PATH", os.defpath))
