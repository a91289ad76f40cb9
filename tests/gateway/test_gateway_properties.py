"""Properties: strict JSON against the library's own reading, and the ledger as a state machine."""

import json
import tempfile
from pathlib import Path

import pytest
import rfc8785
from fakes.gateway_parts import peer
from gateway.conftest import make_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from meshgate_gateway import calls, ledger
from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import Refused
from meshgate_gateway.model import Outcome, State

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_strict_reading_agrees_with_the_library_or_refuses(value: object) -> None:
    """What is accepted means what every reader thinks it means, and is stable when written again."""
    raw = json.dumps(value).encode()
    try:
        read = calls.parse_strict(raw)
    except calls.ArgumentsRefused as refused:
        assert refused.reason == "arguments_case_variant_keys"  # noqa: PT017 - one of two good ends
        return
    assert read == value
    assert calls.parse_strict(rfc8785.dumps(read)) == read


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """No input makes the parser fail in any other way."""
    try:
        calls.parse_strict(raw)
    except calls.ArgumentsRefused as refused:
        assert refused.reason.startswith("arguments_")  # noqa: PT017 - one of two good ends


@given(st.tuples(TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT))
def test_call_ids_differ_whenever_their_parts_do(
    one: tuple[str, str, str], two: tuple[str, str, str]
) -> None:
    """Length prefixes: no shift of a character between the parts gives the same id."""
    ids = [calls.call_id(caller=a, run_id=b, step_key=c) for a, b, c in (one, two)]
    assert (ids[0] == ids[1]) == (one == two)


def test_size_is_bounded_before_anything_is_parsed() -> None:
    """Too many bytes are refused however little they mean."""
    with pytest.raises(calls.ArgumentsRefused) as caught:
        calls.parse_strict(b" " * calls.MAX_ARGUMENTS_BYTES + b"{}")
    assert caught.value.reason == "arguments_too_large"


def test_the_ledger_has_no_other_steps() -> None:
    """Settled states have no way out, and nothing comes before its beginning."""
    for state in ledger.SETTLED:
        assert ledger.NEXT[state] == frozenset()
    with pytest.raises(RuntimeError):
        ledger.check(None, State.SENT)
    with pytest.raises(RuntimeError):
        ledger.check(State.RESERVED, State.DONE)
    with pytest.raises(RuntimeError):
        ledger.check(State.DONE, State.FAILED)


class LedgerMachine(RuleBasedStateMachine):
    """Takes, finishes, asks and sweeps in any order: an unrepeatable call never begins twice."""

    def __init__(self) -> None:
        super().__init__()
        self._dir = tempfile.TemporaryDirectory()
        self.world = make_world(SqliteStore(path=Path(self._dir.name) / "g.db"))
        self.world.begin()
        self.world.runtime.held = True
        self.call_id = ""
        self.begun: list[int] = []
        self.seen: list[State] = []

    def teardown(self) -> None:
        self.world.store.close()
        self._dir.cleanup()

    @rule()
    def ask(self) -> None:
        self.call_id = self.world.call().call_id

    @precondition(lambda self: self.call_id)
    @rule(app=st.sampled_from(["orders", "orders", "other", "desk"]), instance=st.sampled_from("ab"))
    def take(self, app: str, instance: str) -> None:
        try:
            taken = self.world.hosts.take(peer(app), call_id=self.call_id, host_instance=instance)
        except Refused:
            return
        assert app == "orders"
        self.begun.append(taken.row.take)

    @precondition(lambda self: self.call_id)
    @rule(
        app=st.sampled_from(["orders", "orders", "other"]),
        take=st.integers(0, 2),
        state=st.sampled_from([State.DONE, State.FAILED, State.UNKNOWN]),
    )
    def finish(self, app: str, take: int, state: State) -> None:
        outcome = Outcome(state, b"x", "text" if state is State.DONE else "", "E")
        try:
            self.world.hosts.finish(
                peer(app), call_id=self.call_id, take=take, host_instance="a", outcome=outcome
            )
        except Refused:
            return
        assert app == "orders"
        assert take in self.begun

    @rule()
    def pass_time(self) -> None:
        self.world.clock.ms += 40_000
        self.world.sweeper.sweep()

    @invariant()
    def never_begun_twice_and_only_legal_steps(self) -> None:
        assert len(self.begun) <= 1
        if self.call_id:
            state = self.world.row(self.call_id).state
            if self.seen and self.seen[-1] is not state:
                assert state in ledger.NEXT[self.seen[-1]]
            self.seen.append(state)


LedgerMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestLedger(LedgerMachine.TestCase):
    """The machine, run by pytest."""
