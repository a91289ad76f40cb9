"""The activity's one input shape, and its independence from the event loop and from hanging work."""

import asyncio
import threading

import pytest
from meshgate_toolhost.activity import make_activity, parse_input
from meshgate_toolhost.errors import GatewayUnavailable

CALL = "c" + "1" * 40


@pytest.mark.parametrize(
    "given",
    [
        None,
        CALL,
        [CALL],
        {},
        {"call_id": 1},
        {"call_id": ""},
        {"call_id": CALL.upper()},
        {"call_id": CALL + "\n"},
        {"call_id": CALL, "tool": "orders.refund"},
        {"call_id": CALL, "arguments": {}},
        {"callId": CALL},
    ],
    ids=repr,
)
def test_other_shapes_are_ignored(given):
    """Nothing is asked and nothing runs for any other input."""
    asked = []
    asyncio.run(make_activity(asked.append)(None, given))
    assert (parse_input(given), asked) == (None, [])


def test_the_call_id_is_handed_on():
    """Exactly the documented shape."""
    asked = []
    asyncio.run(make_activity(asked.append)(None, {"call_id": CALL}))
    assert asked == [CALL]


def test_no_verdict_fails_the_activity():
    """So that Dapr and the gateway see that nothing came of this delivery."""

    def away(_):
        raise GatewayUnavailable("away")

    with pytest.raises(GatewayUnavailable):
        asyncio.run(make_activity(away)(None, {"call_id": CALL}))


def test_deliveries_run_beside_each_other():
    """More at once than any thread pool has workers."""
    barrier = threading.Barrier(32, timeout=20)
    activity = make_activity(lambda _: barrier.wait() and None)

    async def all_at_once():
        await asyncio.gather(*(activity(None, {"call_id": f"c{n:040x}"}) for n in range(32)))

    asyncio.run(all_at_once())


def test_a_hanging_delivery_does_not_keep_the_process():
    """Its thread is a daemon."""
    hang, begun = threading.Event(), threading.Event()
    seen = []

    def body(_):
        seen.append(threading.current_thread())
        begun.set()
        hang.wait(60)

    async def cancelled():
        task = asyncio.create_task(make_activity(body)(None, {"call_id": CALL}))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancelled())
    assert seen[0].daemon
    hang.set()
    seen[0].join(10)
