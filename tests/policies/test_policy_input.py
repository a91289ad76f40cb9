"""What a rule sees, and what it may use."""

import dataclasses
import json

import jsonschema
import pytest
from meshgate_policies import capabilities, generate, policy_input, resources
from meshgate_policies.policy_input import (
    UNCHECKED,
    CallerInput,
    CallInput,
    DelegatorInput,
    PolicyInput,
    RunInput,
)

CALLER = CallerInput(spiffe_id="spiffe://d/ns/m/desk", trust_domain="d", namespace="m", app="desk")
CALL = CallInput(
    tool="orders.refund", host="orders", effect="irreversible", kind="tool", args={"amount": 5},
    args_sha256="00", definition_sha256="11",
)  # fmt: skip
RUN = RunInput(id="r1", attempt=1, origin="start", labels={"team": "a"})
ABOVE = DelegatorInput(
    spiffe_id="spiffe://d/ns/m/front", trust_domain="d", namespace="m", app="front", run_id="r0"
)
INPUT = PolicyInput(
    caller=CALLER, call=CALL, run=RUN, delegation=(ABOVE,), approval=None, budget={},
    time="2026-01-01T00:00:00Z", untrusted={"role": "Clerk"},
)  # fmt: skip


def test_every_field_is_sorted_into_checked_and_unchecked():
    """A new field of `input` is listed here, with what checks it, or this fails."""
    assert policy_input.provenance() == {
        "caller": "certificate",
        "caller.spiffe_id": "certificate",
        "caller.trust_domain": "certificate",
        "caller.namespace": "certificate",
        "caller.app": "certificate",
        "call": "catalogue",
        "call.tool": "catalogue",
        "call.host": "catalogue",
        "call.effect": "catalogue",
        "call.kind": "catalogue",
        "call.args": "strict parse and the tool's schema",
        "call.args_sha256": "computed",
        "call.definition_sha256": "catalogue",
        "run": "store",
        "run.id": "store",
        "run.attempt": "store",
        "run.origin": "store",
        "run.labels": "store",
        "delegation": "store",
        "delegation.spiffe_id": "store",
        "delegation.trust_domain": "store",
        "delegation.namespace": "store",
        "delegation.app": "store",
        "delegation.run_id": "store",
        "approval": "store",
        "budget": "store",
        "time": "the gateway's clock",
        "untrusted": UNCHECKED,
    }


def test_field_without_provenance_is_refused():
    """Forgetting to say what checks a field is an error, not a default."""

    @dataclasses.dataclass
    class Careless:
        new: str

    with pytest.raises(RuntimeError, match=r"Careless\.new"):
        policy_input._provenance(Careless, "")


def test_wire_form_fits_the_schema():
    """What is sent is what the schema promises to policies."""
    schema = policy_input.input_schema()
    for value in (INPUT, dataclasses.replace(INPUT, run=None, delegation=())):
        jsonschema.Draft7Validator(schema).validate(value.to_wire())
    assert INPUT.to_wire()["call"] == dataclasses.asdict(CALL)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(INPUT.to_wire() | {"more": 1})


def test_schema_in_the_repository_is_current():
    """The committed schema is generated from the dataclasses."""
    assert resources.input_schema().read_text() == generate.schema_text()


def test_forbidden_builtins_are_in_no_capability(opa_binary):
    """Nothing that reaches outside, hands out the environment, or answers twice differently."""
    for text in (resources.capabilities().read_text(), capabilities.effective(opa_binary)):
        allowed = json.loads(text)
        names = {row["name"] for row in allowed["builtins"]}
        assert not names & capabilities.FORBIDDEN
        assert not [row["name"] for row in allowed["builtins"] if row.get("nondeterministic")]
        assert {"eq", "regex.match", "time.parse_rfc3339_ns"} <= names
        assert allowed["allow_net"] == []


def test_capabilities_are_cut_to_what_this_opa_has(opa_binary, monkeypatch):
    """A built-in that the OPA in use lacks is refused at the check, not met at run time."""
    current = capabilities.of_opa(opa_binary)
    without = {**current, "builtins": [row for row in current["builtins"] if row["name"] != "regex.match"]}
    monkeypatch.setattr(capabilities, "of_opa", lambda _: without)
    names = {row["name"] for row in json.loads(capabilities.effective(opa_binary))["builtins"]}
    assert "regex.match" not in names
