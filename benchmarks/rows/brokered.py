"""The brokered call without Dapr, against a bare threaded gRPC echo over mTLS.

The gateway is whole: mTLS, certificate to caller, strict arguments, OPA with 4,000 grants asked
every time, decision, take and outcome each recorded and synced, answer from the ledger. Only the
tool host answers in the gateway's process. Both servers, and OPA, share one core; the generator
has another.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from ca import Authority
from children import Served, serving
from load import many_futures, one_at_a_time
from measure import Goal, Repeats, Row, interleave
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services
from servers import desk

from rows import Bench

IN_FLIGHT = 64
LATENCY = Goal(ratio_most=5.0, added_most=1.2)
THROUGHPUT = Goal(ratio_least=0.18)
LATENCY_CALLS, THROUGHPUT_CALLS = (1000, 40), (3000, 150)


class Wrong(Exception):
    """A server answered something else than it must: its speed means nothing."""


class Caller:
    """One app's connection to one server."""

    def __init__(self, authority: Authority, served: Served, *, expects: int = pb.CALL_STATE_DONE) -> None:
        self.pids = served.pids
        self._expects = expects
        self._channel = authority.channel(desk.CALLER, served.target)
        self._stub = services.BrokerStub(self._channel)

    def call(self) -> None:
        """One new call, waited for and checked."""
        answer = self._stub.CallTool(desk.fresh_call(), timeout=30)
        if answer.state != self._expects:
            raise Wrong(f"state {answer.state}: {answer.message}")

    def latency(self, count: int) -> dict[str, float]:
        """One in flight."""
        return dict(one_at_a_time(self.call, count=count))

    def throughput(self, count: int) -> dict[str, float]:
        """Many in flight."""
        return dict(
            many_futures(
                lambda: self._stub.CallTool.future(desk.fresh_call(), timeout=30),
                in_flight=IN_FLIGHT,
                count=count,
                server_pids=self.pids,
            )
        )

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def measure(bench: Bench) -> Sequence[Row]:
    """p50 with one in flight, and calls per second with 64."""
    authority = Authority(bench.ca)
    with ExitStack() as stack:
        echo = stack.enter_context(serving(bench, "echo", module="echo"))
        gateway = stack.enter_context(serving(bench, "gateway", module="gateway", level="opa"))
        bench.say("brokered: echo and gateway are up")
        callers = {"echo": Caller(authority, echo), "gateway": Caller(authority, gateway)}
        for caller in callers.values():
            stack.callback(caller.close)
            caller.call()
        alone = interleave(
            bench.repeats,
            {name: partial(one.latency, bench.count(*LATENCY_CALLS)) for name, one in callers.items()},
        )
        crowd = interleave(
            bench.repeats,
            {name: partial(one.throughput, bench.count(*THROUGHPUT_CALLS)) for name, one in callers.items()},
        )
    return [
        Row(
            name="brokered.p50",
            unit="ms",
            subject=alone.series("gateway", "p50"),
            baseline=alone.series("echo", "p50"),
            goal=LATENCY,
            notes=f"1 in flight; p99 {alone.median('gateway', 'p99'):.2f} ms, "
            f"echo's {alone.median('echo', 'p99'):.2f} ms",
        ),
        Row(
            name="brokered.throughput",
            unit="calls/s",
            subject=crowd.series("gateway", "rate"),
            baseline=crowd.series("echo", "rate"),
            goal=THROUGHPUT,
            notes=f"{IN_FLIGHT} in flight; busy: {busy(crowd, 'gateway')}; echo: {busy(crowd, 'echo')}",
        ),
    ]


def busy(taken: Repeats, subject: str) -> str:
    """Which end was near a whole core: that one limits the rate."""
    return f"server {taken.median(subject, 'server'):.0%}, generator {taken.median(subject, 'generator'):.0%}"
