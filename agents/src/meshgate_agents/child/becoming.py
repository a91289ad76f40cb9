"""A process that was forked becomes the program, and finds what it would have found had it been executed.

Whatever cannot be made so is executed after all, here and now, and the launcher is told why.
"""

import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from . import channel, install, streams
from .keeper import Asked
from .preloaded import Preloaded
from .running import Program

PR_SET_DUMPABLE, PR_SET_NAME = 4, 15
FAILED = 125
ADOPT = Path(__file__).resolve().parent.parent / "launcher" / "adopt.py"
SITE = str(Path(__file__).resolve().parent / "sitecustomize")


class Front:
    """What runs in front of every program that is executed, loaded before the fork: an import takes time."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("_meshgate_adopt", ADOPT)
        if spec is None or spec.loader is None:
            raise ImportError(f"{ADOPT} is not there")
        self._adopt: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._adopt)
        self._confine = self._adopt.loaded("_meshgate_confine", self._adopt.CONFINE)

    def prepare(self, descriptors: int, rules: str) -> bool:
        """Whether it may begin; it is confined then."""
        return bool(self._adopt.prepare(descriptors, rules, self._confine))


def become(asked: Asked, preloaded: Preloaded, front: Front) -> Callable[[], None]:
    """What begins the program; does not return where it is executed."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(asked.streams):
        os.dup2(stream, number)
        os.close(stream)
    request = _read(asked.request)
    if not front.prepare(int(request["descriptors"]), str(request["rules"])):
        os._exit(FAILED)
    if os.getppid() != asked.keeper:  # it died before we were to die with it
        signal.raise_signal(signal.SIGKILL)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as it would be had it been executed
    os.chdir(request["cwd"])
    argv, environ = list(request["argv"]), dict(request["env"])
    program = Program(argv, python=request["python"], environ=environ, base=preloaded.path)
    variable = preloaded.differs(environ)
    why = f"{variable} is not what the fork server was started with" if variable else program.differs(SITE)
    if why:
        _execute(asked.connection, why, request)
    asked.connection.close()
    libc.prctl(PR_SET_NAME, os.path.basename(argv[0]).encode()[:15], 0, 0, 0)  # noqa: PTH119 - a word
    os.environ.clear()
    os.environ.update({**preloaded.added, **environ})
    time.tzset()
    preloaded.settle()
    _draw_anew()
    streams.renew()
    channel.connect()
    preloaded.hide(install.begin)
    return program.begin()


def _read(descriptor: int) -> dict[str, Any]:
    with os.fdopen(descriptor, "rb") as file:
        return dict(json.load(file))


def _execute(connection: socket.socket, why: str, request: dict[str, Any]) -> NoReturn:
    connection.sendall(json.dumps({"executed": why}).encode())
    connection.close()
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.execve(request["python"], request["argv"], request["env"])  # noqa: S606 - the program itself


def _draw_anew() -> None:
    """What was drawn before the fork is the same in all; Python's own generator starts anew by itself."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None:
        processes.current_process().authkey = os.urandom(32)
