"""The manifest: what is refused, in which line, and what to write instead."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from meshgate_deploy import manifest_checks
from meshgate_deploy.errors import ManifestError, NotFound
from meshgate_deploy.manifest import json_schema, load

GOOD = """\
apiVersion: meshgate/v1
mesh: refund-desk
trustDomain: desk.example
crews:
  desk:
    crew: desk.crew:crew
    agents: {triage: {role: Triage Analyst}}
    env: [OPENAI_BASE_URL]
    secrets: [OPENAI_API_KEY]
programs:
  nightly: {run: [python, -m, desk.nightly]}
toolhosts:
  orders:
    tools: [desk.tools:refund]
    secrets: [PAYMENT_KEY]
  files:
    tools: [{class: "desk.tools:Files", config: {path: null}}]
    cwd: data
  time: {mcp: {command: [mcp-server-time]}}
tools:
  orders.refund: {effect: irreversible, idempotent: false, repeat: same, deadlineSeconds: 5}
policies: policies
store: sqlite
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "meshgate.yaml"
    path.write_text(text)
    return path


def _problems(folder: Path, text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ManifestError) as caught:
        load(_write(folder, text))
    return [(p.line, p.message, p.fix) for p in caught.value.problems]


def test_a_whole_manifest_loads(tmp_path):
    """Every section is read, with the careful defaults."""
    manifest = load(_write(tmp_path, GOOD))
    assert manifest.apps == ("gateway", "orders", "files", "time", "desk", "nightly", "triage")
    assert manifest.spiffe_id("desk") == "spiffe://desk.example/ns/refund-desk/desk"
    assert manifest.variables("desk") == ("OPENAI_BASE_URL", "OPENAI_API_KEY")
    assert manifest.tools["orders.refund"].deadline_seconds == 5


def test_the_schema_takes_what_the_loader_takes():
    """The published JSON Schema agrees with the loader on the good manifest."""
    jsonschema.Draft202012Validator(json.loads(json_schema())).validate(yaml.safe_load(GOOD))


@pytest.mark.parametrize(
    ("old", "new", "line", "said", "fix"),
    [
        ("toolhosts:", "toolhost:", 12, "unknown key 'toolhost'", "toolhosts"),
        ("    secrets: [PAYMENT_KEY]", "    secret: [PAYMENT_KEY]", 15, "toolhosts.orders.secret", "secrets"),
        ("repeat: same", "repeats: same", 21, "unknown key 'tools.orders.refund.repeats'", "repeat"),
        ("effect: irreversible", "effect: harmless", 21, "'harmless'", "'read'"),
        ("apiVersion: meshgate/v1", "apiVersion: meshgate/v2", 1, "'meshgate/v2'", "meshgate/v1"),
        ("mesh: refund-desk", "mesh: Refund_Desk", 2, "'Refund_Desk'", "refund-desk"),
        ("  nightly:", "  desk:", 11, "app id 'desk' is used twice: also in crews, line 5", "desk-program"),
        ("  nightly:", "  gateway:", 11, "'gateway' is the name of a part of meshgate", "gateway-app"),
        ("  files:", "  orders:", 16, "a key is written twice: 'orders', first in line 13", "keep one"),
        ("orders.refund:", "order.refund:", 21, "'order.refund' names no tool host", "orders"),
        ("crew: desk.crew:crew", "crew: desk.crew", 6, "'desk.crew'", "package.module:crew"),
        ("store: sqlite", "store: mysql", 23, "'mysql' is not supported", "sqlite"),
        (
            "store: sqlite",
            "store: postgresql://m:pw@h/d",
            23,
            "holds a password",
            "postgresql://m@h/d, and PGPASSWORD",
        ),
        ("store: sqlite", "store: postgresql:///d?password=pw", 23, "holds a password", "and PGPASSWORD"),
        (
            "store: sqlite",
            "store: postgresql://m@db.example/d",
            23,
            "not verified TLS",
            "sslmode=verify-full",
        ),
        ("store: sqlite", "store: postgresql:///d?hostaddr=203.0.113.5", 23, "'hostaddr'", "once each"),
        (
            "store: sqlite",
            "store: postgresql://h/d?sslmode=verify-full&sslmode=disable",
            23,
            "'sslmode'",
            "once each",
        ),
        (
            "store: sqlite",
            "store: 'postgresql://localhost#:secret@evil.example/db'",
            23,
            "has a '#'",
            "postgresql://",
        ),
        ("store: sqlite", "store: postgres://m:pw@h/d", 23, "'postgres' is not supported", "postgresql://"),
        ("secrets: [PAYMENT_KEY]", "secrets: [hunter2=x]", 15, "never its value", "never its value"),
        ("mesh: refund-desk\n", "", 1, "'mesh' is missing", "mesh: "),
    ],
)
def test_bad_manifests_name_line_and_remedy(  # noqa: PLR0917 - one column each
    tmp_path, old, new, line, said, fix
):
    """Each mistake is one problem with its line and what to write instead."""
    found = _problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(row == line and said in message and fix in remedy for row, message, remedy in found), found


