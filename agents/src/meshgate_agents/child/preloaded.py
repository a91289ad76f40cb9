"""What a fork server imports for programs, and what of it depends on where it was imported.

A program that is forked finds these modules imported. That must make no difference to it: so it is noted
which variables the imports read, and CrewAI stays out of `sys.modules` until the program imports it.
"""

import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from . import first_call
from .homes import Homes

STORAGE = "CREWAI_STORAGE_DIR"
HIDDEN = "crewai"  # top-level modules that begin so: CrewAI, its tools, its parts
# Of CrewAI's own record of its user: that no traces are wanted, so that no import sets up to collect them.
USER = {"first_execution_done": True, "trace_consent": False}
USER_FILE = ".crewai_user.json"
# Where programs and our own things are: no import keeps them.
ELSEWHERE = (
    "PATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_NO_SYNC", "UV_OFFLINE", "UV_CACHE_DIR", "UV_PYTHON",
    "PYTHONPATH", STORAGE, "PWD", "OLDPWD", "SHLVL", "_", "MESHGATE_APP", "MESHGATE_SOCKET",
    "MESHGATE_INPUT", "MESHGATE_PROJECT_ROOT", "MESHGATE_RUNNER",
)  # fmt: skip
# Read where Python does not see it, or by a look at all variables.
PREFIXES = (
    "PYTHON", "CREWAI_", "OTEL_", "GRPC_", "OPENSSL_", "SSL_", "LITELLM_", "OPENBLAS_", "OMP_", "MKL_",
    "LANG", "LC_", "TZ", "HF_", "TOKENIZERS_", "RUST_", "ARROW_", "LANCE", "MALLOC_", "GLIBC_", "LD_",
    "COVERAGE_", "COV_",
)  # fmt: skip
SUFFIXES = ("_PROXY",)
# Classes that are completed when they are first used, which each program does: 40 ms.
COMPLETED = ("crewai.", "openai.types.chat.")

Begin = Callable[[], None]


class Preloaded:
    """What was imported, in the server and in what is forked from it.

    Attributes:
        path: where modules are searched, without what a program adds to it.
        added: variables that the interpreter gave itself.
    """

    def __init__(self) -> None:
        given = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
        self._environ = {item.partition("=")[0]: item.partition("=")[2] for item in given if item}
        del self._environ[STORAGE]
        # An interpreter that starts in the C locale adds a variable of its own, so it would in a program.
        self.added = {k: v for k, v in os.environ.items() if k not in self._environ and k != STORAGE}
        self._read: set[str] = set()
        own = os.path.dirname(os.path.abspath(sys.modules["__main__"].__file__ or ""))  # noqa: PTH100, PTH120
        self.path = [entry for entry in sys.path[1:] if entry != own]  # the first is this folder, for `-m`
        self._storage = os.environ[STORAGE]
        self._homes = Homes(os.path.dirname(self._storage), self._environ)  # noqa: PTH120 - text
        self._storage_names: list[tuple[dict[str, Any], str]] = []

    def load(self, modules: Sequence[str]) -> None:
        """Imports; whoever lacks one of the later ones does without it."""
        _want_no_traces(self._storage)
        with _noted(self._read):
            importlib.import_module(modules[0])
            for module in modules[1:]:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
            _complete()
        first_call.build()  # reads a program's variables, and keeps none
        self._read |= _settings()
        self._storage_names = _where_kept(self._storage)
        self._homes.look()

    def differs(self, environ: dict[str, str]) -> str:
        """The variable by which an import would have gone another way in a program's environment."""
        elsewhere = {*ELSEWHERE, *self._homes.elsewhere}
        for name in sorted({*environ, *self._environ}):
            upper = name.upper()
            matters = name in self._read or upper.startswith(PREFIXES) or upper.endswith(SUFFIXES)
            if matters and name not in elsewhere and environ.get(name) != self._environ.get(name):
                return name
        return self._homes.differ(environ)

    def settle(self) -> None:
        """What was imported finds this process's own folders, by the variables that it has now."""
        self._homes.settle(os.environ)

    def hide(self, begin: Begin) -> None:
        """CrewAI seems not to be imported; when it is, `begin` is called first, and then it is there."""
        sys.meta_path.insert(0, Hidden(begin, self._rename))

    def _rename(self) -> None:
        """The storage folder of this program, wherever an import has kept the server's."""
        own = importlib.import_module("crewai_core.paths").db_storage_path()
        for names, name in self._storage_names:
            names[name] = names[name].replace(self._storage, own)


