"""The listing against real OPA: never short of a tool that can be called, free of those that cannot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
from fakes.opa_servers import (
    GATEWAY_TOKEN,
    SUPERVISOR_TOKEN,
    FakeServer,
    RunningOpa,
    answer,
    read_request,
    run_opa,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from meshgate_policies import check, listing, opa, policy_input
from meshgate_policies.errors import PolicyInvalid, PolicyUnavailable
from meshgate_policies.judge import judge
from meshgate_policies.policy_input import CallerInput, CallInput, PolicyInput, RunInput

TOOLS = ("orders.lookup", "orders.refund", "orders.purge")
APPS_PER_POLICY = 20
CALLS_PER_APP = 6

# Conditions that hold for every call, for none, and for some; the last decide nothing about the listing.
ALWAYS = (
    "true", 'input.caller.app != "nobody"', 'input.call.host == "orders"', "data.mesh.limits.refund == 50",
    "always", "not never", 'input.call.effect in {"read", "external"}', 'startswith(input.call.tool, "ord")',
)  # fmt: skip
NEVER = ("false", 'input.caller.app == "nobody"', "data.mesh.nothing", "never", "not always", "1 > 2")
SOMETIMES = (
    "input.call.args.a <= 50", "input.call.args.a > 50", "not input.call.args.a", "not small",
    'input.time > "2026-06-01T00:00:00.000Z"', "input.run.id", "not input.run.id", "small", "level == 2",
    'object.get(input.call.args, "s", "x") == "x"', "some k; input.call.args[k] == 1",
    "fits(input.call.args)", 'regex.match("^[a-m]", input.call.args.s)',
    "every v in input.call.args { v != 7 }",
    "count([v | some v in input.call.args; v == 1]) == 1", '"s" in object.keys(input.call.args)',
    'input.call["args"].s != input.caller.app', "input.run.attempt > 1", 'input.call.args_sha256 > "8"',
    "count(input.delegation) == 0", "input.call.args.a in numbers", "all_of",
)  # fmt: skip
HELPERS = """
always if input.caller.namespace == "shop"

never if input.caller.namespace == "other"

small if input.call.args.a < 10

small if input.call.args.s == "small"

default level := 1

level := 2 if input.call.args.a > 3

fits(args) if args.a > 3

fits(args) if args.s == "big"

numbers contains n if { some n in [1, 2, 60]; n != input.call.args.b }

all_of if {
	small
	not input.run.id
} else if {
	input.call.args.a == 60
}
"""


@dataclass(frozen=True)
class Rule:
    """One generated rule of an app's package."""

    kind: str
    tool: str
    condition: str

    def rego(self) -> str:
        tool = json.dumps(self.tool)
        if self.kind == "reason":
            return f'deny contains {{"tool": {tool}, "reason": "closed"}} if {{ {self.condition} }}'
        if self.kind == "obligation":
            return f'obligations[{tool}] := {{"narrow": {{}}}} if {{ {self.condition} }}'
        if self.kind == "computed":
            return f"allow contains t if {{ some t in [{tool}]; {self.condition} }}"
        return f"{self.kind} contains {tool} if {{ {self.condition} }}"


def _rules() -> st.SearchStrategy[list[Rule]]:
    allows = st.sampled_from(("allow", "allow", "computed"))
    refusals = st.sampled_from(("approve", "deny", "reason", "obligation"))
    grants = st.builds(Rule, allows, st.sampled_from(TOOLS), st.sampled_from(ALWAYS + NEVER + SOMETIMES))
    limits = st.builds(
        Rule, refusals, st.sampled_from(TOOLS), st.sampled_from(ALWAYS + NEVER + SOMETIMES * 3)
    )
    return st.tuples(st.lists(grants, min_size=1, max_size=5), st.lists(limits, max_size=3)).map(
        lambda both: _without_conflicts([*both[0], *both[1]])
    )


