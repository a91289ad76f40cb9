"""What the gateway sends is what the schema promises to those who write policies."""

import jsonschema
from meshgate_gateway import decide
from meshgate_gateway.chains import Link
from meshgate_gateway.model import Caller, Kind, RunContext, Tool, ToolCall, ToolKind
from meshgate_policies.policy_input import input_schema

CALLER = Caller(
    spiffe_id="spiffe://d/ns/m/desk", trust_domain="d", namespace="m", app="desk", kind=Kind.CREW,
    serial_hex="01", leaf_sha256="02", address="ipv4:127.0.0.1:1",
)  # fmt: skip
TOOL = Tool(
    id="orders.refund", host="orders", kind=ToolKind.TOOL, description="", schema={}, effect="irreversible",
    idempotent=False, repeat="same", deadline_seconds=30, definition_sha256="11",
)  # fmt: skip
CALL = ToolCall(
    call_id="c" + "0" * 40, tool=TOOL, arguments=b"{}", arguments_sha256="00", run_id="r", attempt=1,
    step_key="0" * 16, deadline_ms=1000, untrusted={"role": "Clerk"},
)  # fmt: skip
ABOVE = (Link("front", "spiffe://d/ns/m/front", "r0"),)


def _input(run):
    return decide.policy_input(
        caller=CALLER,
        call=CALL,
        arguments={"amount": 5},
        run=run,
        delegation=ABOVE,
        time="2026-01-01T00:00:00Z",
    )


def test_gateway_input_fits_the_schema():
    """In a run and outside of one."""
    validator = jsonschema.Draft7Validator(input_schema())
    run = RunContext(id="r", attempt=1, origin="start", labels={"team": "a"})
    for made in (_input(run), _input(None)):
        validator.validate(made)
    assert _input(None)["untrusted"] == {"role": "Clerk"}
    above = {"spiffe_id": "spiffe://d/ns/m/front", "trust_domain": "d", "namespace": "m", "app": "front"}
    assert _input(None)["delegation"] == [{**above, "run_id": "r0"}]
