"""A host that finds out what came of a call: each answer, and each way to give none."""

import threading
from dataclasses import replace

import pytest
from meshgate_toolhost import reconcile
from meshgate_toolhost.errors import ToolNotLoadable
from meshgate_toolhost.model import Failure, Finished, Result, ResultKind

TOOLS = '''
    import threading
    from meshgate_toolhost.context import idempotency_key

    book, effects, asked = {}, [], []
    gate, away = threading.Event(), threading.Event()

    def pay(order: str) -> str:
        """Pay an order."""
        effects.append(order)
        book[idempotency_key()] = f"{order} paid"
        return f"{order} paid"

    def slow(order: str) -> str:
        """Pay, and not in time."""
        effects.append(order)
        gate.wait(60)
        return f"{order} paid at last"

    def find(key, arguments):
        asked.append((key, dict(arguments)))
        return ("done", book[key]) if key in book else "not_begun"

    async def find_later(key, arguments):
        return find(key, arguments)

    def refused(key, arguments):
        return ("failed", "the card was refused")

    def shrugs(key, arguments):
        return "unknown"

    def raises(key, arguments):
        raise ConnectionError("the bank is away")

    def leaves(key, arguments):
        raise SystemExit(1)

    def hangs(key, arguments):
        away.wait(60)
        return "not_begun"

    def mumbles(key, arguments):
        return {"done": "paid"}

    def boasts(key, arguments):
        return ("done", "paid", "twice")

    def big(key, arguments):
        return ("done", "x" * 2_000_000)

    limit = 3
'''


@pytest.fixture
def module(project):
    name = project.write(TOOLS)
    yield name
    there = __import__(name)
    there.gate.set()
    there.away.set()


@pytest.fixture
def begin(project, module, start, monkeypatch):
    """A life of a host whose two tools have the named function."""
    monkeypatch.setattr(reconcile, "SECONDS", 0.5)

    def begin(function):
        tools = project.load(f"{module}:pay", f"{module}:slow")
        named = dict.fromkeys(tools, f"{module}:{function}")
        return start(reconcile.load(tools, named, project_root=project.folder))

    return begin


def lost(host, tool="orders.pay", state="sent", **more):
    """A call that an earlier process took."""
    call_id = host.put(tool, {"order": "A1"}, reconciles=True, **more)
    call = host.broker.calls[call_id]
    call.state, call.take, call.instance = state, 1, "an earlier process"
    return call_id, call


def told(host, call_id):
    """Delivers it again; what the gateway has then."""
    host.invoker.invoke(call_id)
    call = host.broker.calls[call_id]
    return call.state, call.reconciled, call.take


@pytest.mark.parametrize("function", ["find", "find_later"])
def test_what_took_effect_is_told_and_not_run(begin, module, function) -> None:
    """The payment is in the book: its receipt is the outcome, under the take that asked."""
    host, there = begin(function), __import__(module)
    call_id, call = lost(host)
    there.book[call_id] = "A1 paid"
    assert told(host, call_id) == ("done", True, 2)
    assert call.outcome.data == b"A1 paid"
    assert there.effects == []
    assert there.asked == [(call_id, {"order": "A1"})]


def test_what_had_not_begun_is_run_under_its_key(begin, module) -> None:
    """Once; the outcome is the tool's own."""
    host, there = begin("find"), __import__(module)
    call_id, _ = lost(host)
    assert told(host, call_id) == ("done", False, 2)
    assert (there.effects, list(there.book)) == (["A1"], [call_id])


def test_what_had_not_begun_in_time_has_failed(begin, module) -> None:
    """Held to be lost: it is not run, and that it did not begin is its end."""
    host, there = begin("find"), __import__(module)
    call_id, call = lost(host, state="unknown")
    assert told(host, call_id) == ("failed", True, 2)
    assert (call.outcome.error_class, there.effects) == ("not_begun", [])


def test_what_failed_has_failed(begin, module) -> None:
    """With the reason that the function gives."""
    host = begin("refused")
    call_id, call = lost(host)
    assert told(host, call_id) == ("failed", True, 2)
    assert call.outcome.message == "the card was refused"


@pytest.mark.parametrize("function", ["shrugs", "raises", "leaves", "hangs", "mumbles", "boasts"])
def test_whatever_else_it_does_is_unknown(begin, module, function) -> None:
    """Nothing runs, nothing is settled on a guess."""
    host, there = begin(function), __import__(module)
    call_id, call = lost(host)
    assert told(host, call_id) == ("unknown", True, 2)
    assert call.outcome.ambiguous
    assert there.effects == []