def _without_conflicts(rules: list[Rule]) -> list[Rule]:
    """One obligation per tool: two of them would be two values of one rule."""
    kept, seen = [], set()
    for rule in rules:
        if rule.kind != "obligation" or rule.tool not in seen:
            kept.append(rule)
        if rule.kind == "obligation":
            seen.add(rule.tool)
    return kept


def _arguments() -> st.SearchStrategy[dict[str, object]]:
    values = {"a": st.sampled_from([0, 1, 7, 50, 51, 60]), "b": st.sampled_from([1, 2]),
              "s": st.sampled_from(["x", "small", "big", "zebra"])}  # fmt: skip
    return st.fixed_dictionaries({}, optional=values)


def _calls() -> st.SearchStrategy[PolicyInput]:
    run = RunInput(id="r", attempt=1, origin="start", labels={})
    return st.builds(
        lambda tool, args, run, time, sha: PolicyInput(
            caller=_caller("app"), run=run, time=time, delegation=(), approval=None, budget={}, untrusted={},
            call=CallInput(
                tool=tool, host="orders", effect="read", kind="tool", args=args, args_sha256=sha,
                definition_sha256="d",
            ),
        ),
        st.sampled_from(TOOLS), _arguments(), st.sampled_from([None, run, replace(run, attempt=2)]),
        st.sampled_from(["2026-01-01T00:00:00.000Z", "2026-12-01T00:00:00.000Z"]),
        st.sampled_from(["0" * 64, "f" * 64]),
    )  # fmt: skip


def _caller(app: str) -> CallerInput:
    return CallerInput(spiffe_id=f"spiffe://d/ns/shop/{app}", trust_domain="d", namespace="shop", app=app)


def _tool(tool: str) -> listing.KnownTool:
    return listing.KnownTool(tool=tool, host="orders", effect="read", kind="tool", definition_sha256="d")


def _listed(running: RunningOpa, *apps: str, tools: Sequence[str] = TOOLS) -> Mapping[str, list[str]]:
    return listing.listing(
        socket_path=str(running.socket_path),
        token=SUPERVISOR_TOKEN,
        callers=[_caller(app) for app in apps],
        tools=[_tool(tool) for tool in tools],
    )


def _expected(rules: Sequence[Rule]) -> list[str]:
    """What only the three classes of conditions say."""

    def of(tool: str, *kinds: str) -> set[str]:
        return {rule.condition for rule in rules if rule.tool == tool and rule.kind in kinds}

    return sorted(
        tool
        for tool in TOOLS
        if of(tool, "allow", "computed") - set(NEVER)
        and not of(tool, "approve", "deny", "reason", "obligation") & set(ALWAYS)
    )


# Each example is an OPA of its own: a failing one is told as it is, not made small for minutes.
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.reuse, Phase.generate],
)
@given(
    packages=st.lists(_rules(), min_size=APPS_PER_POLICY, max_size=APPS_PER_POLICY),
    calls=st.lists(_calls(), min_size=CALLS_PER_APP * 8, max_size=CALLS_PER_APP * 8),
)
def test_whatever_can_be_called_is_listed(opa_binary, tmp_path_factory, packages, calls) -> None:
    """Callable is a part of listed; and listed is exactly what conditions on unknown parts leave open."""
    work = tmp_path_factory.mktemp("p")
    folder = work / "policies-opa.sock"
    folder.mkdir()
    for number, rules in enumerate(packages):
        text = f"package mesh.agents.app_{number}\n{HELPERS}\n" + "\n\n".join(r.rego() for r in rules) + "\n"
        (folder / f"app{number}.rego").write_text(text)
    # The generated text is no example of good policy: not what the linter is asked about here.
    with mock.patch.object(check, "find_mistakes", return_value=[]), run_opa(opa_binary, work) as running:
        apps = [f"app-{number}" for number in range(len(packages))]
        listed, engine = _listed(running, *apps), running.engine()
        for app, rules in zip(apps, packages, strict=True):
            for call in calls:
                asked = replace(call, caller=_caller(app)).to_wire()
                if judge(engine.evaluate(asked)).allow:
                    assert call.call.tool in listed[app], (rules, asked)
            assert listed[app] == _expected(rules), rules


