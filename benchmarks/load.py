"""Generators of load: closed loops, bounded in count and time. A call that fails ends the measurement."""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from machine import cpu_seconds
from measure import Measured, percentile

LONGEST_SECONDS = 60.0  # of one measurement; a mesh this slow is broken, not slow


class TooSlow(Exception):
    """The calls did not end in time."""


def one_at_a_time(call: Callable[[], object], *, count: int, warm: int = 20) -> Measured:
    """Latency with one in flight, in milliseconds."""
    for _ in range(warm):
        call()
    took, end = [], time.perf_counter() + LONGEST_SECONDS
    for _ in range(count):
        begun = time.perf_counter()
        call()
        now = time.perf_counter()
        took.append((now - begun) * 1000)
        if now > end:
            raise TooSlow(f"{len(took)} of {count} calls in {LONGEST_SECONDS:g} s")
    return {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}


def many_futures(
    submit: Callable[[], Any], *, in_flight: int, count: int, server_pids: Sequence[int]
) -> Measured:
    """Calls per second over gRPC futures: one thread sends, so the generator stays cheap.

    Args:
        submit: begins a call and gives its gRPC future.
        in_flight: how many are kept under way.
        count: how many are measured, after `in_flight` that are not.
        server_pids: whose processor time is set against ours.
    """
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = time.perf_counter() + LONGEST_SECONDS

    def begin() -> None:
        submit().add_done_callback(done.put)

    def finish() -> None:
        try:
            done.get(timeout=max(0.0, end - time.perf_counter())).result()
        except queue.Empty as error:
            raise TooSlow(f"{in_flight} in flight, {count} calls: not in {LONGEST_SECONDS:g} s") from error

    for _ in range(in_flight):
        begin()
    for _ in range(in_flight):  # nothing is measured while the window fills
        finish()
        begin()
    meter = _Meter(server_pids)
    for _ in range(count):
        finish()
        begin()
    measured = meter.read(count)
    for _ in range(in_flight):
        finish()
    return measured


def many_threads(
    call: Callable[[], object], *, in_flight: int, count: int, server_pids: Sequence[int]
) -> Measured:
    """Calls per second of a call that blocks; for rates that threads do not limit."""
    with ThreadPoolExecutor(in_flight, thread_name_prefix="load") as pool:
        for warm in [pool.submit(call) for _ in range(in_flight)]:
            warm.result(LONGEST_SECONDS)
        meter = _Meter(server_pids)
        end = time.perf_counter() + LONGEST_SECONDS
        for future in [pool.submit(call) for _ in range(count)]:
            future.result(max(0.0, end - time.perf_counter()))
        return meter.read(count)


class _Meter:
    """Wall and processor time between two moments."""

    def __init__(self, server_pids: Sequence[int]) -> None:
        self._pids = server_pids
        self._server, self._own = cpu_seconds(server_pids), time.process_time()
        self._begun = time.perf_counter()

    def read(self, count: int) -> Measured:
        """Calls per second, and how much of a core either end used."""
        seconds = time.perf_counter() - self._begun
        return {
            "rate": count / seconds,
            "generator": (time.process_time() - self._own) / seconds,
            "server": (cpu_seconds(self._pids) - self._server) / seconds,
        }
