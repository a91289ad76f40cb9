"""`meshgate init`: a commented manifest to start from, with the crews and agents that `scan` finds."""

from pathlib import Path

from meshgate_policies import scaffold

from meshgate_deploy import scan, scan_text
from meshgate_deploy.errors import DependencyUnavailable, NotFound, UsageError
from meshgate_deploy.manifest_agents import RESERVED
from meshgate_deploy.manifest_agents import app_id as slug
from meshgate_deploy.scan_findings import Findings

_HEAD = """\
# The mesh of this project. `meshgate scan` fills this in from a CrewAI project;
# `meshgate doctor` checks it; unknown keys are errors.
apiVersion: meshgate/v1
mesh: {mesh}
trustDomain: {mesh}.example   # the first part of every identity: spiffe://{mesh}.example/ns/{mesh}/<app>

# Every crew, and every agent of it, is an app with an identity of its own. Their processes run none of
# the tools below and see none of their secrets.
"""

_EXAMPLE = """\
crews:
  {app}:
    crew: {module}.crew:crew    # an object, a function that makes one, a @CrewBase class, a crew.jsonc
    # agents:                   # each one listed is an app of its own, known by its role: it needs a
    #   writer: {{role: Senior Writer}}    # policy too; `isolate: crew` keeps them in the crew's process
    env: []                     # variables its processes get; all others stay away
    secrets: [OPENAI_API_KEY]   # the same, for values that are never shown
"""

_REST = """\

# Programs that run agents or tools without a crew.
# programs:
#   nightly: {{run: [python, -m, {module}.nightly]}}

# Processes that run real tools. Each has its own identity, and only it has its secrets.
# toolhosts:
#   orders:
#     tools:
#       - {module}.tools:lookup_order                # a function, or an object by name
#       - {{class: "crewai_tools:FileReadTool", config: {{file_path: notes.txt}}}}
#       - {{factory: "{module}.tools:make_search"}}    # where a value cannot be written here
#     secrets: [PAYMENT_KEY]
#     cwd: data
#   time: {{mcp: {{command: [mcp-server-time]}}}}

# What a tool's effect is: read, reversible, external, irreversible (the default), memory.
# What is not `read` is never run twice unless it is idempotent; `repeat` says what an equal second
# call in one task gets: allow, same (the first result), deny.
# tools:
#   orders.lookup_order: {{effect: read}}

policies: policies              # one Rego package per app; nothing is allowed without a rule
store: sqlite
"""


def init(project: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Writes the manifest, and for each of its apps a policy that allows nothing, with a test.

    Crews and agents are those that `scan` finds; a project without any, or one that cannot be imported, gets
    an example of a crew.

    Returns:
        The files written.

    Raises:
        UsageError: one of the files is there already, and `force` is not set. Nothing was written.
    """
    project = project.resolve()
    app = slug(project.name)
    if app in RESERVED:
        app = f"{app}-app"
    module = app.replace("-", "_")
    found = _found(project)
    apps, crews = ([app], _EXAMPLE.format(app=app, module=module)) if found is None else _crews(found)
    text = _HEAD.format(mesh=slug(project.name)) + crews + _REST.format(module=module)
    files = {Path("meshgate.yaml"): text}
    for one in apps:
        paths = (Path("policies") / name for name in scaffold.file_names(one))
        files.update(zip(paths, scaffold.agent_package(one, []), strict=True))
    names = tuple(files)
    there = [str(name) for name in names if (project / name).exists()]
    if there and not force:
        raise UsageError(
            f"{', '.join(there)} exists already",
            why="init never writes over a file unasked",
            next_step="meshgate doctor, or meshgate init --force",
        )
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return names


def _found(project: Path) -> Findings | None:
    try:
        findings = scan.find(project)
    except (NotFound, DependencyUnavailable):  # `scan` says why to who asks it
        return None
    return findings if any(app.crew for app in findings.apps) else None


def _crews(findings: Findings) -> tuple[list[str], str]:
    """All apps, and the manifest's part for them."""
    crews = [app for app in findings.apps if app.crew]
    lines = ["crews:", *(line for app in crews for line in scan_text.crew(app))]
    return list(dict.fromkeys(name for app in crews for name in app.grants)), "\n".join([*lines, ""])