LOOKUP = 'allow contains "orders.lookup"\n\n'
EXAMPLES = {
    "nothing grants it": ("", False),
    "granted": ('allow contains "orders.lookup"', True),
    "granted under an argument": ('allow contains "orders.lookup" if input.call.args.amount <= 50', True),
    "granted under a time": ('allow contains "orders.lookup" if input.time < "2027"', True),
    "granted by an impossible rule": (
        'allow contains "orders.lookup" if data.mesh.limits.refund > 99',
        False,
    ),
    "another tool is granted": ('allow contains "orders.refund" if input.call.args.amount <= 50', False),
    "denied always": ('allow contains "orders.lookup"\n\ndeny contains "orders.lookup"', False),
    "denied always, and also sometimes": (
        f'{LOOKUP}deny contains "orders.lookup"\n\ndeny contains "orders.lookup" if input.call.args.a',
        False,
    ),
    "denied always, and by a reason at times": (
        f'{LOOKUP}deny contains "orders.lookup"\n\ndeny contains "late" if input.time > "2027"',
        False,
    ),
    "denied sometimes": (
        'allow contains "orders.lookup"\n\ndeny contains "orders.lookup" if input.call.args.a',
        True,
    ),
    "a reason denies all": ('allow contains "orders.lookup"\n\ndeny contains "closed_today"', False),
    "a reason denies at times": (
        'allow contains "orders.lookup"\n\ndeny contains "closed_today" if input.time > "2027"',
        True,
    ),
    "another tool is denied": ('allow contains "orders.lookup"\n\ndeny contains "orders.refund"', True),
    "approval only": ('approve contains "orders.lookup"', False),
    "approval always": ('allow contains "orders.lookup"\n\napprove contains "orders.lookup"', False),
    "approval above a sum": (
        f'{LOOKUP}approve contains "orders.lookup" if input.call.args.a > 5',
        True,
    ),
    "approval by argument only": ('approve contains "orders.lookup" if input.call.args.a > 5', False),
    "an obligation nobody keeps": (
        'allow contains "orders.lookup"\n\nobligations["orders.lookup"] := {"narrow": {}}',
        False,
    ),
}


@pytest.fixture(scope="module")
def examples(opa_binary: Path, tmp_path_factory: pytest.TempPathFactory):
    """One OPA that holds every example as an app of its own."""
    work = tmp_path_factory.mktemp("examples")
    folder = work / "policies-opa.sock"
    folder.mkdir()
    for number, (text, _) in enumerate(EXAMPLES.values()):
        (folder / f"x{number}.rego").write_text(f"package mesh.agents.x{number}\n\n{text}\n")
    with run_opa(opa_binary, work) as running:
        yield running


def test_examples_are_listed_as_their_names_say(examples) -> None:
    """One app per example; what differs is only its package."""
    apps = [f"x{number}" for number in range(len(EXAMPLES))]
    found = _listed(examples, *apps, tools=["orders.lookup"])
    listed = {name: bool(found[app]) for name, app in zip(EXAMPLES, apps, strict=True)}
    assert listed == {name: expected for name, (_, expected) in EXAMPLES.items()}


def test_strangers_and_unknown_kinds_are_listed_nothing(examples) -> None:
    """An app without a package, and a kind of call that the library cannot decide."""
    assert _listed(examples, "stranger") == {"stranger": []}
    odd = replace(_tool("orders.lookup"), kind="shell")
    found = listing.listing(
        socket_path=str(examples.socket_path), token=SUPERVISOR_TOKEN, callers=[_caller("x1")], tools=[odd]
    )
    assert found == {"x1": []}


