"""The policy in force: switched between decisions, never within one."""

import threading

import pytest
from fakes.gateway_parts import ProgrammedPolicy
from meshgate_gateway import policy as policies
from meshgate_gateway.errors import PolicyBusy, StoreUnavailable
from meshgate_gateway.policy import ActivePolicy, PolicySlot

OLD, NEW = ActivePolicy(ProgrammedPolicy(), "r1", "d1"), ActivePolicy(ProgrammedPolicy(), "r2", "d2")
WAIT_SECONDS = 20


def _in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_switch_waits_for_the_decisions_under_way() -> None:
    """While one lasts the activation is not recorded, and a decision that comes later gets the new policy."""
    slot, log, recorded = PolicySlot(active=OLD), [], threading.Event()

    def switch() -> None:
        slot.activate(NEW, record=lambda: (log.append("activated"), recorded.set()))

    def decide() -> None:
        with slot.deciding() as policy:
            log.append(policy.revision)

    with slot.deciding() as policy:
        switching = _in_thread(switch)
        while not slot._switching:
            threading.Event().wait(0.001)
        later = _in_thread(decide)
        assert not recorded.wait(0.05)
        log.append(policy.revision)
    switching.join(WAIT_SECONDS)
    later.join(WAIT_SECONDS)
    assert log == ["r1", "activated", "r2"]


def test_a_decision_that_does_not_end_keeps_the_old_policy(monkeypatch) -> None:
    """The switch gives up, nothing is recorded, and decisions go on."""
    monkeypatch.setattr(policies, "SWITCH_SECONDS", 0.05)
    slot, recorded = PolicySlot(active=OLD), []
    with slot.deciding(), pytest.raises(PolicyBusy):
        slot.activate(NEW, record=lambda: recorded.append(1))
    with slot.deciding() as policy:
        assert (policy, recorded) == (OLD, [])


def test_an_activation_that_cannot_be_recorded_does_not_happen() -> None:
    """A full store keeps the old policy in force, and the next activation works."""
    slot = PolicySlot(active=OLD)

    def fails() -> None:
        raise StoreUnavailable(detail="full")

    with pytest.raises(StoreUnavailable):
        slot.activate(NEW, record=fails)
    assert slot.active is OLD
    slot.activate(NEW, record=lambda: None)
    assert slot.active is NEW


def test_a_failing_decision_does_not_block_the_switch() -> None:
    """What a decision raises leaves no trace in the slot."""
    slot = PolicySlot(active=OLD)
    with pytest.raises(ZeroDivisionError), slot.deciding():
        raise ZeroDivisionError
    slot.activate(NEW, record=lambda: None)
    assert slot.active is NEW
