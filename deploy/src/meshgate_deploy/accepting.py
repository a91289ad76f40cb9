"""Taking connections for as long as a process lives, whatever the machine is out of for a moment."""

import contextlib
import socket
import threading
from collections.abc import Callable

PAUSE_SECONDS = 0.1


def accept_each(
    listener: socket.socket, closed: threading.Event, converse: Callable[[socket.socket], None]
) -> None:
    """Hands each connection to a thread of its own, until `closed` is set and the listener is shut down.

    Out of descriptors or threads, it pauses and goes on: one that is not taken waits in the backlog, one that
    gets no thread is closed.
    """
    while not closed.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            closed.wait(PAUSE_SECONDS)
            continue
        try:
            threading.Thread(target=converse, args=(connection,), daemon=True).start()
        except RuntimeError:
            with contextlib.suppress(OSError):
                connection.close()
            closed.wait(PAUSE_SECONDS)
