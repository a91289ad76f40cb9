"""The budgets of the house: sizes, swallowed exceptions, layout, independence from the machine."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FUNCTION_LINES = 40  # body without its docstring
MAX_MODULE_LINES = 400  # lines that are not blank
MAX_EXEMPTIONS = 5

# "path::function" or "path", each with the reason beside it.
EXEMPT: dict[str, str] = {}

ALLOWED_AT_ROOT = {
    ".ci",
    ".git",
    ".gitignore",
    ".python-version",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "agents",
    "benchmarks",
    "deploy",
    "dev",
    "docs",
    "gateway",
    "identities",
    "policies",
    "pyproject.toml",
    "tests",
    "uv.lock",
}
REQUIRED_AT_ROOT = {"gateway", "policies", "identities", "agents", "tests", "deploy", "pyproject.toml"}


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def _sources() -> Iterator[tuple[str, str]]:
    for path in _tracked("*/src/**/*.py"):
        name = path.relative_to(ROOT).as_posix()
        if "meshgate_wire" not in name and path.exists():
            yield name, path.read_text()


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_functions_fit_on_a_screen() -> None:
    """No function body is longer than its budget."""
    long = [
        f"{name}::{node.name} has {_body_lines(node)} lines"
        for name, text in _sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _body_lines(node) > MAX_FUNCTION_LINES
        and f"{name}::{node.name}" not in EXEMPT
    ]
    assert long == []


def test_modules_stay_small() -> None:
    """No module has more lines than its budget."""
    long = [
        f"{name} has {count} lines"
        for name, text in _sources()
        if (count := sum(1 for line in text.splitlines() if line.strip())) > MAX_MODULE_LINES
        and name not in EXEMPT
    ]
    assert long == []


def test_exemptions_are_few_and_explained() -> None:
    """At most five places may exceed a budget, and each says why."""
    assert len(EXEMPT) <= MAX_EXEMPTIONS
    assert all(len(reason) > 20 for reason in EXEMPT.values())


def _swallows(handler: ast.ExceptHandler) -> bool:
    broad = handler.type is None or getattr(handler.type, "id", "") in ("Exception", "BaseException")
    return broad and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def test_no_exception_is_swallowed() -> None:
    """A broad handler re-raises; the one that maps errors to gRPC statuses lives in server.py."""
    swallowed = [
        f"{name}:{node.lineno}"
        for name, text in _sources()
        if not name.endswith("meshgate_gateway/server.py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ExceptHandler) and _swallows(node)
    ]
    assert swallowed == []


def test_nothing_else_lies_at_the_root() -> None:
    """The root holds the folders of the layout and nothing more."""
    names = {path.relative_to(ROOT).parts[0] for path in _tracked()}
    assert names <= ALLOWED_AT_ROOT
    assert names >= REQUIRED_AT_ROOT


def test_every_test_says_what_it_shows() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in _tracked("tests/**/test_*.py")
        if path.exists()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_import_contracts_hold() -> None:
    """The import-linter contracts of pyproject.toml are kept."""
    done = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_the_code_is_clean(command: list[str]) -> None:
    """Ruff with every rule, the formatter, and mypy strict find nothing."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_generated_wire_code_is_current(tmp_path: Path) -> None:
    """The committed protobuf code is what the proto gives."""
    wire = ROOT / "gateway" / "src" / "meshgate_wire"
    subprocess.run(
        [
            "python", "-m", "grpc_tools.protoc", "-I", "gateway/proto",
            f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}",
            "gateway/proto/meshgate/broker/v1/broker.proto",
        ],
        cwd=ROOT,
        check=True,
    )  # fmt: skip
    for made in (tmp_path / "meshgate" / "broker" / "v1").iterdir():
        text = made.read_text().replace("from meshgate.broker.v1 import", "from meshgate_wire import")
        assert text == (wire / made.name).read_text(), made.name
