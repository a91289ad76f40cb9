"""What a project's source says without running it: crews, environment variables, network use.

It reads syntax only. A variable whose name is computed, and a crew that is built in a function with
parameters, are not seen.
"""

import ast
import contextlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "build", "dist", "node_modules", "site-packages", "test", "tests", "venv"}
)
MAX_FILES = 2000  # a project larger than this names its crews on the command line
MAX_FILE_BYTES = 1_000_000
JSON_SUFFIXES = (".jsonc", ".json")
_JSON_CREWS = frozenset(f"crew{suffix}" for suffix in JSON_SUFFIXES)
_NETWORK = frozenset({"aiohttp", "httpx", "requests", "socket", "urllib"})
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|DSN|AUTH", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Variable:
    """A use of an environment variable.

    Attributes:
        at_import: it is read when the module is imported, not when a function is called.
    """

    name: str
    line: int
    has_default: bool
    at_import: bool

    @property
    def is_secret(self) -> bool:
        """Whether its name says so."""
        return looks_secret(self.name)


@dataclass(frozen=True, slots=True)
class Module:
    """One source file.

    Attributes:
        name: as it is imported.
        path: from the project's root.
        is_script: it has a `__main__` guard and lies where it is run from, outside any package.
        crews: names in it that are, or make, a crew.
        imports: every module it imports by an absolute name, and the relative ones made absolute.
        flow_network: lines in `Flow` classes that use the network outside any tool.
        mcp_adapters: lines that start an MCP server in the program's own process.
    """

    name: str
    path: str
    is_script: bool
    crews: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    imports: frozenset[str] = field(default_factory=frozenset)
    flow_network: tuple[int, ...] = ()
    mcp_adapters: tuple[int, ...] = ()
    mentions_crewai: bool = False

    def reference(self, name: str) -> str:
        """How the manifest writes a name of this module."""
        return f"{self.path if self.is_script else self.name}:{name}"


def looks_secret(variable: str) -> bool:
    """Whether a variable's name says that its value is a secret."""
    return bool(_SECRET.search(variable))


def source_roots(project: Path) -> list[Path]:
    """Folders from which modules are imported."""
    source = project / "src"
    return [source, project] if source.is_dir() and not (source / "__init__.py").exists() else [project]


def read_project(project: Path) -> dict[str, Module]:
    """Every module of a project by name. Files that are no Python are left out."""
    roots = source_roots(project)
    modules: dict[str, Module] = {}
    for path in _files(project, lambda path: path.suffix == ".py"):
        root = next(root for root in roots if path.is_relative_to(root))
        parts = list(path.relative_to(root).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        name = ".".join(parts)
        if not name or not all(part.isidentifier() for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        modules.setdefault(name, _module(name, path, project, tree))
    return modules


def reachable(modules: Mapping[str, Module], start: str, *, stop: Sequence[str] = ()) -> set[str]:
    """The project's modules that importing `start` also imports, itself included.

    Args:
        modules: the project.
        start: a module's name.
        stop: modules that are not entered.
    """
    found: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in found or name in stop or name not in modules:
            continue
        found.add(name)
        todo += modules[name].imports
        todo += [name.rpartition(".")[0]]
    return found


def json_crews(project: Path) -> list[str]:
    """Files that CrewAI builds a crew from, by their paths: the one it names, and any `crew.jsonc`."""
    found = [path.relative_to(project) for path in _files(project, _may_be_crew)]
    found = [path for path in found if path.suffix == ".jsonc" or path.with_suffix(".jsonc") not in found]
    with contextlib.suppress(OSError, ValueError):
        settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        named = settings.get("tool", {}).get("crewai", {})
        if named.get("type") == "crew" and (project / str(named.get("definition", ""))).is_file():
            found.append(Path(named["definition"]))
    return sorted({path.as_posix() for path in found})


def _may_be_crew(path: Path) -> bool:
    if path.name not in _JSON_CREWS:
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return '"agents"' in text and '"tasks"' in text


def _files(project: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    todo, count = [project], 0
    while todo:
        folder = todo.pop()
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or path.name.startswith("."):
                continue
            if path.is_dir():
                if path.name not in SKIPPED_FOLDERS and not (path / "pyvenv.cfg").exists():
                    todo.append(path)
            elif wanted(path) and path.stat().st_size <= MAX_FILE_BYTES:
                count += 1
                if count > MAX_FILES:
                    return
                yield path


def _module(name: str, path: Path, project: Path, tree: ast.Module) -> Module:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = frozenset(_imports(tree, package))
    return Module(
        name=name,
        path=path.relative_to(project).as_posix(),
        is_script="." not in name and any(_is_main_guard(node) for node in tree.body),
        crews=tuple(_crews(tree)),
        variables=tuple(_variables(tree)),
        imports=imports,
        flow_network=tuple(_flow_network(tree)),
        mcp_adapters=tuple(
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and _last_name(node.func) == "MCPServerAdapter"
        ),
        mentions_crewai=any(imported.partition(".")[0] == "crewai" for imported in imports),
    )


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in {
        name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)
    }


def _crews(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if (
            isinstance(node, ast.Assign | ast.AnnAssign)
            and node.value is not None
            and _is_crew_call(node.value)
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ClassDef):
            if any(_last_name(decorator) == "CrewBase" for decorator in node.decorator_list):
                yield node.name
        elif isinstance(node, ast.FunctionDef) and not _required(node.args):
            returns = [part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value]
            made = {
                target.id
                for part in ast.walk(node)
                if isinstance(part, ast.Assign) and _is_crew_call(part.value)
                for target in part.targets
                if isinstance(target, ast.Name)
            }
            if any(_is_crew_call(value) or getattr(value, "id", None) in made for value in returns):
                yield node.name


def _is_crew_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) == "Crew"


def _required(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or any(default is None for default in arguments.kw_defaults)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _variables(tree: ast.Module) -> Iterator[Variable]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    later = {id(inner) for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        name, default = _environment_read(node)
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield Variable(name.value, getattr(node, "lineno", 0), default, id(node) not in later)


def _environment_read(node: ast.AST) -> tuple[ast.expr | None, bool]:
    """The name that an expression reads from the environment, and whether it may be absent."""
    if isinstance(node, ast.Subscript) and _last_name(node.value) == "environ":
        return (node.slice, False) if isinstance(node.ctx, ast.Load) else (None, False)
    if isinstance(node, ast.Call) and node.args:
        called = _last_name(node.func)
        of_environ = isinstance(node.func, ast.Attribute) and _last_name(node.func.value) == "environ"
        if called == "getenv" or (of_environ and called in ("get", "pop", "setdefault")):
            return node.args[0], True
    return None, False


def _flow_network(tree: ast.Module) -> Iterator[int]:
    """Calls on a network library's module in a Flow: nothing brokers them."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ClassDef) and any(_is_flow(base) for base in node.bases)):
            continue
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                first = call.func.value
                while isinstance(first, ast.Attribute):
                    first = first.value
                if isinstance(first, ast.Name) and first.id in _NETWORK:
                    yield call.lineno


def _is_flow(base: ast.expr) -> bool:
    return _last_name(base.value if isinstance(base, ast.Subscript) else base) == "Flow"
