"""Free ports on loopback, each given once.

A process that starts a mesh takes ports from blocks that it holds alone: meshes that come up side by side
never choose the same one. Other programs may still take a port meanwhile: callers retry.
"""

import contextlib
import errno
import random
import socket
import threading
from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768 up): no outgoing connection can take one of these meanwhile.
RANGE = range(20_000, 32_000)
BLOCK = 50


class Ports:
    """The ports that one process gives. From any thread.

    A block is held by an abstract Unix socket: the kernel keeps one holder in each network namespace, as for
    ports, and lets go of it with the process.
    """

    def __init__(self, among: range = RANGE) -> None:
        self._among, self._giving = among, threading.Lock()
        self._held: dict[int, socket.socket] = {}
        self._left = self._blocks()

    def free(self, count: int) -> list[int]:
        """As many different ports as asked, each free a moment ago, and given to nobody before.

        A sidecar listens on some of its ports seconds after it was started: until then they look free.

        Raises:
            OSError: no port of the range is free.
        """
        with self._giving, contextlib.ExitStack() as bound:
            ports: list[int] = []
            for _ in range(2 * len(self._among)):
                if len(ports) == count:
                    return ports
                sock = bound.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                if _bound(sock, (LOOPBACK, port := self._next())):
                    ports.append(port)
        raise self._none()

    def close(self) -> None:
        """Lets go of all blocks."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()

    def _next(self) -> int:
        """Where the last call ended; after a long life from the beginning."""
        for left in (self._left, self._blocks()):
            self._left = left
            for port in left:
                return port
        raise self._none()

    def _none(self) -> OSError:
        why = f"no free port on {LOOPBACK} between {self._among.start} and {self._among.stop}"
        return OSError(errno.EADDRINUSE, why)

    def _blocks(self) -> Iterator[int]:
        starts = list(range(self._among.start, self._among.stop, BLOCK))
        random.shuffle(starts)
        for start in starts:
            if self._hold(start):
                yield from range(start, min(start + BLOCK, self._among.stop))

    def _hold(self, start: int) -> bool:
        if start in self._held:
            return True
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if _bound(sock, f"\0meshgate-ports-{start}"):
            self._held[start] = sock
            return True
        sock.close()
        return False


def _bound(sock: socket.socket, address: tuple[str, int] | str) -> bool:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


free_ports = Ports().free
