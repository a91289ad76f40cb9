"""The whole story on real Dapr, OPA, SPIFFE and CrewAI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_deploy.demo import run_demo
from meshgate_deploy.demo_services import seed

pytestmark = pytest.mark.plane


@pytest.mark.timeout(900)
def test_demo_prints_one_object_and_the_book_is_exact() -> None:
    """`meshgate demo --json` ends with 0; the two forbidden calls are refused; nothing is left running."""
    argv = [
        sys.executable,
        "-c",
        "from meshgate_deploy.cli import main; main()",
        "demo",
        "--json",
        "--seed",
        "11",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["status"] == "ok"
    assert result["denied"] == 2
    expected = len(seed.draw(11).expected_book())
    assert result["effects"] == {"expected": expected, "seen": expected, "doubled": 0, "missing": 0}
    assert result["audit"]["verified"] is True
    assert {app["spiffe_id"] for app in result["apps"]} >= {"spiffe://desk.example/ns/refund-desk/desk"}
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "meshgate-demo-" not in listed


@pytest.mark.timeout(300)
def test_without_the_grant_no_refund_is_paid() -> None:
    """One grant removed from the policy, and the same crew pays nothing."""

    def remove_grant(project: Path) -> None:
        policy = project / "policies" / "desk.rego"
        kept = [line for line in policy.read_text().splitlines() if "orders.refund" not in line]
        policy.write_text("\n".join(kept))

    result = run_demo(seed=3, say=print, quiet=True, change=remove_grant)
    expected = len(seed.draw(3).expected_book())
    assert result["effects"] == {"expected": expected, "seen": 0, "doubled": 0, "missing": expected}
    assert result["denied"] == 2 + expected


@pytest.mark.timeout(300)
def test_the_limit_is_what_stops_the_injection() -> None:
    """With the limit lifted the obedient model pays the attacker: policy is what protects."""

    def lift_limit(project: Path) -> None:
        policy = project / "policies" / "desk.rego"
        policy.write_text(policy.read_text().replace("amount <= 500", "amount <= 50000"))

    result = run_demo(seed=3, say=print, quiet=True, change=lift_limit)
    assert result["effects"]["seen"] == result["effects"]["expected"] + 1
