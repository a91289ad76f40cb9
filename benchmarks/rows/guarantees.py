"""The price of each guarantee: the brokered call again, from the bare echo up, one at a time.

echo -> identity (certificate to caller) -> decision (recorded and reserved, synced) -> outcome (the
host's take and the outcome, synced) -> opa (asked every time; before, a constant says yes). Each
level holds the ones before it, so the step between two rows is the price of one guarantee.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from ca import Authority
from children import serving
from measure import Row, interleave
from meshgate_wire import broker_pb2 as pb

from rows import Bench
from rows.brokered import IN_FLIGHT, Caller, busy

DONE, PENDING = pb.CALL_STATE_DONE, pb.CALL_STATE_PENDING
LEVELS = {
    "echo": ("echo", DONE),
    "identity": ("echo", DONE),
    "decision": ("gateway", PENDING),
    "outcome": ("gateway", DONE),
    "opa": ("gateway", DONE),
}
LATENCY_CALLS, THROUGHPUT_CALLS = (500, 20), (2000, 50)


def measure(bench: Bench) -> Sequence[Row]:
    """p50 and throughput of each level; every baseline is the bare echo."""
    authority = Authority(bench.ca)
    with ExitStack() as stack:
        callers = {}
        for level, (module, expects) in LEVELS.items():
            served = stack.enter_context(serving(bench, level, module=module, level=level))
            callers[level] = Caller(authority, served, expects=expects)
            stack.callback(callers[level].close)
        bench.say("guarantees: all levels are up")
        alone = interleave(
            bench.repeats,
            {name: partial(one.latency, bench.count(*LATENCY_CALLS)) for name, one in callers.items()},
        )
        crowd = interleave(
            bench.repeats,
            {name: partial(one.throughput, bench.count(*THROUGHPUT_CALLS)) for name, one in callers.items()},
        )
    levels = list(LEVELS)[1:]
    return [
        Row(
            name=f"guarantees.{level}.{kind}",
            unit=unit,
            subject=taken.series(level, number),
            baseline=taken.series("echo", number),
            notes=f"1 in flight; p99 {taken.median(level, 'p99'):.2f} ms"
            if kind == "p50"
            else f"{IN_FLIGHT} in flight; busy: {busy(taken, level)}",
        )
        for kind, unit, taken, number in (
            ("p50", "ms", alone, "p50"),
            ("throughput", "calls/s", crowd, "rate"),
        )
        for level in levels
    ]