def test_a_result_that_cannot_be_told_is_no_second_payment(begin, module) -> None:
    """It took effect, and its result is too large: failed, as when the tool itself had given it."""
    host, there = begin("big"), __import__(module)
    call_id, call = lost(host)
    assert told(host, call_id) == ("failed", True, 2)
    assert (call.outcome.error_class, there.effects) == ("result_too_large", [])


def test_a_host_without_the_function_says_unknown(project, module, start) -> None:
    """The gateway asks, and this host cannot say."""
    host = start(project.load(f"{module}:pay"))
    call_id, _ = lost(host)
    assert told(host, call_id) == ("unknown", True, 2)
    gone, _ = lost(host)
    host.broker.calls[gone].tool = "orders.nothing"
    assert told(host, gone) == ("unknown", True, 2)
    assert __import__(module).effects == []


def test_what_we_wrote_down_ourselves_comes_first(begin, module) -> None:
    """The outcome was on disk and its delivery lost: the function is not asked."""
    host, there = begin("find"), __import__(module)
    call_id, call = lost(host)
    host.finished.record(Finished(call_id, 1, "an earlier process", Result(ResultKind.TEXT, b"receipt")))
    assert told(host, call_id)[0] == "done"
    assert (call.outcome.data, there.asked, there.effects) == (b"receipt", [], [])


def test_a_doubt_that_we_wrote_down_is_asked_about(begin, module) -> None:
    """A deadline that was missed, told to nobody: the book knows better."""
    host, there = begin("find"), __import__(module)
    call_id, _ = lost(host)
    there.book[call_id] = "A1 paid"
    host.finished.record(
        Finished(call_id, 1, "an earlier process", Failure("timeout", "late", ambiguous=True))
    )
    assert told(host, call_id) == ("done", True, 2)


def test_at_the_deadline_only_a_result_is_believed(begin, module) -> None:
    """The body is still under way: `not begun` may be wrong in a moment; a receipt cannot be."""
    host, there = begin("find"), __import__(module)
    paid = host.put("orders.slow", {"order": "A1"}, reconciles=True, deadline_seconds=0.3)
    there.book[paid] = "A1 paid"
    assert told(host, paid) == ("done", True, 1)
    open_still = host.put("orders.slow", {"order": "A2"}, reconciles=True, deadline_seconds=0.3)
    assert told(host, open_still) == ("unknown", False, 1)
    assert told(host, open_still) == ("unknown", False, 1)  # not taken again: its body goes on
    there.gate.set()
    assert host.broker.wait_for(open_still, "done").outcome.data == b"A2 paid at last"
    assert there.effects == ["A1", "A2"]


def test_an_answer_that_found_no_gateway_is_sent_again(begin, module, broker) -> None:
    """The gateway was away when it was to be told."""
    host, there = begin("find"), __import__(module)
    call_id, _ = lost(host)
    there.book[call_id] = "A1 paid"
    broker.away.add("FinishCall")
    thread = threading.Thread(target=host.invoker.invoke, args=(call_id,))
    thread.start()
    thread.join(20)
    broker.away.clear()
    assert broker.wait_for(call_id, "done").reconciled


@pytest.mark.parametrize(
    ("tool", "named"),
    [("orders.pay", "nowhere:find"), ("orders.pay", "{}:limit"), ("orders.nothing", "{}:find"),
     ("orders.pay", "{}:gone")],
)  # fmt: skip
def test_a_name_that_leads_nowhere_stops_the_host(project, module, tool, named) -> None:
    """Before it serves anything."""
    tools = project.load(f"{module}:pay")
    with pytest.raises(ToolNotLoadable):
        reconcile.load(tools, {tool: named.format(module)}, project_root=project.folder)


def test_the_function_is_no_part_of_the_definition(project, module) -> None:
    """Calls that were decided on before it was written can be reconciled by it."""
    from meshgate_toolhost import definitions

    (tool,) = project.load(f"{module}:pay").values()
    assert definitions.digest(tool) == definitions.digest(replace(tool, reconcile=print))


def test_at_the_deadline_no_failure_is_believed(begin, module) -> None:
    """The card was refused, says the bank, and the body has not come to its end."""
    host = begin("refused")
    call_id = host.put("orders.slow", {"order": "A1"}, reconciles=True, deadline_seconds=0.3)
    assert told(host, call_id) == ("unknown", False, 1)