def test_the_gateways_token_reaches_no_listing(examples) -> None:
    """Compiling is the supervisor's alone."""
    with pytest.raises(PolicyUnavailable):
        listing.listing(
            socket_path=str(examples.socket_path),
            token=GATEWAY_TOKEN,
            callers=[_caller("x1")],
            tools=[_tool("orders.lookup")],
        )


@pytest.mark.parametrize("query", ["data.meshgate.decision", "data.system.authz", "data.mesh", "true"])
def test_even_the_supervisor_compiles_nothing_else(examples, query) -> None:
    """The token opens the two questions of the listing, and no other."""
    with (
        listing._Compiler(str(examples.socket_path), SUPERVISOR_TOKEN) as compiler,
        pytest.raises(PolicyUnavailable, match="401"),
    ):
        compiler.residue(query, {})


@pytest.mark.parametrize(
    ("rules", "sound"),
    [
        ('allow contains "orders.lookup" if input.call.args.a <= 5', True),
        ("allow contains t if t := input.call.tool", False),
        ("deny contains t if some t in [7]", False),
        ("allow contains t if { some t in [to_number(input.caller.app)] }", False),
    ],
)
def test_a_sample_per_app_shows_what_no_check_of_the_text_sees(opa_binary, tmp_path, rules, sound) -> None:
    """An app that may do everything, or whose every call is invalid, is no policy to put in force."""
    with run_opa(opa_binary, tmp_path, desk=f"package mesh.agents.desk\n\n{rules}\n") as running:

        def probe() -> None:
            opa.probe_callers(
                socket_path=running.socket_path, gateway_token=GATEWAY_TOKEN, callers=[_caller("desk")]
            )

        if sound:
            probe()
        else:
            with pytest.raises(PolicyInvalid, match="desk"):
                probe()


def test_unknown_is_all_that_caller_and_tool_do_not_settle() -> None:
    """Every field of the input is either asked with or unknown; a new one is sorted by what checks it."""
    known = {f"input.caller.{name}" for name in CallerInput.__slots__}
    known |= {f"input.call.{name}" for name in listing.KnownTool.__slots__}
    leaves = {
        f"input.{path}"
        for path in policy_input.provenance()
        if not any(other.startswith(f"{path}.") for other in policy_input.provenance())
    }
    unknown = set(listing.unknowns())
    assert {leaf for leaf in leaves if not any((leaf + ".").startswith(u + ".") for u in unknown)} == known


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"{}", status="500 Internal Server Error"),
        answer(b"not JSON"),
        answer(b"[]"),
        answer(b'{"result": 7}'),
        answer(b""),
    ],
)
def test_an_odd_answer_is_no_listing(tmp_path: Path, reply: bytes) -> None:
    """Whatever is no answer of OPA's leaves no listing, rather than an empty or a full one."""

    def serve(connection) -> None:
        read_request(connection)
        connection.sendall(reply)

    server = FakeServer(tmp_path / "fake.sock", serve)
    try:
        with pytest.raises(PolicyUnavailable):
            listing.listing(
                socket_path=str(server.path), token=SUPERVISOR_TOKEN, callers=[_caller("x")],
                tools=[_tool("orders.lookup")],
            )  # fmt: skip
    finally:
        server.close()


@pytest.mark.parametrize(
    ("expressions", "left"),
    [
        ([], []),
        ([{"terms": {"type": "boolean", "value": True}}], []),
        ([{"terms": {"type": "boolean", "value": True}, "negated": True}], None),
        ([{"terms": {"type": "boolean", "value": False}}], None),
        ([{"terms": {"type": "boolean", "value": False}, "negated": True}], []),
    ],
)
def test_constant_expressions_are_worked_out(expressions, left) -> None:
    """What OPA leaves as `true` or `not true` is a condition on nothing."""
    assert listing._left(expressions) == left
    open_ = {"terms": [{"type": "ref", "value": []}]}
    assert listing._left([*expressions, open_]) == (None if left is None else [open_])
