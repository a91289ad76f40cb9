"""What programs may hold of their launcher: a share of its memory, and its descriptors are its own."""

import os
import resource
import socket
import struct
import subprocess
import sys
import threading

import pytest
from agents.test_launcher_bounds import Remembering, eventually, made
from meshgate_agents.child.framing import receive, send
from meshgate_agents.launcher import budget, conversations
from meshgate_agents.launcher.budget import Budget
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import AttemptEnded
from meshgate_agents.launcher.ready import Start
from meshgate_agents.launcher.supervise import Supervisor


def test_a_share_is_lent_and_given_back() -> None:
    """One run does not take what the others of the process need; small requests need none."""
    process = Budget(300_000)
    one, two = Budget(200_000, above=process), Budget(200_000, above=process)
    with one.loan() as first, two.loan() as second:
        first.take(200_000)
        with pytest.raises(AttemptEnded, match="200000 at most"):
            one.take(1, seconds=0)
        with pytest.raises(AttemptEnded, match="300000 at most"):
            two.take(150_000, seconds=0)
        second.take(100_000)
        first.take(budget.FREE_BYTES)
    assert (process._lent, one._lent, two._lent) == (0, 0, 0)


def test_who_waits_gets_what_another_gives_back() -> None:
    """A crew with many large requests is slowed down, not ended."""
    shared = Budget(100_000)
    shared.take(100_000, seconds=0)
    got = threading.Event()
    waiting = threading.Thread(target=lambda: (shared.take(100_000, seconds=60), got.set()))
    waiting.start()
    assert not got.is_set()
    shared.give(100_000)
    waiting.join(60)
    assert got.is_set()


def test_a_program_that_holds_too_much_ends_its_attempt(tmp_path, monkeypatch) -> None:
    """With the reason, before the bytes are read; its signs of life are answered all the while."""
    monkeypatch.setattr(budget, "SESSION_BYTES", 200_000)
    monkeypatch.setattr(budget, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(conversations, "admit", lambda *_: os.getpid())
    session = made(Remembering())
    reasons: list[AttemptEnded] = []
    session._on_end = reasons.append
    path = str(session.listen(tmp_path))
    peers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    try:
        for peer in peers:
            peer.connect(path)
        for peer in peers[:2]:
            peer.sendall(struct.pack("!I", 150_000) + b"{")  # says much and sends little
        eventually(lambda: reasons)
        assert "requests are under way, 200000 at most" in str(reasons[0])
        send(peers[2], {"op": "alive"})
        peers[2].settimeout(20)
        assert receive(peers[2])["state"] == "ok"
    finally:
        for peer in peers:
            peer.close()
        session.close()


RAISED = """
import resource
from meshgate_agents.launcher import budget
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 400))
budget.raise_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_our_limit_is_the_hard_one_and_a_programs_is_as_it_was(monkeypatch) -> None:
    """A program that waits with select(2) would break on more."""
    done = subprocess.run([sys.executable, "-c", RAISED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "400"]
    monkeypatch.setattr("meshgate_agents.launcher.children.SOFT_DESCRIPTORS", 64)
    code = "import resource; raise SystemExit(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    program = Program(command=(sys.executable, "-c", code))
    children = Children()
    start = Start(program, os.environ, "").by(children)
    ending = Supervisor(children).run(start, on_start=lambda _: None)
    assert ending.status == 64
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64
