"""`meshgate policy check` and `test`: file, line, what is wrong, what to write instead."""

import pytest
from meshgate_policies import check
from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.lint import Known
from meshgate_policies.rego_tests import run_tests

GOOD = """\
package mesh.agents.desk

allow contains "orders.refund" if {
	input.call.args.amount <= data.mesh.limits.refund
	not input.run.id
}

approve contains "orders.refund" if input.call.args.amount > 50

deny contains {"tool": "orders.refund", "reason": "closed_today"} if input.time > "2026-12-24"

deny contains "closed_today" if input.call.effect == "irreversible"
"""
KNOWN = Known(apps=["desk", "night-shift"], tools=["orders.refund"])


def _check(opa_binary, folder, text, *, name="desk.rego", known=None):
    (folder / name).write_text(text)
    return check.check_policies(opa_binary, folder, known=known)


def _line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_good_policies_have_no_problems(opa_binary, tmp_path):
    """Grants, approvals, denials with reasons, and a test beside them."""
    (tmp_path / "desk_test.rego").write_text(
        "package mesh.tests.desk\n\nimport data.mesh.agents.desk\n\n"
        'test_it if "orders.refund" in desk.allow with input.call.args.amount as 1 with input.untrusted as {}'
        " with data.mesh.limits.refund as 5\n"
    )
    assert _check(opa_binary, tmp_path, GOOD, known=KNOWN) == []
    assert run_tests(opa_binary, tmp_path).red == ()


MISTAKES = [
    # (what is written, part of the message, part of the fix)
    ('allow contains "a.b" { true }', "if", "contains"),
    ('allow "a.b"', "", "allow contains"),
    ("default allow := true", "grants every tool", 'allow contains "host.tool"'),
    ("allow := true", "is a set of tool ids", 'allow contains "host.tool"'),
    ('allow if input.call.tool == "a.b"', "is a set of tool ids", 'allow contains "host.tool"'),
    ('deny if input.call.tool == "a.b"', "is a set of tool ids", 'deny contains "host.tool"'),
    ("default deny := false", "is a set of tool ids", 'deny contains "host.tool"'),
    ("allow contains input.call.tool", "grants whatever is asked", "name the tool"),
    ('allow contains "orders.*"', "no tool id", "write each tool"),
    ("approve contains 7", "holds tool ids", "host.tool"),
    ('obligations["billing"] := {"narrow": {"tools": {}}}', "no tool id", "write each tool"),
    ('obligations := {"agent.*": {}}', "no tool id", "write each tool"),
    ('obligations["agent:x"] := {"narrow": {"tools": {"orders": {}}}}', "no tool id", "write each tool"),
    ('deny contains {"tool": "a.b", "reason": "Not today!"}', "no reason id", "small letters"),
    ('deny contains "Not today!"', "no tool id", "write each tool"),
    ('allow contains "a.b" if input.untrusted.role == "Clerk"', "says of itself", "input.caller"),
    ('allow contains "a.b" if input["untrusted"]["role"] == "Clerk"', "says of itself", "input.caller"),
    ('deny contains "a.b" if input.untrusted.role != "Clerk"', "says of itself", "input.caller"),
    ("import input.untrusted as who", "says of itself", "input.caller"),
    ('allow contains "a.b" if object.get(input, "untrusted", {}).role', "whole input", "name the part"),
    ('allow contains "a.b" if { some k in ["untrusted"]; input[k].role }', "whole input", "name the part"),
    ('allow contains "a.b" if { all_of := input; all_of.untrusted.role }', "whole input", "name the part"),
    ("import input as everything", "whole input", "name the part"),
    ('allow contains "a.b" if input.caller.role == "Clerk"', "undefined ref", "spiffe_id"),
    ('allow contains "a.b" if input.calls.tool', "undefined ref", "untrusted"),
    ('allow contains "a.b" if input.run.origins == "x"', "undefined ref", "origin"),
    ('allow contains "a.b" if input.run == null', "match error", "not input.run.id"),
    ('allow contains "a.b" if http.send({"method": "get"}).status_code == 200', "http.send", "data.json"),
    ('allow contains "a.b" if opa.runtime().env.PAYMENT_KEY', "opa.runtime", "data.json"),
    ('allow contains "a.b" if net.lookup_ip_addr("x")', "net.lookup_ip_addr", "data.json"),
    ('allow contains "a.b" if time.now_ns() > 7', "time.now_ns", "input.time"),
    ('allow contains "a.b" if no_such_function(1)', "undefined function", "capabilities"),
    ('allow contains "a.b" if { unused := 1 }', "unused", "remove"),
    ("allow contains x if x > 1", "unsafe", "some"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "message", "fix"), MISTAKES, ids=[rule for rule, _, _ in MISTAKES])
def test_mistakes_name_their_line_and_what_to_write(opa_binary, tmp_path, rule, message, fix):
    """Each mistake is told with its file, its line, and what to write instead."""
    text = f"package mesh.agents.desk\n\n# a comment\n{rule}\n"
    problems = _check(opa_binary, tmp_path, text)
    found = [p for p in problems if message in p.message and fix in p.fix]
    assert found, problems
    assert {(p.file, p.line) for p in found} <= {(str(tmp_path / "desk.rego"), line) for line in (4, 5)}
    assert str(found[0]).startswith(f"{tmp_path / 'desk.rego'}:")


