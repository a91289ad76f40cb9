"""The end of a program of ours that has told its result: as an interpreter's, but memory is not taken apart.

With CrewAI imported that takes an interpreter 150 ms, in a forked program most of it to copy pages that it
shares; and whoever gave the task waits for it.
"""

import atexit
import ctypes
import gc
import io
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

CONNECTED = "MESHGATE_SOCKET"
UNFLUSHED = 120  # the interpreter's own status when its last words cannot be written


def leave() -> NoReturn:
    """Waits for threads, runs what was registered for the end, writes out open files, and ends with status 0.

    What an interpreter does not promise is not done: `__del__` of objects that are there at its end.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as the interpreter does, in its order
    atexit._run_exitfuncs()  # noqa: SLF001 - the same
    from .channel import from_environment

    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = UNFLUSHED
    _write_out()
    ctypes.CDLL(None).fflush(None)  # what libraries print
    if not status and CONNECTED in os.environ:
        from_environment().ask({"op": "left"})  # nobody waits for what the kernel has left to do
    os._exit(status)


def _write_out() -> None:
    """What files of this process still hold, from the top down: text, what is made of it, bytes."""
    known = gc.get_objects()
    kinds = {kind for kind in set(map(type, known)) if issubclass(kind, io.IOBase)}  # few, of many objects
    opened = [one for one in known if type(one) in kinds]
    own = {id(one): type(one).__module__ != "_io" for one in opened}  # a class in Python has last words
    for one in sorted(opened, key=lambda one: (not isinstance(one, io.TextIOWrapper), not own[id(one)])):
        with suppress(OSError, ValueError):
            one.close() if own[id(one)] else one.flush()
