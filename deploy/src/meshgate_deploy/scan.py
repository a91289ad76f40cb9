"""`meshgate scan`: reads and imports a project, and writes what its mesh needs."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_deploy import scan_text
from meshgate_deploy.environment import WITHHELD
from meshgate_deploy.errors import DependencyUnavailable, NotFound, UsageError
from meshgate_deploy.scan_build import Builder
from meshgate_deploy.scan_findings import Findings
from meshgate_deploy.scan_source import (
    JSON_SUFFIXES,
    Module,
    json_crews,
    looks_secret,
    read_project,
    source_roots,
)

IMPORT_SECONDS = 180  # a cold import of CrewAI without bytecode takes 16 s; a project adds its own
_KEPT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE")
_SWITCHES = {
    "PYTHON_DOTENV_DISABLED": "1",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "OTEL_SDK_DISABLED": "true",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A file of the scan: written, or kept as it was."""

    path: Path
    state: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found and what became of each file."""

    findings: Findings
    files: tuple[Written, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON output."""
        files = [{"path": str(file.path), "state": file.state} for file in self.files]
        return {**self.findings.as_dict(), "files": files}


def scan(  # noqa: PLR0913 - what a person may say
    project: Path,
    *,
    targets: Sequence[str] = (),
    python: str | None = None,
    isolate: bool = True,
    force: bool = False,
    dry_run: bool = False,
) -> Scan:
    """Scans a project and writes manifest, policies and their tests.

    Args:
        project: its root.
        targets: `module:name` of crews, or the paths of their JSON files; found in the source when empty.
        python: the project's interpreter; its own `.venv` or ours when None.
        isolate: make every agent of a crew an app of its own.
        force: write over files that exist.
        dry_run: write nothing.

    Raises:
        NotFound: there is nothing in the project that CrewAI could run.
        UsageError: a target is not written as `module:name`.
        DependencyUnavailable: the project cannot be imported at all.
    """
    project = project.resolve()
    findings = find(project, targets=targets, python=python, isolate=isolate)
    return Scan(findings, write(project, scan_text.files(findings), force=force, dry_run=dry_run))


def write(project: Path, texts: Mapping[Path, str], *, force: bool, dry_run: bool) -> tuple[Written, ...]:
    """Writes files that are not there; over those that are only with `force`."""
    files = []
    for path, text in texts.items():
        place = project / path
        if place.exists() and place.read_text() == text:
            state = "unchanged"
        elif place.exists() and not force:
            state = "kept"
        elif dry_run:
            state = "would be written"
        else:
            state = "written"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        files.append(Written(path, state))
    return tuple(files)


def find(
    project: Path, *, targets: Sequence[str] = (), python: str | None = None, isolate: bool = True
) -> Findings:
    """What `scan` finds; writes nothing. See there for the errors."""
    modules = read_project(project)
    wanted = [_target(target, modules) for target in targets]
    if not wanted:
        wanted = [(module.name, name) for module in modules.values() for name in module.crews]
        wanted += [(path, "") for path in json_crews(project)]
    scripts = [] if wanted else [module.name for module in modules.values() if _may_be_program(module)]
    if not wanted and not scripts:
        raise NotFound(
            "no crew found",
            why=f"no Crew(...), @CrewBase class, crew.jsonc or script that imports CrewAI below {project}",
            next_step="meshgate scan MODULE:NAME",
        )
    answer = _import(project, modules, wanted, scripts, python)
    return Builder(project, modules, isolate=isolate).build(answer, explicit=bool(targets))


def interpreter(project: Path) -> str:
    """The project's own interpreter if it has one, else ours."""
    own = project / ".venv" / "bin" / "python"
    return str(own) if os.access(own, os.X_OK) else sys.executable


def _target(text: str, modules: Mapping[str, Module]) -> tuple[str, str]:
    module, colon, name = text.partition(":")
    if text.endswith(JSON_SUFFIXES) and not colon:
        return text, ""
    if not (module and colon and name):
        raise UsageError(
            f"{text!r} is no crew",
            why="a crew is written as module:name, or as path/to/crew.jsonc",
            next_step="meshgate scan desk.crew:crew",
        )
    if module.endswith(".py"):
        module = next((known.name for known in modules.values() if known.path == module), module)
    return module, name


def _may_be_program(module: Module) -> bool:
    return module.mentions_crewai and module.is_script


def _import(
    project: Path,
    modules: Mapping[str, Module],
    targets: Sequence[tuple[str, str]],
    scripts: Sequence[str],
    python: str | None,
) -> dict[str, Any]:
    """Imports the project in a process of its own."""
    from meshgate_agents import child

    here = Path(next(iter(child.__path__)))
    read_end, write_end = os.pipe()
    request = {
        "project": str(project),
        "roots": [str(root) for root in source_roots(project)],
        "targets": targets,
        "modules": scripts,
        "tool_identity": str(here / "tool_identity.py"),
        "internal_tools": str(here / "internal_tools.py"),
        "answer_fd": write_end,
    }
    command = [python or interpreter(project), str(Path(__file__).with_name("scan_import.py"))]
    with tempfile.TemporaryDirectory(prefix="meshgate-scan-") as scratch, open(read_end, "rb") as answers:  # noqa: PTH123 (a descriptor)
        environment = _environment(modules, project, scratch)
        status, output = _ask(command, request, cwd=project, env=environment, answer_end=write_end)
        answer = answers.read()
    if status != 0 or not answer:
        first = next((module for module, name in targets if name), scripts[0] if scripts else "crewai")
        raise DependencyUnavailable(
            f"the project cannot be imported (status {status})",
            why=output.decode(errors="replace")[-2000:],
            next_step=f"{command[0]} -c 'import {first}'",
        )
    return dict(json.loads(answer))


def _ask(
    command: Sequence[str], request: Mapping[str, Any], *, cwd: Path, env: Mapping[str, str], answer_end: int
) -> tuple[int, bytes]:
    """Runs the importer on a request, closing our copy of the pipe it answers on."""
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(answer_end,),
        )
    finally:
        os.close(answer_end)
    try:
        output, _ = process.communicate(json.dumps(request).encode(), timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output


def _environment(modules: Mapping[str, Module], project: Path, scratch: str) -> dict[str, str]:
    """A clean environment. Secrets are withheld: importing needs their presence at most."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    needed = {
        use.name: WITHHELD for module in modules.values() for use in module.variables if not use.has_default
    }
    plain = {name: os.environ[name] for name in needed if name in os.environ and not looks_secret(name)}
    fixed = {"OPENAI_API_KEY": WITHHELD, "CREWAI_STORAGE_DIR": scratch, "PYTHONDONTWRITEBYTECODE": "1"}
    return {**needed, **plain, **fixed, **kept, **_SWITCHES, "MESHGATE_PROJECT_ROOT": str(project)}
