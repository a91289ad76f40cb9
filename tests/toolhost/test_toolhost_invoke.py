"""Deliveries, faults included: what runs, what is answered, what is written down."""

import json
import threading
import time

import pytest
from meshgate_toolhost.errors import GatewayUnavailable, LedgerUnavailable
from meshgate_wire import broker_pb2 as pb

TOOLS = '''
    import threading
    from pydantic import BaseModel
    from meshgate_toolhost.context import idempotency_key

    effects = []
    gate = threading.Event()

    class Receipt(BaseModel):
        order: str
        cents: int

    def refund(order: str, cents: int) -> Receipt:
        """Gives money back."""
        effects.append((order, cents, idempotency_key()))
        return Receipt(order=order, cents=cents)

    def echo(text: str) -> str:
        effects.append(text)
        return text

    def fails() -> str:
        raise RuntimeError("the bank said\\nno, key SECRET-VALUE")

    def leaves() -> str:
        raise SystemExit(3)

    def hangs(text: str) -> str:
        effects.append(text)
        gate.wait(60)
        return "late " + text

    def big() -> str:
        return "x" * 10_000_000

    def odd() -> object:
        return object()

    async def asynchronous(x: int) -> dict[str, int]:
        return {"x": x}
'''
NAMES = ("refund", "echo", "fails", "leaves", "hangs", "big", "odd", "asynchronous")


@pytest.fixture
def module(project):
    return project.write(TOOLS)


@pytest.fixture
def tools(project, module):
    return project.load(*(f"{module}:{name}" for name in NAMES))


@pytest.fixture
def effects(tools, module):
    return __import__(module).effects


@pytest.fixture
def gate(tools, module):
    event = __import__(module).gate
    yield event
    event.set()


def eventually(check, seconds=15.0):
    """Polls until `check` holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not come to pass"
        time.sleep(0.01)


def test_result_of_a_model_comes_back_as_json(start, tools, effects):
    """A pydantic result is JSON by its schema; the body sees the idempotency key."""
    call = start(tools).call("orders.refund", {"order": "A-1", "cents": 500})
    assert (call.state, call.outcome.kind) == ("done", pb.RESULT_KIND_JSON)
    assert json.loads(call.outcome.data) == {"order": "A-1", "cents": 500}
    assert effects[0][:2] == ("A-1", 500)
    assert effects[0][2].startswith("c")


def test_text_stays_text(start, tools):
    """A str is text even if it reads like JSON."""
    call = start(tools).call("orders.echo", {"text": '{"a": 1} ü'})
    assert (call.outcome.kind, call.outcome.data.decode()) == (pb.RESULT_KIND_TEXT, '{"a": 1} ü')


def test_async_function_is_awaited(start, tools):
    """An async body gives its value."""
    assert json.loads(start(tools).call("orders.asynchronous", {"x": 2}).outcome.data) == {"x": 2}


def test_a_raising_tool_is_a_failure_on_one_line_without_secrets(start, tools):
    """What a tool raises is its outcome; the host's secrets are cut out."""
    call = start(tools, withheld=("SECRET-VALUE",)).call("orders.fails", {})
    assert (call.state, call.outcome.error_class) == ("failed", "tool_raised")
    assert call.outcome.message == "RuntimeError: the bank said no, key [secret]"


def test_system_exit_in_a_tool_is_a_failure(start, tools):
    """A tool that calls sys.exit does not end the host."""
    assert start(tools).call("orders.leaves", {}).outcome.error_class == "tool_raised"


@pytest.mark.parametrize(("tool", "failure"), [("big", "result_too_large"), ("odd", "result_not_json")])
def test_unusable_results_are_failures(start, tools, tool, failure):
    """10 MB, or no JSON: a failure with its own class, not ambiguous."""
    call = start(tools).call(f"orders.{tool}", {})
    assert (call.state, call.outcome.error_class, call.outcome.ambiguous) == ("failed", failure, False)


def test_result_limit_can_be_set_per_tool(start, tools, limits):
    """An override of the manifest is kept."""
    host = start(tools, limits={"orders.echo": limits(max_result_bytes=3)})
    assert host.call("orders.echo", {"text": "abcd"}).outcome.error_class == "result_too_large"


def test_wrong_arguments_do_not_reach_the_body(start, tools, effects):
    """The host validates again; an extra key is refused."""
    host = start(tools)
    assert host.call("orders.echo", {"text": 3}).state == "failed"
    assert host.call("orders.echo", {"text": "a", "more": 1}).state == "failed"
    assert host.call("orders.echo", b"[1]").outcome.error_class == "arguments_invalid"
    assert effects == []


def test_another_definition_is_not_run(start, tools, effects):
    """A call decided on for another definition of the tool does not run."""
    call = start(tools).call("orders.echo", {"text": "a"}, definition_sha256="0" * 64)
    assert (call.state, call.outcome.error_class, call.outcome.ambiguous) == (
        "failed",
        "definition_changed",
        False,
    )
    assert effects == []


