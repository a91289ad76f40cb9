"""The strict reading of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshgate_policies.engine import UNDEFINED
from meshgate_policies.judge import INVALID, Verdict, judge

GOOD = {"allow": True, "approval": None, "obligations": {}, "reasons": []}
DENIED = {"allow": False, "approval": None, "obligations": {}, "reasons": ["tool_not_granted"]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_well_formed_answers_are_taken():
    """An allow and a denial as our library gives them."""
    assert judge(GOOD) == Verdict(allow=True, reasons=())
    assert judge(DENIED) == Verdict(allow=False, reasons=("tool_not_granted",))


@pytest.mark.parametrize(
    "raw",
    [
        UNDEFINED,
        None,
        True,
        "allow",
        [],
        {},
        {"allow": True},
        GOOD | {"allow": "yes"},
        GOOD | {"allow": 1},
        GOOD | {"allow": None},
        GOOD | {"extra": None},
        {key: value for key, value in GOOD.items() if key != "obligations"},
        {key: value for key, value in GOOD.items() if key != "approval"},
        GOOD | {"reasons": None},
        GOOD | {"reasons": {}},
        GOOD | {"reasons": ["tool_not_granted"]},
        GOOD | {"obligations": []},
        GOOD | {"obligations": None},
        GOOD | {"approval": True},
        GOOD | {"approval": []},
        DENIED | {"reasons": []},
        DENIED | {"reasons": [1]},
        DENIED | {"reasons": ["Free text, for a model to obey"]},
        DENIED | {"reasons": ["line\nbreak"]},
        DENIED | {"reasons": ["r"] * 33},
    ],
)
def test_anything_else_is_denied_as_invalid(raw):
    """Undefined, mistyped, missing, additional or contradicting: denied."""
    assert judge(raw) == INVALID


def test_unknown_obligation_denies():
    """A duty that nobody here can keep voids the allow."""
    narrow = {"narrow": {"tools": {}}}
    verdict = judge(GOOD | {"obligations": narrow | {"log": {}}})
    assert verdict == Verdict(allow=False, reasons=("obligation_unknown",))
    assert judge(GOOD | {"obligations": narrow}) == Verdict(allow=True, reasons=(), obligations=narrow)


def test_approval_denies_whatever_allow_says():
    """Approvals do not exist yet, so asking for one is a denial that says what was asked."""
    asked = {"tool": "orders.refund"}
    assert judge(GOOD | {"approval": asked}) == Verdict(
        allow=False, reasons=("approval_required",), approval=asked
    )
    assert judge(DENIED | {"approval": asked, "reasons": ["approval_required"]}) == Verdict(
        allow=False, reasons=("approval_required",), approval=asked
    )


@given(JSON)
def test_arbitrary_json_is_never_an_allow(raw):
    """Whatever JSON comes back, only the one exact shape allows."""
    assert not judge(raw).allow


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_one_mutated_field_allows_only_if_it_says_the_same(key, value):
    """Each field matters."""
    mutated = GOOD | {key: value}
    assert judge(mutated).allow == (value == GOOD[key] and type(value) is type(GOOD[key]))
