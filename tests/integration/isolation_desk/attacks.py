"""Everything that an agent must not be able to do to its neighbours, tried; and what came of it."""
# ruff: noqa: T201 - a program that prints

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

PTRACE_ATTACH, PTRACE_DETACH = 16, 17
SECONDS = 5


def tried(attempt, *given):
    """What came of it, in one word."""
    try:
        return attempt(*given) or "done"
    except OSError as error:
        return type(error).__name__ if type(error) is not OSError else f"OSError {error.errno}"


def each(attempt, targets):
    """The same on each of them."""
    return {what: tried(attempt, target) for what, target in targets.items()}


def environ(pid):
    return read(f"/proc/{pid}/environ")


def root_of(pid):
    return "done" if any(Path(f"/proc/{pid}/root/").iterdir()) else "empty"


def touch(pid):
    os.kill(pid, 0)


def read(path):
    return "done" if Path(path).read_bytes() else "empty"


def write(path):
    before = Path(path).stat().st_size
    with Path(path).open("ab") as file:
        file.write(b"x")
    return "done" if Path(path).stat().st_size > before else "no effect"


def remove(path):
    moved = Path(path).rename(path + ".moved")
    moved.rename(path)


def ptrace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) == 0:
        libc.ptrace(PTRACE_DETACH, pid, None, None)
        return "done"
    return errno.errorcode[ctypes.get_errno()]


def umount(root):
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.umount2(f"{root}/.meshgate".encode(), 2)
    return "done" if done == 0 else errno.errorcode[ctypes.get_errno()]


def ask(path):
    """Asks a socket of the mesh in its own tongue; what it says, if anything."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.connect(path)
        if path.endswith("control.sock"):
            sock.sendall(b'{"op": "down"}\n')
        elif path.endswith("workload.sock"):
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        elif "opa-" in path:
            sock.sendall(b"GET /v1/data HTTP/1.1\r\nhost: opa\r\n\r\n")
        else:
            sock.sendall(b"\0\0\0\x0d" + b'{"op":"list"}')
        return sock.recv(4096).decode(errors="replace") or "nothing"


def connect(port):
    with socket.create_connection(("127.0.0.1", port), SECONDS):
        return "done"


def listen():
    with socket.create_server(("127.0.0.1", 0)):
        return "done"


def abstract(name):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{name}")


def create(folder):
    path = Path(folder, "new")
    path.write_text("x")
    return "done"


def outlive(mark):
    """A process in a session of its own, without a parent, an environment, or an ear for signals."""
    if os.fork():
        while not Path(mark).exists():
            time.sleep(0.01)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stays = (
        "import os, time, sys; open(sys.argv[1] + '.part', 'w').write(str(os.getpid())); "
        "os.rename(sys.argv[1] + '.part', sys.argv[1]); time.sleep(600)"
    )
    for descriptor in range(3, 256):
        try:
            os.close(descriptor)
        except OSError:
            continue
    os.execve(sys.executable, [sys.executable, "-c", stays, mark], {})


def attack(told, name):
    root = told["root"]
    outlive(f"{root}/out/outlives-{name}")
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t") for line in lines if line.startswith(("Cap", "NoNewPrivs")))
    processes = told["processes"]
    return {
        "read": each(read, told["files"]),
        "write": each(write, told["files"]),
        "remove": each(remove, told["files"]),
        "environ": each(environ, processes),
        "root of": each(root_of, processes),
        "ptrace": each(ptrace, processes),
        "signal": each(touch, processes),
        "socket": each(ask, told["sockets"]),
        "connect": each(connect, {**told["ports"], "model": told["model"]}),
        "listen": tried(listen),
        "abstract": tried(abstract, told["abstract"]),
        "umount": umount(root),
        "status": status,
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "writes": {
            "home": tried(create, os.environ["HOME"]),
            "tmp": tried(create, tempfile.gettempdir()),
            "out": tried(create, f"{root}/out"),
            "project": tried(create, root),
        },
    }


class Attacker:
    """As a crew."""

    def kickoff(self, inputs=None):
        """Tries everything."""
        import crewai  # noqa: F401 - so that it is known to be brokered

        if "write" in inputs:
            Path(inputs["write"]).write_text("x")
        return attack(inputs, "crew")


if __name__ == "__main__":
    print("TOLD", json.dumps(attack(json.loads(sys.argv[1]), "program")))
