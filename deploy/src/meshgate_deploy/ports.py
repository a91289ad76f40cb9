"""Free ports on loopback. A port found free may be gone when it is used: callers retry."""

import errno
import random
import socket
import threading
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768 up): no outgoing connection can take one of these meanwhile.
RANGE = range(20_000, 32_000)
TRIES = 1_000
MAX_REMEMBERED = len(RANGE) // 2  # given by this process; then it begins anew

_given: set[int] = set()
_giving = threading.Lock()


def free_ports(count: int) -> list[int]:
    """As many different ports as asked, each free on loopback a moment ago, and given to nobody before.

    A sidecar listens on some of its ports seconds after it was started: until then they look free.

    Raises:
        OSError: no port of the range is free.
    """
    with _giving:
        if len(_given) > MAX_REMEMBERED:
            _given.clear()
        ports = _found(count)
        _given.update(ports)
    return ports


def _found(count: int) -> list[int]:
    with ExitStack() as held:
        ports: list[int] = []
        for port in random.sample([port for port in RANGE if port not in _given], TRIES):
            if len(ports) == count:
                break
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                sock.bind((LOOPBACK, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                ports.append(port)
    if len(ports) < count:
        raise OSError(errno.EADDRINUSE, f"no free port on {LOOPBACK} between {RANGE.start} and {RANGE.stop}")
    return ports