def test_a_tool_of_another_host_is_not_run(start, tools, broker):
    """The gateway hands out a tool that is not here: a failure, not a crash."""
    call_id = broker.put("c" + "a" * 40, "files.read", {}, "0" * 64)
    start(tools).invoker.invoke(call_id)
    assert broker.calls[call_id].outcome.error_class == "tool_missing"


def test_a_call_nobody_decided_has_no_effect(start, tools, effects, broker):
    """An unknown id is refused by the gateway, and that is the end of it."""
    start(tools).invoker.invoke("c" + "0" * 40)
    assert effects == []
    assert broker.refusals == [("c" + "0" * 40, "call_not_owned")]


def test_delivered_twice_after_finish_has_one_effect_and_one_refusal(start, tools, effects, broker):
    """The second delivery is asked about, refused (so the gateway records it), and changes nothing."""
    host = start(tools)
    call_id = host.put("orders.echo", {"text": "once"})
    host.invoker.invoke(call_id)
    host.invoker.invoke(call_id)
    assert effects == ["once"]
    assert broker.refusals == [(call_id, "call_settled")]


def test_a_gateway_that_forgot_does_not_make_it_run_again(start, tools, effects, broker):
    """Our own ledger stands even if the gateway would hand the call out anew."""
    host = start(tools)
    call = host.call("orders.echo", {"text": "once"})
    call.state = "reserved"
    host.invoker.invoke(next(iter(broker.calls)))
    assert effects == ["once"]
    assert (call.state, call.outcome.error_class) == ("unknown", "already_finished")


def test_two_deliveries_at_once_run_once(start, tools, effects, gate, broker):
    """The second delivery joins the first."""
    host = start(tools)
    call_id = host.put("orders.hangs", {"text": "a"}, effect="read")
    threads = [host.in_background(call_id), host.in_background(call_id)]
    eventually(lambda: effects == ["a"])
    gate.set()
    for thread in threads:
        thread.join(20)
    assert effects == ["a"]
    assert broker.calls[call_id].state == "done"
    assert [method for method, _ in broker.asked].count("TakeCall") == 1


@pytest.mark.parametrize(("effect", "state"), [("read", "failed"), ("irreversible", "unknown")])
def test_past_the_deadline(start, tools, gate, effect, state):
    """A hanging body is answered for: `failed` when it only reads, else `unknown`."""
    call = start(tools).call("orders.hangs", {"text": "a"}, effect=effect, deadline_seconds=0.3)
    assert (call.state, call.outcome.error_class) == (state, "timeout")
    assert call.outcome.ambiguous == (effect != "read")


def test_a_late_completion_settles_the_unknown(start, tools, gate, broker):
    """What the body gives in the end is sent and written down."""
    host = start(tools)
    call_id = host.put("orders.hangs", {"text": "a"}, deadline_seconds=0.3)
    host.invoker.invoke(call_id)
    assert broker.calls[call_id].state == "unknown"
    gate.set()
    assert broker.wait_for(call_id, "done").outcome.data == b"late a"


def test_the_hosts_own_deadline_is_the_shorter_one(start, tools, gate, limits):
    """An override cuts a body before the gateway's deadline."""
    host = start(tools, limits={"orders.hangs": limits(deadline_seconds=0.2)})
    begun = time.monotonic()
    assert host.call("orders.hangs", {"text": "a"}, deadline_seconds=60).outcome.error_class == "timeout"
    assert time.monotonic() - begun < 10


def test_a_deadline_that_has_passed_starts_nothing(start, tools, effects):
    """No body begins after its deadline; then nothing is ambiguous."""
    call = start(tools).call("orders.echo", {"text": "a"}, deadline_seconds=-1)
    assert (call.state, call.outcome.error_class) == ("failed", "timeout")
    assert effects == []


def test_restart_between_finished_and_finish_call_sends_again(start, tools, effects, broker):
    """The outcome of a host that died before FinishCall is delivered by the next one, without a rerun."""
    first = start(tools)
    call_id = first.put("orders.refund", {"order": "A-1", "cents": 5})
    broker.away.add("FinishCall")
    first.invoker.invoke(call_id)
    assert broker.calls[call_id].state == "sent"
    first.close()
    broker.away.clear()
    second = start(tools)
    assert second.left == 1
    assert broker.wait_for(call_id, "done").outcome.kind == pb.RESULT_KIND_JSON
    eventually(lambda: second.finished.undelivered() == [])
    assert len(effects) == 1


def test_finish_is_repeated_until_the_gateway_is_back(start, tools, effects, broker):
    """The gateway is away for FinishCall: the outcome waits and arrives, once."""
    host = start(tools)
    broker.away.add("FinishCall")
    call_id = host.put("orders.echo", {"text": "a"})
    host.invoker.invoke(call_id)
    broker.away.clear()
    broker.wait_for(call_id, "done")
    assert effects == ["a"]


