"""Step keys and scopes: what enters a key, and what must not."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshgate_agents.child import scopes
from meshgate_agents.child.step_keys import content_digest, digest, step_key

PINNED = "86995ac4568dfe12004b65a167f7d2691bedb9d018c3a172004c8e977bd53736"
BASE = {"scope": ("program p", "task t"), "turn": 1, "kind": "tool", "content": "c", "occurrence": "nth 0"}


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_no_two_lists_of_parts_collide(one, two):
    """Lengths are part of what is hashed."""
    assert (digest(one) == digest(two)) == (one == two)


@pytest.mark.parametrize(
    "change",
    [
        {"scope": ("program p",)},
        {"scope": ("program p", "task t", "agent a")},
        {"scope": ("program ptask t",)},
        {"turn": 2},
        {"kind": "model"},
        {"content": "d"},
        {"occurrence": "nth 1"},
        {"occurrence": "id nth 0"},
    ],
)
def test_each_part_changes_the_key(change):
    """And the same parts give the same key."""
    assert step_key(**BASE) == step_key(**BASE)
    assert step_key(**{**BASE, **change}) != step_key(**BASE)


def test_a_key_is_pinned():
    """A changed computation would make every stored key unknown: change VERSION with it."""
    content = content_digest(subject="t:f 00", content=b'{"a":1}')
    assert step_key(**{**BASE, "content": content}) == PINNED


def test_equal_calls_of_a_turn_are_counted_and_a_reply_starts_anew():
    """The n-th equal call; after a model reply the turn tells them apart."""
    with scopes.opened(kind="task", key="counting") as scope:
        first, second = (scopes.tool_step(subject="s", arguments=b"{}") for _ in range(2))
        scope.replied()
        third = scopes.tool_step(subject="s", arguments=b"{}")
    assert [first["occurrence"], second["occurrence"], third["occurrence"]] == ["nth 0", "nth 1", "nth 0"]
    assert len({first["key"], second["key"], third["key"]}) == 3


def test_native_twins_are_told_apart_by_id_and_not_by_arrival():
    """Whatever thread comes first, the id gives the key."""

    def keys(order):
        found = {}
        with scopes.opened(kind="task", key=f"twins {order}") as scope:
            scope.path = ("fixed",)
            for call_id in order:
                with scopes.tool_call(call_id):
                    found[call_id] = scopes.tool_step(subject="s", arguments=b"{}")["key"]
        return found

    assert keys("abc") == keys("cba")


def test_what_a_tool_call_opens_belongs_to_that_call():
    """Two parallel delegations to one coworker: each coworker's scope names its own call."""
    paths = {}

    def delegate(call_id):
        with scopes.tool_call(call_id), scopes.opened(kind="agent", key="payer") as scope:
            paths[call_id] = scope.path

    with scopes.opened(kind="task", key="parallel"):
        import contextvars

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(delegate, call_id))
            for call_id in ("x", "y")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert paths["x"][-1] == "agent payer 0/x 0"
    assert paths["y"][-1] == "agent payer 0/y 0"


def test_a_retry_is_the_same_task_and_an_equal_one_is_another():
    """Not how often it was opened counts, but which object it is, and below which kickoff."""

    def task(thing, kickoff):
        with (
            scopes.opened(kind="kickoff", key=kickoff),
            scopes.opened(kind="task", key="t", thing=thing) as outer,
        ):
            with scopes.opened(kind="agent", key="a"):
                first = scopes.tool_step(subject="s", arguments=b"{}")
            with scopes.opened(kind="agent", key="a"):
                again = scopes.tool_step(subject="s", arguments=b"{}")
        assert first["scope"] != again["scope"]
        assert first["task"] == again["task"] == outer.task
        return outer.task

    assert task("x", "retried") != task("x", "retried")  # two kickoffs
    with scopes.opened(kind="kickoff", key="one"):
        found = []
        for thing in ("x", "x", "y"):
            with scopes.opened(kind="task", key="t", thing=thing) as scope:
                found.append(scope.task)
    assert found[0] == found[1] != found[2]
    assert scopes.tool_step(subject="s", arguments=b"{}")["task"] == ""
