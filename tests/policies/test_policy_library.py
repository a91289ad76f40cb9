"""Our own Rego: formatted, strict, tested, and every reason explained."""

import json
import re

import pytest
from meshgate_policies import capabilities, judge, resources
from meshgate_policies.command import run

_REASON = re.compile(r'(?:_reasons contains|_refusal\(entry\) :=|_reason_id\(_\) :=) "(\w+)"')


def test_library_is_in_the_standard_format(opa_binary):
    """`opa fmt` would change nothing."""
    done = run(opa_binary, "fmt", "--diff", str(resources.library()))
    assert (done.returncode, done.stdout) == (0, "")


def test_decision_compiles_strictly_against_the_schema(opa_binary, tmp_path):
    """Strict mode, the input's schema, and only the permitted built-ins."""
    allowed = capabilities.write_effective(opa_binary, tmp_path)
    done = run(
        opa_binary, "check", "--strict", "--capabilities", str(allowed),
        "--schema", str(resources.input_schema()), str(resources.library() / "decision" / "decision.rego"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_library_compiles_strictly_with_its_tests(opa_binary, tmp_path):
    """The guard too, against OPA's own schema of authorisation input."""
    allowed = capabilities.write_effective(opa_binary, tmp_path)
    done = run(opa_binary, "check", "--strict", "--capabilities", str(allowed), str(resources.library()))
    assert done.returncode == 0, done.stderr


def test_rego_tests_pass_and_cover_every_rule(opa_binary):
    """`opa test` is green and no line of the library is untested."""
    plain = run(opa_binary, "test", "--fail-on-empty", str(resources.library()))
    assert plain.returncode == 0, plain.stdout
    done = run(opa_binary, "test", "--coverage", str(resources.library()))
    files = json.loads(done.stdout)["files"]
    rules = {name: report for name, report in files.items() if not name.endswith("_test.rego")}
    assert len(rules) == 2
    assert {name: report.get("not_covered") for name, report in rules.items()} == dict.fromkeys(rules)


@pytest.mark.parametrize("folder", ["authz", "decision"])
def test_decision_folders_are_complete(folder):
    """Rego, its test and a page; the decision has data, the guard's is made per process."""
    names = {path.name for path in (resources.library() / folder).iterdir()}
    assert {f"{folder}.rego", f"{folder}_test.rego", "README.md"} <= names
    assert ("data.json" in names) == (folder == "decision")


def test_the_listing_knows_the_obligations_that_are_kept():
    """What the gateway refuses as unknown is what the library counts as a refusal."""
    data = json.loads((resources.library() / "decision" / "data.json").read_text())
    assert set(data["obligations"]) == judge.KNOWN_OBLIGATIONS


def test_every_reason_has_a_page_and_the_index_names_it():
    """A denial's id leads to what it means and what to do."""
    rego = (resources.library() / "decision" / "decision.rego").read_text()
    ids = set(_REASON.findall(rego))
    ids |= {"approval_required", "obligation_unknown", *judge.INVALID.reasons}
    assert len(ids) == 7
    pages = {path.stem for path in resources.reason_page("x").parent.glob("*.md")} - {"README"}
    assert ids <= pages
    index = (resources.reason_page("README")).read_text()
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == pages
    for page in pages:
        text = resources.reason_page(page).read_text()
        assert text.startswith(f"# {page}\n")
        assert "## What to do" in text