def test_a_lost_finish_answer_is_sent_again(start, tools, effects, broker):
    """Stored but reported failed: the repetition is no error and nothing runs twice."""
    host = start(tools)
    broker.lose_answers["FinishCall"] = 1
    call_id = host.put("orders.echo", {"text": "a"})
    host.invoker.invoke(call_id)
    eventually(lambda: host.finished.undelivered() == [])
    assert (broker.calls[call_id].state, effects) == ("done", ["a"])


def test_redelivery_while_the_outcome_waits_resends_and_does_not_run(start, tools, effects, broker):
    """A second delivery before FinishCall arrived finds the outcome in our ledger."""
    first = start(tools)
    call_id = first.put("orders.echo", {"text": "a"}, idempotent=True)
    broker.away.add("FinishCall")
    first.invoker.invoke(call_id)
    first.close()
    second = start(tools)
    broker.away.clear()
    second.invoker.invoke(call_id)
    assert broker.wait_for(call_id, "done").outcome.data == b"a"
    assert effects == ["a"]


def test_outcome_is_given_under_the_new_take(start, tools, effects, broker):
    """Taken anew meanwhile: the known outcome is delivered under the newer take."""
    host = start(tools)
    broker.away.add("FinishCall")
    call_id = host.put("orders.echo", {"text": "a"}, idempotent=True)
    host.invoker.invoke(call_id)
    broker.calls[call_id].take = 7
    broker.away.clear()
    eventually(lambda: (call_id, "take_superseded") in broker.refusals)
    host.invoker.invoke(call_id)
    assert (broker.wait_for(call_id, "done").take, effects) == (8, ["a"])


def test_gateway_away_at_take_means_nothing_ran(start, tools, effects, broker, monkeypatch):
    """No verdict is no permission."""
    monkeypatch.setattr("meshgate_toolhost.invoke.TAKE_PATIENCE_SECONDS", 0.2)
    host = start(tools)
    broker.away.add("TakeCall")
    call_id = host.put("orders.echo", {"text": "a"})
    with pytest.raises(GatewayUnavailable):
        host.invoker.invoke(call_id)
    assert effects == []


def test_gateway_back_in_time_is_waited_for(start, tools, effects, broker):
    """A gateway that restarts delays a call, no more."""
    host = start(tools)
    broker.away.add("TakeCall")
    call_id = host.put("orders.echo", {"text": "a"})
    thread = host.in_background(call_id)
    broker.away.clear()
    thread.join(20)
    assert (broker.calls[call_id].state, effects) == ("done", ["a"])


def test_a_lost_take_answer_is_settled_as_never_started(start, tools, effects, broker):
    """Taken, but the answer was lost: this process knows that nothing began, and says so."""
    host = start(tools)
    broker.lose_answers["TakeCall"] = 1
    call = host.call("orders.echo", {"text": "a"})
    assert (call.state, call.outcome.error_class, effects) == ("failed", "never_started", [])


def test_a_lost_take_answer_of_a_repeatable_tool_runs_once(start, tools, effects, broker):
    """A tool that takes the key is simply taken again."""
    host = start(tools)
    broker.lose_answers["TakeCall"] = 1
    call = host.call("orders.echo", {"text": "a"}, idempotent=True)
    assert (call.state, call.take, effects) == ("done", 2, ["a"])


def test_interrupted_call_is_not_run_again(start, tools, effects, broker, monkeypatch):
    """Taken before and not repeatable: the host does not run it even if handed it."""
    host = start(tools)
    call_id = host.put("orders.echo", {"text": "a"})
    taken = host.invoker._gateway.take(call_id, "another")
    monkeypatch.setattr(
        host.invoker._gateway, "take", lambda *_: __import__("dataclasses").replace(taken, taken_before=True)
    )
    host.invoker.invoke(call_id)
    assert effects == []
    assert (broker.calls[call_id].state, broker.calls[call_id].outcome.error_class) == (
        "unknown",
        "interrupted",
    )


def test_a_ledger_that_cannot_be_written_stops_everything(start, tools, effects, monkeypatch):
    """Nothing is taken when the outcome could not be written down."""
    host = start(tools)
    call_id = host.put("orders.echo", {"text": "a"})
    host.finished._durable.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerUnavailable):
        host.invoker.invoke(call_id)
    assert (effects, host.broker.asked) == ([], [])


def test_clear_text_leaves_the_ledger_once_delivered(start, tools, tmp_path):
    """A delivered result is no longer in the host's row; the row stays; the file is private."""
    host = start(tools)
    call_id = host.put("orders.echo", {"text": "NEEDLE"})
    host.invoker.invoke(call_id)
    row = host.finished.get(call_id)
    assert row is not None
    assert row.outcome is None
    assert (tmp_path / "hosts" / "orders.db").stat().st_mode & 0o777 == 0o600


def test_many_at_once(start, tools, effects):
    """Deliveries do not wait for each other."""
    host = start(tools)
    ids = [host.put("orders.echo", {"text": str(n)}) for n in range(40)]
    threads = [threading.Thread(target=host.invoker.invoke, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(effects, key=int) == [str(n) for n in range(40)]
    assert {host.broker.calls[one].state for one in ids} == {"done"}
