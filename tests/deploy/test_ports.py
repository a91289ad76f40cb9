"""Ports for what a mesh starts."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from meshgate_deploy.ports import BLOCK, LOOPBACK, Ports

AMONG = range(19_000, 19_000 + 4 * BLOCK)  # the test's own: below what meshes take
OTHER_PROCESS = """
from meshgate_deploy.ports import Ports
ports = Ports(range({start}, {stop}))
print(*ports.free({count}), flush=True)
input()
"""

Made = Callable[[range], Ports]


@pytest.fixture
def made() -> Iterator[Made]:
    """Makes givers of ports, and lets go of their blocks."""
    givers: list[Ports] = []

    def make(among: range) -> Ports:
        givers.append(Ports(among))
        return givers[-1]

    yield make
    for giver in givers:
        giver.close()


def test_no_port_is_given_twice(made: Made) -> None:
    """One that was given looks free until whoever got it listens; it is somebody's all the same."""
    giver = made(AMONG)
    given = [port for _ in range(BLOCK) for port in giver.free(4)]
    assert sorted(given) == list(AMONG)


def test_a_long_life_does_not_run_out_of_ports(made: Made) -> None:
    """After many restarts the first ones are given again."""
    giver = made(AMONG)
    assert all(len(set(giver.free(3))) == 3 for _ in range(len(AMONG)))


def test_a_port_that_somebody_listens_on_is_not_given(made: Made) -> None:
    """Whoever that is."""
    with socket.create_server((LOOPBACK, AMONG[7])):
        giver = made(AMONG)
        assert AMONG[7] not in giver.free(len(AMONG) - 1)


def test_two_processes_never_give_the_same_port(made: Made) -> None:
    """Two meshes that come up side by side: nobody listens on any of these yet."""
    half = len(AMONG) // 2
    code = OTHER_PROCESS.format(start=AMONG.start, stop=AMONG.stop, count=half)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = {int(word) for word in other.stdout.readline().split()}
        giver = made(AMONG)
        ours = set(giver.free(half))
        other.stdin.close()
    assert len(theirs) == half
    assert not theirs & ours


def test_the_blocks_of_a_process_are_free_when_it_ended(made: Made) -> None:
    """However it ended: the kernel lets go of them."""
    code = OTHER_PROCESS.format(start=AMONG.start, stop=AMONG.stop, count=len(AMONG))
    subprocess.run([sys.executable, "-c", code], input="\n", check=True, stdout=subprocess.DEVNULL, text=True)
    assert len(made(AMONG).free(len(AMONG))) == len(AMONG)


def test_none_is_left(made: Made) -> None:
    """All blocks are held by another: an error at once, no endless look."""
    holder = made(AMONG)
    holder.free(len(AMONG))
    with pytest.raises(OSError, match=f"no free port on {LOOPBACK} between {AMONG.start} and {AMONG.stop}"):
        made(AMONG).free(1)
