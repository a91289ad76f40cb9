"""Signs of life: who is taken for dead, and who is not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from meshgate_agents.launcher import gateway, session, vitals
from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.children import Child
from meshgate_agents.launcher.peers import start_time
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.tools import ToolMap
from meshgate_agents.launcher.vitals import Vitals
from meshgate_gateway import calls, journal

SILENT = 0.4
SLEEPS = "import time; time.sleep(600)"
COMPUTES = "while True: pass"
# Beats as a program does that imports CrewAI; then an object is taken down until a pipe is opened.
LEAVES = """
import os, pathlib, sys
from meshgate_agents.child import vitals
from meshgate_agents.child.channel import Channel

class Slow:
    def __del__(self, wait=os.open, mode=os.O_RDONLY, begun=pathlib.Path(sys.argv[2]), may_end=sys.argv[3]):
        begun.touch()
        wait(may_end, mode)

channel = Channel(socket_path=sys.argv[1])
vitals.begin(channel)
channel.ask({"op": "alive"})
kept = Slow()
sys.modules["kept"] = kept
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SILENT_SECONDS", SILENT)


@contextmanager
def _process(code: str, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", code, *words]) as process:
        try:
            yield process
        finally:
            process.kill()


def _eventually(check: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def _silent_within(seen: Vitals, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (pid := seen.silent()) is not None:
            return pid
        time.sleep(0.02)
    return None


def test_a_process_that_neither_beats_nor_computes_is_silent() -> None:
    """Also one that computed until it was stopped."""
    for code in (SLEEPS, COMPUTES):
        with _process(code) as process:
            seen = Vitals()
            seen.beat(process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            assert _silent_within(seen, 20) == process.pid


def test_a_process_that_computes_is_not_silent() -> None:
    """A library that lets no other thread run holds back the beats, not the processor."""
    with _process(COMPUTES) as process:
        seen = Vitals()
        seen.beat(process.pid)
        assert _silent_within(seen, 4 * SILENT) is None


def test_a_program_that_takes_itself_down_is_not_silent(tmp_path: Path) -> None:
    """The beats end with the interpreter's threads, an object's end may take longer: done is not dead."""
    serving = Session(
        gateway=None, tools=ToolMap(entries=()), attempt=Attempt("run-1", 1), unavailable_seconds=1.0,
        on_end=lambda _: None, note=lambda _: None,
    )  # fmt: skip
    path = serving.listen(tmp_path)
    begun, may_end = tmp_path / "begun", tmp_path / "may-end"
    os.mkfifo(may_end)
    with _process(LEAVES, str(path), str(begun), str(may_end)) as process:
        serving.serve_only(Child(process, start_time(process.pid)))
        _eventually(begun.exists)
        assert _silent_within(serving.vitals, 4 * SILENT) is None
        assert process.poll() is None
        os.close(os.open(may_end, os.O_WRONLY))
        assert process.wait(20) == 0
    serving.close()


def test_bounds_are_the_gateway_s_own() -> None:
    """Written down on both sides, since neither imports the other."""
    assert journal.MAX_STEP_BYTES == session.MAX_STEP_BYTES
    assert calls.MAX_ARGUMENTS_BYTES == gateway.MAX_ARGUMENTS_BYTES


class TooLarge(grpc.RpcError):
    """As gRPC refuses a message that it does not read."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return "SERVER: Received message larger than max (5000000 vs. 4194304)"

    def trailing_metadata(self) -> None:
        return None


@pytest.mark.parametrize(("size", "state"), [(5_000_000, "refused"), (10, "")])
def test_arguments_that_the_gateway_cannot_even_read_are_the_model_s_mistake(
    monkeypatch, size, state
) -> None:
    """No asking again for a minute. A gateway that is merely busy is asked again as ever."""

    class Stub:
        def __init__(self, _channel: object) -> None: ...

        def CallTool(self, *_: object, **__: object) -> None:  # noqa: N802 - gRPC's
            raise TooLarge

    monkeypatch.setattr(gateway.broker_pb2_grpc, "BrokerStub", Stub)
    call = gateway.Call(
        run_id="r", attempt=1, step_key="k", tool="desk.refund", arguments_json=b"x" * size, untrusted={},
        scope="", turn=0, task="", left_out="",
    )  # fmt: skip
    asked = gateway.GrpcGateway(channel=lambda: None)
    if state:
        assert asked.call_tool(call).state == state
    else:
        with pytest.raises(gateway.GatewayUnavailable):
            asked.call_tool(call)
