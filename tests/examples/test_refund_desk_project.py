"""The example's own manifest and policies."""

from pathlib import Path

from meshgate_deploy import manifest
from meshgate_deploy.manifest_checks import check_modules
from meshgate_deploy.refund_desk import seed, stage
from meshgate_policies import check
from meshgate_policies.rego_tests import run_tests

PROJECT = stage.example_folder()


def test_the_manifest_names_what_exists() -> None:
    """It loads, and every module and tool in it is there."""
    made = manifest.load(PROJECT / "meshgate.yaml")
    assert check_modules(made, PROJECT) == []
    assert set(made.tools) == set(seed.TOOLS)


def test_the_policies_are_sound(opa_binary: Path) -> None:
    """Strict compilation, format and lint find nothing; the Rego tests pass."""
    opa = (str(opa_binary),)
    assert check.check_policies(opa, PROJECT / "policies") == []
    assert run_tests(opa, PROJECT / "policies").red == ()


def test_the_seed_knows_the_policys_limit() -> None:
    """The largest honest refund is the largest that the policy allows."""
    text = (PROJECT / "policies" / "billing.rego").read_text()
    assert f"amount <= {seed.MAX_REFUND_CENTS // 100}\n" in text