@pytest.mark.parametrize(
    "package", ["meshgate", "system.authz", "desk", "agents.desk", "meshes.agents.desk", "mesh.manifest"]
)
def test_foreign_packages_are_refused(opa_binary, tmp_path, package):
    """A project writes below `mesh` only: never our library, never OPA's guard."""
    problems = _check(opa_binary, tmp_path, f"package {package}\n\nx := 1\n")
    assert [(p.line, "mesh" in p.fix) for p in problems if p.line == 1 and "package" in p.fix] == [(1, True)]


def test_grants_in_a_test_file_are_told(opa_binary, tmp_path):
    """A file whose name ends in _test.rego is not deployed, so a grant in it would be missed."""
    problems = _check(opa_binary, tmp_path, GOOD, name="desk_test.rego")
    assert {p.message.split(" ")[0] for p in problems} == {"`allow`", "`approve`", "`deny`"}


def test_ids_that_the_manifest_lacks_are_told(opa_binary, tmp_path):
    """A grant that can never match is a typing mistake."""
    text = GOOD.replace("orders.refund", "orders.refnud").replace("agents.desk", "agents.night_shif")
    problems = _check(opa_binary, tmp_path, text, known=KNOWN)
    assert {(p.line, p.fix) for p in problems} == {
        (1, "one of: desk, night_shift"),
        (_line_of(text, "allow"), "one of: orders.refund"),
        (_line_of(text, "approve"), "one of: orders.refund"),
        (_line_of(text, "closed_today"), "one of: orders.refund"),
    }


def test_ids_of_an_obligation_are_looked_up_too(opa_binary, tmp_path):
    """Under a misspelt one a delegation would be bounded by nothing, or nothing be allowed below it."""
    known = Known(apps=["desk", "billing"], tools=["orders.refund"], agents=["billing"])
    text = (
        'package mesh.agents.desk\n\nallow contains "agent:billing"\n\n'
        'obligations["agent:billing"] := {"narrow": {"tools": {"orders.refund": {"amount": {"max": 5}}}}}\n\n'
        "obligations[tool] := {} if some tool in data.mesh.limits.tools\n"
    )
    assert _check(opa_binary, tmp_path, text, known=known) == []
    for good, bad, fix in (
        ('obligations["agent:billing"]', 'obligations["agent:biling"]', "one of: agent:billing"),
        ("refund", "refnud", "one of: orders.refund"),
    ):
        (problem,) = _check(opa_binary, tmp_path, text.replace(good, bad), known=known)
        assert (problem.line, problem.fix) == (5, fix)


def test_odd_format_is_told(opa_binary, tmp_path):
    """The fix is the command that mends it."""
    (problem,) = _check(opa_binary, tmp_path, 'package mesh.agents.desk\n\nallow   contains "a.b"\n')
    assert problem.fix == f"run: opa fmt --write {tmp_path / 'desk.rego'}"


def test_tasks_for_agents_are_known(opa_binary, tmp_path):
    """`agent:APP` names an agent that is an app of its own; a crew, a tool and a pattern are none."""
    known = Known(apps=["desk", "billing"], tools=["orders.refund"], agents=["billing"])
    wrong = ("agent:desk", "agent:refund", "agent:*", "agent:")
    text = "package mesh.agents.desk\n" + "".join(
        f'\nallow contains "{tool}"\n' for tool in ("agent:billing", *wrong)
    )
    problems = _check(opa_binary, tmp_path, text, known=known)
    assert [(p.line, p.fix) for p in problems] == [
        (_line_of(text, "agent:desk"), "one of: agent:billing"),
        (_line_of(text, "agent:refund"), "one of: agent:billing"),
        (_line_of(text, "agent:*"), 'write each tool: "host.tool"'),
        (_line_of(text, '"agent:"'), 'write each tool: "host.tool"'),
    ]
    assert _check(opa_binary, tmp_path, text[: text.index('\nallow contains "agent:desk')], known=known) == []


def test_all_problems_are_told_at_once(opa_binary, tmp_path):
    """Several files, several lines, sorted."""
    (tmp_path / "b.rego").write_text("package mesh.agents.b\n\nallow := true\n")
    problems = _check(
        opa_binary,
        tmp_path,
        'package mesh.agents.desk\n\nallow contains "a.*"\n\ndeny if input.untrusted.x\n',
    )
    assert [(p.file.rpartition("/")[2], p.line) for p in problems] == [
        ("b.rego", 3),
        ("desk.rego", 3),
        ("desk.rego", 5),
        ("desk.rego", 5),
    ]


def test_failing_and_missing_tests_are_told(opa_binary, tmp_path):
    """A red test is a failure."""
    (tmp_path / "desk.rego").write_text(GOOD)
    (tmp_path / "desk_test.rego").write_text("package mesh.tests.desk\n\ntest_wrong if 1 == 2\n")
    (problem,) = run_tests(opa_binary, tmp_path).red
    assert (problem.file, problem.line) == (str(tmp_path / "desk_test.rego"), 3)
    assert problem.message == "data.mesh.tests.desk.test_wrong is red: 1 == 2"


def test_opa_that_does_not_run_is_unavailable(tmp_path):
    """No OPA is no clean bill."""
    (tmp_path / "desk.rego").write_text(GOOD)
    with pytest.raises(PolicyUnavailable):
        check.check_policies(tmp_path / "no-opa", tmp_path)
