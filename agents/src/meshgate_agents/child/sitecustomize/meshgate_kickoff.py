"""Builds what `crew: module:name` names and kicks it off: `python -m meshgate_kickoff REFERENCE`.

The name may be a crew, a flow, a class that CrewBase decorates, or anything that gives one of these when it
is called. Inputs come from the file MESHGATE_INPUT. The result goes to the launcher, as JSON, and nowhere
else: the app's log is kept in the clear, and longer than the run.
"""
# ruff: noqa: INP001 - no package: it lies where PYTHONPATH leads

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

MAX_STEPS = 4  # a factory of a CrewBase class is three


def main(reference: str) -> None:
    """Kicks it off and tells what it gave."""
    root = project()
    inputs = {**_default_inputs(root / reference), **(given() or {})} if _is_json(reference) else given()
    tell(_plain(runnable(reference, root).kickoff(inputs=inputs)))


def project() -> Path:
    """The project's folder, from where its modules are imported."""
    root = Path(os.environ.get("MESHGATE_PROJECT_ROOT", "."))
    sys.path[:0] = [str(folder) for folder in (root, root / "src") if folder.is_dir()]
    return root


def given():  # type: ignore[no-untyped-def]  # noqa: ANN201 - any JSON
    """What the run was started with; None for nothing."""
    path = os.environ.get("MESHGATE_INPUT")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def runnable(reference: str, root: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a Crew or Flow
    """What a reference names, built."""
    return _runnable(_found(reference, root))


def _found(reference: str, root: Path) -> object:
    if _is_json(reference):
        return importlib.import_module("crewai.project.crew_loader").load_crew(root / reference)[0]
    place, _, names = reference.rpartition(":")
    found: object = _module(root / place) if place.endswith(".py") else importlib.import_module(place)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _is_json(reference: str) -> bool:
    """Whether it is the path of a `crew.jsonc`, which CrewAI builds a crew from."""
    return reference.endswith((".json", ".jsonc")) and ":" not in reference


def _default_inputs(path: Path) -> "dict[str, object]":
    """What the file itself gives for its placeholders; CrewAI leaves it to whoever kicks off."""
    found = importlib.import_module("crewai.project.json_loader").load_jsonc_file(path)
    return dict(found.get("inputs") or {})


def _module(path: Path) -> object:
    """A file is imported under its own name, from its own folder, as `python FILE` has it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _runnable(found: object):  # type: ignore[no-untyped-def]  # noqa: ANN202 - CrewAI's Crew or Flow
    for _ in range(MAX_STEPS):
        if not isinstance(found, type):
            if callable(getattr(found, "kickoff", None)):
                return found
            if callable(getattr(found, "crew", None)):  # an instance of a CrewBase class
                found = found.crew()  # type: ignore[attr-defined]
                continue
        if not callable(found):
            break
        found = found()
    raise TypeError(f"{found!r} is no crew and no flow, and gives none when it is called")


def _plain(result: object) -> object:
    """The result as JSON has it."""
    raw = getattr(result, "raw", None)
    if raw is None:
        dump = getattr(result, "model_dump", None)
        return dump(mode="json") if callable(dump) else result
    json_dict, pydantic = getattr(result, "json_dict", None), getattr(result, "pydantic", None)
    value = pydantic.model_dump(mode="json") if pydantic is not None else json_dict
    return {"raw": raw} if value is None else {"raw": raw, "value": value}


def tell(value: object) -> None:
    """The run's result."""
    channel = importlib.import_module("_meshgate_child.channel").from_environment()
    channel.ask({"op": "result", "result": json.dumps(value, default=str, ensure_ascii=False)})


if __name__ == "__main__":
    main(sys.argv[1])
    importlib.import_module("_meshgate_child.leaving").leave()
