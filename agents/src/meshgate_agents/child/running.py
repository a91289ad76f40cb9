"""Runs a file, a module or a text as the interpreter does with `python FILE`, `-m MODULE` and `-c TEXT`."""
# ruff: noqa: PTH100, PTH109, PTH113, PTH117, PTH118, PTH120, PTH123, PTH208 - text, as the interpreter has it

import builtins
import importlib.machinery
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, ModuleType, TracebackType

SUFFIXES = tuple(importlib.machinery.all_suffixes())
CUSTOM = ("sitecustomize", "usercustomize")


class Program:
    """One command line of an interpreter.

    Args:
        argv: it, without flags of the interpreter.
        python: the interpreter, as it was found.
        environ: the program's variables.
        base: where modules are searched after what is the program's own.
    """

    def __init__(
        self, argv: Sequence[str], *, python: str, environ: dict[str, str], base: "Sequence[str]"
    ) -> None:
        self._argv, self._python, self._base = list(argv), python, list(base)
        self._environ = environ
        self._how = argv[1] if argv[1] in ("-m", "-c") else ""
        self._what = argv[2] if self._how else argv[1]

    def differs(self, site: str) -> str:
        """Why it cannot be run in a process that has imported already; empty when it can.

        Args:
            site: the folder of ours on PYTHONPATH.
        """
        if not self._how and not os.path.isfile(self._what):
            return f"{self._what} is no file"
        if site not in self._own_path():
            return "PYTHONPATH does not lead to the interception"
        for folder in self._folders():
            name = _shadowed(folder, site)
            if name:
                return f"{folder} has a module {name}, which is imported already"
        return ""

    def begin(self) -> Callable[[], None]:
        """Sets the interpreter up; what it gives runs the program."""
        self._set_up()
        return self.run

    def _set_up(self) -> None:
        arguments = self._argv[3:] if self._how else self._argv[2:]
        sys.orig_argv = list(self._argv)
        sys.argv = [self._how or self._what, *arguments]
        sys.executable = self._python
        sys.path[:] = _without_doubles([self._first(), *self._own_path(), *self._base])
        main = ModuleType("__main__")
        main.__dict__.update(__builtins__=builtins, __annotations__={}, __loader__=None)
        sys.modules["__main__"] = main

    def run(self) -> None:
        """The program, to its end."""
        try:
            if self._how == "-m":
                runpy._run_module_as_main(self._what)  # type: ignore[attr-defined]  # noqa: SLF001 - as `-m` does
            else:
                exec(self._code(), sys.modules["__main__"].__dict__)  # noqa: S102 - the program
        except SystemExit:
            raise
        except BaseException as error:
            _tell_without_us(error)
            raise

    def _code(self) -> CodeType:
        main = sys.modules["__main__"]
        if self._how == "-c":
            main.__loader__ = importlib.machinery.BuiltinImporter
            return compile(self._what, "<string>", "exec", dont_inherit=True)
        path = self._what if os.path.isabs(self._what) else os.path.join(os.getcwd(), self._what)
        main.__file__ = path
        main.__dict__["__cached__"] = None
        main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
        with open(path, "rb") as file:
            return compile(file.read(), path, "exec", dont_inherit=True)

    def _first(self) -> str:
        if self._how == "-m":
            return os.getcwd()
        return "" if self._how else os.path.dirname(os.path.realpath(self._what))

    def _own_path(self) -> list[str]:
        entries = self._environ.get("PYTHONPATH", "").split(os.pathsep)
        return [os.path.abspath(entry) for entry in entries if entry]

    def _folders(self) -> list[str]:
        """Where its own modules are, in front of all others."""
        folders = [self._first() or os.getcwd(), *self._own_path()]
        if self._what.startswith("meshgate_"):  # a command of ours, which puts these in front
            root = self._environ.get("MESHGATE_PROJECT_ROOT", ".")
            folders += [root, os.path.join(root, "src")]
        return folders


def _without_doubles(entries: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(entries))


def _shadowed(folder: str, site: str) -> str:
    """A module of a folder under whose name another one is imported already."""
    if folder == site:
        return ""
    for name, path in _modules(folder):
        if name in CUSTOM:
            return name
        loaded = sys.modules.get(name)
        if loaded is None or name == "__main__":
            continue
        if os.path.realpath(getattr(loaded, "__file__", None) or "") != os.path.realpath(path):
            return name
    return ""


def _modules(folder: str) -> Iterator[tuple[str, str]]:
    """Names that can be imported from a folder, and the files that would be."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        path = os.path.join(folder, entry)
        suffix = next((suffix for suffix in SUFFIXES if entry.endswith(suffix)), "")
        if suffix:
            yield entry[: -len(suffix)], path
        elif os.path.isfile(inside := os.path.join(path, "__init__.py")):
            yield entry, inside


def _tell_without_us(error: BaseException) -> None:
    """Has an uncaught exception told as if nothing of ours were below it; the interpreter does the rest."""
    hook, own = sys.excepthook, Program.run.__code__

    def once(kind: type[BaseException], value: BaseException, where: TracebackType | None) -> None:
        sys.excepthook = hook
        while where is not None and where.tb_frame.f_code is not own:
            where = where.tb_next
        while where is not None and where.tb_frame.f_globals is globals():  # that of `compile` too
            where = where.tb_next
        hook(kind, value.with_traceback(where), where)

    sys.excepthook = once
    del error