def _want_no_traces(folder: str) -> None:
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    Path(folder, USER_FILE).write_text(json.dumps(USER))


def preload(modules: Sequence[str]) -> Preloaded:
    """Imports what programs need."""
    found = Preloaded()
    found.load(modules)
    return found


class Hidden:
    """A meta path finder that has CrewAI's modules, and gives them when the first of them is asked for."""

    def __init__(self, begin: Begin, rename: Begin) -> None:
        self._begin, self._rename = begin, rename
        self._lock = threading.RLock()
        names = [name for name in sys.modules if name.partition(".")[0].startswith(HIDDEN)]
        self._modules = {name: sys.modules.pop(name) for name in names}
        self._specs = {name: module.__spec__ for name, module in self._modules.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Python's import protocol."""
        del path, target
        spec = self._specs.get(fullname) if fullname in self._modules else None
        if spec is None:
            return None
        found = importlib.machinery.ModuleSpec(fullname, self, origin=spec.origin)  # type: ignore[arg-type]
        found.submodule_search_locations = spec.submodule_search_locations
        found.has_location = spec.has_location
        found.cached = spec.cached
        return found

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module as it was imported."""
        return self._modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """All of CrewAI is there at once, as after an import of it; nobody calls it before we have begun."""
        with self._lock:
            module.__spec__ = self._specs[module.__name__]
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                before = {name: sys.modules[name] for name in self._modules if name in sys.modules}
                self._begin()
                sys.modules.update(self._modules)
                sys.modules.update(before)
                self._rename()


@contextlib.contextmanager
def _noted(names: set[str]) -> Iterator[None]:
    """Notes which variables are read, also those that are not there."""
    environ = type(os.environ)
    get = environ.__getitem__

    def noted(self: Any, name: str) -> str:
        names.add(name)
        return get(self, name)

    environ.__getitem__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        environ.__getitem__ = get  # type: ignore[method-assign]


def _complete() -> None:
    """Completes classes as their first use would; one whose names are not all there yet stays as it is."""
    pydantic = sys.modules.get("pydantic")
    for one in () if pydantic is None else _below(pydantic.BaseModel):
        if one.__module__.startswith(COMPLETED) and not one.__pydantic_complete__:
            one.model_rebuild(raise_errors=False)
    executor: Any = getattr(sys.modules.get("crewai.agents.agent_executor"), "AgentExecutor", None)
    if hasattr(executor, "flow_definition"):
        executor.flow_definition()  # kept with the class


def _settings() -> set[str]:
    """The variables of classes that take their values from all that are there, in either case."""
    module = sys.modules.get("pydantic_settings")
    names: set[str] = set()
    for one in () if module is None else _below(module.BaseSettings):
        prefix = one.model_config.get("env_prefix", "")
        names |= {prefix + name for name in one.model_fields}
    return names | {name.upper() for name in names} | {name.lower() for name in names}


def _below(base: Any) -> Iterator[Any]:
    """A class and all that descend from it, each once."""
    known, classes = {base}, [base]
    while classes:
        one = classes.pop()
        yield one
        new = [each for each in one.__subclasses__() if each not in known]
        known.update(new)
        classes += new


def _where_kept(text: str) -> list[tuple[dict[str, Any], str]]:
    """The globals of modules that hold a text. Anywhere else it could not be changed."""
    found: list[tuple[dict[str, Any], str]] = []
    globals_of = {id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, ModuleType)}
    environ = id(os.environ._data)  # type: ignore[attr-defined]  # noqa: SLF001 - where it comes from
    own = {id(found), id(globals_of), id(sys._getframe())}  # noqa: SLF001 - this frame holds it too
    waiting: list[Any] = [thing for thing in gc.get_objects() if id(thing) not in own]
    for thing in waiting:
        if id(thing) == environ or type(thing).__name__ == "frame" or type(thing) is Preloaded:
            continue
        for held in gc.get_referents(thing):
            if type(held) is str and text in held:
                if id(thing) not in globals_of:
                    if type(thing) is dict and thing.get("_storage") == text:
                        continue
                    sys.exit(
                        f"this CrewAI keeps its storage folder in a {type(thing).__name__}: {held[:200]}"
                    )
                found += [(thing, name) for name, value in thing.items() if value is held]
            elif not gc.is_tracked(held) and isinstance(held, (tuple, dict, frozenset)):
                waiting.append(held)
    return found
