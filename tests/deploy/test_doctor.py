"""`meshgate doctor` on a project that is not up."""

from meshgate_deploy.doctor import examine

MANIFEST = """\
apiVersion: meshgate/v1
mesh: m
trustDomain: m.example
crews:
  desk:
    crew: desk:crew
    agents: {triage: {role: Triage}, billing-clerk: {role: Billing}, 1st: {role: First}}
programs:
  nightly: {run: [python, n.py]}
"""


def test_an_app_without_a_policy_is_told(tmp_path):
    """It may do nothing; a package in any file counts, one that is only a test's does not."""
    (tmp_path / "meshgate.yaml").write_text(MANIFEST)
    (tmp_path / "desk.py").write_text("crew = None\n")
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "all.rego").write_text("package mesh.agents.desk\n")
    (policies / "first.rego").write_text('# of the first\npackage mesh.agents["1st"]\n')
    (policies / "billing_clerk.rego").write_text("package mesh.agents.billing_clerk\n")
    (policies / "triage_test.rego").write_text("package mesh.agents.triage\n")
    found = [check for check in examine(tmp_path) if check.name.startswith("policy of ")]
    assert [(check.name, check.ok) for check in found] == [
        ("policy of nightly", False),
        ("policy of triage", False),
    ]
    assert "policies/triage.rego" in found[1].fix