@pytest.mark.parametrize(
    "given", ["postgresql://m:hunter2@h/d", "mysql://m:hunter2@h/d", "postgresql://[m:hunter2@h"]
)
def test_a_password_in_the_store_is_never_repeated(tmp_path, given):
    """The problem says what to write instead, without what was written."""
    assert "hunter2" not in str(_problems(tmp_path, GOOD.replace("store: sqlite", f"store: '{given}'")))


@pytest.mark.parametrize(
    "store", ["m@localhost/d", "m@/d?host=/run/pg", "m@db.example/d?sslmode=verify-full"]
)
def test_a_store_on_a_server_loads(tmp_path, store):
    """Without a password: on this machine as it is, elsewhere over verified TLS."""
    found = load(_write(tmp_path, GOOD.replace("store: sqlite", f"store: postgresql://{store}")))
    assert found.store == f"postgresql://{store}"


def test_broken_yaml_names_its_line(tmp_path):
    """A file that is no YAML is a problem in a line, not a stack trace."""
    assert _problems(tmp_path, "mesh: [a\nb: c\n")[0][0] == 2


def test_a_missing_manifest_is_not_found(tmp_path):
    """No file is another failure than a bad file."""
    with pytest.raises(NotFound):
        load(tmp_path / "meshgate.yaml")


def _project(folder: Path) -> Path:
    path = _write(folder, GOOD)
    (folder / "desk").mkdir()
    (folder / "desk" / "__init__.py").touch()
    (folder / "desk" / "crew.py").write_text("crew = None\n")
    (folder / "desk" / "tools.py").write_text("def refund(): ...\nclass Files: ...\n")
    (folder / "policies").mkdir()
    return path


def test_modules_are_found_without_running_them(tmp_path):
    """A project whose modules exist has no problem, though importing them would fail."""
    path = _project(tmp_path)
    (tmp_path / "desk" / "crew.py").write_text("raise SystemExit\ncrew = None\n")
    assert manifest_checks.check_modules(load(path), tmp_path) == []


def test_missing_module_and_name_are_told_with_lines(tmp_path):
    """A module that is not there, and a name that its module does not define."""
    path = _project(tmp_path)
    (tmp_path / "desk" / "crew.py").unlink()
    (tmp_path / "desk" / "tools.py").write_text("def refunds(): ...\nclass Files: ...\n")
    problems = manifest_checks.check_modules(load(path), tmp_path)
    assert [(p.line, p.fix.split(",")[0]) for p in problems if "refund" in p.message] == [
        (14, "desk.tools:refunds")
    ]
    assert any(p.line == 6 and "no module 'desk.crew'" in p.message for p in problems)


def test_a_missing_policy_folder_is_told(tmp_path):
    """Without policies nothing could be allowed."""
    path = _project(tmp_path)
    (tmp_path / "policies").rmdir()
    assert [p.line for p in manifest_checks.check_modules(load(path), tmp_path)] == [22]
