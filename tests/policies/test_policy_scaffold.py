"""The first policy of an app."""

import pytest
from fakes.opa_servers import ask
from meshgate_policies import bundle, check
from meshgate_policies.command import run
from meshgate_policies.lint import Known
from meshgate_policies.rego_tests import run_tests
from meshgate_policies.scaffold import agent_package, file_names

TOOLS = (
    "orders.refund", "orders.lookup_order", "files.file_read", "files.file-read", "crewai.delegate_work",
    "agent:desk",
)  # fmt: skip
APPS = ("desk", "refund-desk", "1st", "default", "in", "input", "set", "or", "true", "desk-test", "a" * 63)


def _write(folder, app, tools):
    folder.mkdir(exist_ok=True)
    for name, text in zip(file_names(app), agent_package(app, tools), strict=True):
        (folder / name).write_text(text)


def test_scaffolds_of_all_names_are_clean_and_tested(opa_binary, tmp_path):
    """Whatever an app is called, its first policy compiles, is formatted, and passes its tests."""
    policies = tmp_path / "policies"
    for app in APPS:
        _write(policies, app, TOOLS if app != "in" else ())
    assert check.check_policies(opa_binary, policies, known=Known(apps=APPS, tools=TOOLS, agents=APPS)) == []
    assert run_tests(opa_binary, policies).red == ()
    report = run_tests(opa_binary, policies)
    assert sum("test_may_orders_refund" in r.name for r in report.project) == len(APPS) - 1
    built = bundle.build(user_policies=policies, data={}, out_dir=tmp_path / "out", opa=opa_binary)
    assert built.path.exists()


@pytest.mark.parametrize("app", APPS)
def test_scaffold_grants_exactly_its_tools(opa_binary, tmp_path, app):
    """The granted set is the tools, no more."""
    _write(tmp_path, app, ["orders.refund", "orders.refund", "a.b"])
    query = 'data.mesh.agents[replace(input.caller.app, "-", "_")].allow'
    (tmp_path / "input.json").write_text(str(ask(app, "a.b")).replace("'", '"'))
    done = run(
        opa_binary, "eval", "--format", "raw", "--data", str(tmp_path / file_names(app)[0]),
        "--input", str(tmp_path / "input.json"), query,
    )  # fmt: skip
    assert done.stdout.strip() == '["a.b","orders.refund"]'


def test_a_crews_first_policy_gives_tasks_and_holds_no_tool(opa_binary, tmp_path):
    """Its tests ask as a delegation does, and notice a tool that comes to it."""
    _write(tmp_path, "desk", ["agent:billing-clerk", "agent:triage"])
    policy, test = ((tmp_path / name).read_text() for name in file_names("desk"))
    grants = [line for line in policy.splitlines() if line.startswith("allow")]
    assert grants == ['allow contains "agent:billing-clerk"', 'allow contains "agent:triage"']
    assert "test_may_agent_billing_clerk if" in test
    assert check.check_policies(opa_binary, tmp_path, known=Known(agents=["billing-clerk", "triage"])) == []
    assert run_tests(opa_binary, tmp_path).red == ()
    (tmp_path / "desk.rego").write_text(policy.replace('allow contains "agent:triage"\n', ""))
    assert run_tests(opa_binary, tmp_path).red


def test_grants_of_file_tools_stop_at_what_is_hidden(opa_binary, tmp_path):
    """The written tests go red when the condition is taken off a grant."""
    files = agent_package("desk", TOOLS, {"files.file_read": ["file_path"]})
    for name, text in zip(file_names("desk"), files, strict=True):
        (tmp_path / name).write_text(text)
    assert check.check_policies(opa_binary, tmp_path) == []
    assert run_tests(opa_binary, tmp_path).red == ()
    policy = tmp_path / "desk.rego"
    text = policy.read_text()
    policy.write_text(text.replace(' if not _out_of_reach(["file_path"])', ""))
    assert policy.read_text() != text
    assert run_tests(opa_binary, tmp_path).red != ()


def test_scaffold_test_fails_when_a_grant_is_removed(opa_binary, tmp_path):
    """The generated tests notice a lost grant and an additional one for all."""
    _write(tmp_path, "desk", TOOLS)
    policy = tmp_path / "desk.rego"
    text = policy.read_text()
    policy.write_text(text.replace('allow contains "orders.refund"\n', ""))
    assert run_tests(opa_binary, tmp_path).red
    policy.write_text(text + "\nallow contains input.call.tool\n")
    assert run_tests(opa_binary, tmp_path).red
