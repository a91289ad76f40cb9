"""The launcher's side of `execute: agent`, part by part."""

import pytest
from meshgate_agents.child.framing import BadFrame
from meshgate_agents.launcher.errors import AttemptEnded, Differs
from meshgate_agents.launcher.gateway import Answer
from meshgate_agents.launcher.own_tools import OwnTools

DONE = {"state": "done", "kind": "text", "data": "staged"}
KEY = "a" * 64


class Gateway:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told = []

    def finish_own(self, **given):
        self.told.append(given)
        return Answer(state="done", call_id=given["call_id"], kind="text", result=given["told"].data)


def parts(*, live: bool = True) -> tuple[OwnTools, Gateway]:
    gateway = Gateway()
    return OwnTools(gateway=gateway, attempt=3, ask=lambda ask: ask(), live=live), gateway


def permit(own: OwnTools, *, recorded: bool = False, state: str = "run", text: str = "") -> None:
    answer = Answer(state=state, call_id="c1", kind="text", result=text, arguments="{}", take=2)
    given = own.permit(KEY, answer, recorded=recorded, limit_bytes=10, name="stage")
    assert given == {"state": "run", "call_id": "c1", "arguments": "{}", "max_result_bytes": 10}


def test_an_outcome_without_a_permit_is_refused() -> None:
    """Also a second one for the same permit."""
    own, gateway = parts()
    with pytest.raises(BadFrame):
        own.ran(KEY, DONE)
    permit(own)
    own.ran(KEY, DONE)
    with pytest.raises(BadFrame):
        own.ran(KEY, DONE)
    assert len(gateway.told) == 1


def test_a_step_that_is_under_way_is_not_run_twice() -> None:
    """Two threads with one step key."""
    own, _ = parts()
    permit(own)
    assert own.holds(KEY)
    with pytest.raises(AttemptEnded):
        permit(own)


def test_a_live_outcome_goes_to_the_gateway_with_attempt_and_take() -> None:
    """One on record goes there only when it differs, and without a take."""
    own, gateway = parts()
    permit(own)
    assert own.ran(KEY, DONE)[0].result == "staged"
    permit(own, recorded=True, state="done", text="staged")
    answer, replayed = own.ran(KEY, DONE)
    assert (answer.result, replayed) == ("staged", True)
    permit(own, recorded=True, state="done", text="other")
    own.ran(KEY, DONE)
    assert [(told["attempt"], told["take"]) for told in gateway.told] == [(3, 2), (3, 0)]


def test_a_replay_tells_nobody() -> None:
    """It names both sides and ends."""
    own, gateway = parts(live=False)
    permit(own, recorded=True, state="done", text="other")
    with pytest.raises(Differs, match="recorded 'other', now 'staged'"):
        own.ran(KEY, DONE)
    assert gateway.told == []


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"state": "unknown", "data": ""},
        {**DONE, "kind": "pickle"},
        {**DONE, "data": 1},
        {"state": "failed", "error_class": "x" * 200, "data": ""},
    ],
)
def test_what_is_no_outcome_is_refused(odd) -> None:
    """Its permit stays, so a sound one may follow."""
    own, gateway = parts()
    permit(own)
    with pytest.raises(BadFrame):
        own.ran(KEY, odd)
    assert own.holds(KEY)
    assert gateway.told == []
