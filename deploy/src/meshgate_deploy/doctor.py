"""`meshgate doctor`: looks at everything a mesh needs and says how to mend what is wrong."""

import os
import re
import stat
from collections.abc import Callable  # noqa: TC003 - annotates a local
from pathlib import Path

from meshgate_policies.check import deployed_sources
from meshgate_policies.names import package_path

from meshgate_deploy import configs, interpreters, isolation, runtime, sockets, store_check, user_checks
from meshgate_deploy.control import ask_once, reachable
from meshgate_deploy.environment import Environment
from meshgate_deploy.errors import ManifestError, MeshError
from meshgate_deploy.manifest import Manifest, load
from meshgate_deploy.manifest_checks import check_modules
from meshgate_deploy.probes import Check
from meshgate_deploy.state import find_project, open_state

OWNER_ONLY = 0o700
_PACKAGE = re.compile(r"^package\s+(mesh\.agents\S+)", re.MULTILINE)
TOKENS = ("*.enrol", "*.dapr-api", "*.token")


def examine(start: Path) -> list[Check]:
    """Every check, in the order in which things depend on each other."""
    checks = _binaries()
    try:
        project = find_project(start)
        manifest = load(project / "meshgate.yaml")
    except ManifestError as error:
        return [
            *checks,
            *(
                Check(
                    "manifest",
                    ok=False,
                    detail=f"{p.file}:{p.line} {p.message}",
                    fix=f"write instead: {p.fix}",
                )
                for p in error.problems
            ),
        ]
    except MeshError as error:
        return [*checks, Check("manifest", ok=False, detail=error.what, fix=error.next_step)]
    checks.append(Check("manifest", ok=True, detail=f"mesh {manifest.mesh}, {len(manifest.apps)} apps"))
    checks += [
        Check("modules", ok=False, detail=f"{p.file}:{p.line} {p.message}", fix=f"write instead: {p.fix}")
        for p in check_modules(manifest, project)
    ] or [Check("modules", ok=True, detail="every module of the manifest is found")]
    checks += _variables(manifest, project)
    state = open_state(project)
    checks += interpreters.examine(manifest, state, up=reachable(state.control))
    envs = {app: Environment(project=project).for_agent(manifest, app, {}) for app in manifest.runners}
    checks += [*isolation.examine(manifest, state, envs), *user_checks.examine(manifest, state, envs)]
    checks += store_check.examine(manifest, Environment(project=project), file=configs.store_file(state))
    checks += _state_folder(project)
    checks += _packages(manifest, project)
    checks += _policies(project)
    checks += _running(project)
    return checks


def _binaries() -> list[Check]:
    rows = runtime.show()
    return [
        Check(
            row["name"], row["state"] != "missing", f"{row['version'] or '-'} {row['state']} {row['path']}",
            "meshgate runtime install",
        )
        for row in rows
    ]  # fmt: skip


def _variables(manifest: Manifest, project: Path) -> list[Check]:
    missing = Environment(project=project).missing(manifest)
    return [
        Check(
            f"variable {name}",
            ok=False,
            detail=f"named for {app}, set nowhere",
            fix=f"add {name}=… to {project / '.env'}",
        )
        for app, name in missing
    ] or [Check("variables", ok=True, detail="every variable that is named is set")]


def _state_folder(project: Path) -> list[Check]:
    root = open_state(project).root
    if not root.exists():
        return []
    mode = stat.S_IMODE(root.stat().st_mode)
    checks = [Check("state folder", mode == OWNER_ONLY, f"{root} has mode {mode:o}", f"chmod 700 {root}")]
    tokens = [path for pattern in TOKENS for path in (root / "run").glob(pattern)]
    loose = [str(path) for path in tokens if path.stat().st_mode & 0o077]
    checks.append(Check("tokens", not loose, ", ".join(loose) or "0600", "chmod 600 " + " ".join(loose)))
    space = os.statvfs(root)
    free = space.f_bavail * space.f_frsize
    checks.append(
        Check("disk", free > 1 << 28, f"{free >> 20} MiB free", "free 256 MiB: records must be durable")
    )
    return checks


def _packages(manifest: Manifest, project: Path) -> list[Check]:
    """An app without a package may do nothing, which is seldom what was meant."""
    folder = project / manifest.policies
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in deployed_sources(folder)]
    found = {match.group(1) for text in texts for match in _PACKAGE.finditer(text)}
    wanted = {app: package_path(app) for app in manifest.runners}
    return [
        Check(
            f"policy of {app}",
            ok=False,
            detail=f"no package {package} in {folder}: every call of {app} is denied",
            fix=f"write {folder / app}.rego, as meshgate scan does",
        )
        for app, package in wanted.items()
        if package not in found
    ]


def _policies(project: Path) -> list[Check]:
    if next((row for row in runtime.show() if row["name"] == "opa"), {}).get("state") == "missing":
        return []
    from meshgate_deploy.policy_commands import check

    problems = check(project, _quiet)
    return [
        Check("policies", ok=False, detail=f"{p['file']}:{p['line']} {p['message']}", fix=p["fix"])
        for p in problems
    ] or [Check("policies", ok=True, detail="compile strictly")]


def _running(project: Path) -> list[Check]:
    control = open_state(project).control
    if not reachable(control):
        return [Check("mesh", ok=True, detail="not up; its plane is probed when it is")]
    asked: list[Callable[[], list[Check]]] = [
        lambda: _processes(control),
        lambda: _gateway(control),
        lambda: _listeners(control),
        lambda: _plane(control),
    ]
    checks: list[Check] = []
    for ask in asked:
        try:
            checks += ask()
        except MeshError as error:
            checks.append(Check("mesh", ok=False, detail=f"{error.what} {error.why}", fix=error.next_step))
    return checks


def _processes(control: Path) -> list[Check]:
    rows = ask_once(control, {"op": "status"})["processes"]
    return [
        Check(
            f"process {row['name']}",
            row["state"] in ("ready", "running"),
            f"{row['state']} {row['detail']}",
            f"meshgate logs {row['name']}",
        )
        for row in rows
    ]


def _listeners(control: Path) -> list[Check]:
    """Where the mesh listens: nowhere that another machine reaches."""
    rows = ask_once(control, {"op": "status"})["processes"]
    wide = [
        f"{row['name']} on {address}:{port}"
        for row in rows
        if row["pid"]
        for address, port in sockets.tcp_listeners(row["pid"])
        if not address.is_loopback
    ]
    fix = "keep those ports behind a firewall; if one is daprd's, unset MESHGATE_DAPR"
    return [Check("every listener is on loopback", not wide, ", ".join(wide) or "127.0.0.1 only", fix)]


def _gateway(control: Path) -> list[Check]:
    status = ask_once(control, {"op": "admin", "method": "Status"})
    reasons = ", ".join(status["not_ready_reasons"])
    detail = f"policy {status['policy_revision']}, {status['records']} records {reasons}"
    return [Check("gateway is ready", bool(status["ready"]), detail, "meshgate logs gateway")]


def _plane(control: Path) -> list[Check]:
    rows = ask_once(control, {"op": "probe"})["checks"]
    return [Check(row["name"], row["ok"], row["detail"], row["fix"]) for row in rows]


def _quiet(_text: str) -> None:
    """Progress nobody asked for."""
