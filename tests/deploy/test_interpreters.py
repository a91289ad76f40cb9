"""What `meshgate doctor` says of what the workers start."""

import json
import sys
from importlib import metadata

import pytest
from meshgate_deploy import configs, interpreters
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.state import prepare_state

BASE = {"apiVersion": "meshgate/v1", "mesh": "m", "trustDomain": "m.example"}
CREW = {"crews": {"desk": {"crew": "a.b:c"}}}
WITHOUT = f'exec {sys.executable} -S "$@"'  # no site-packages: an interpreter that has no CrewAI


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A project, with a folder that is all of the PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return prepare_state(tmp_path)


def command(state, name, script):
    """A program on the PATH."""
    path = state.project / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def examined(state, parts, *, up=False):
    """Whether it is well, and what is said."""
    [check] = interpreters.examine(Manifest.model_validate({**BASE, **parts}), state, up=up)
    return check.ok, check.detail


def test_the_workers_python_is_asked_and_not_ours(state) -> None:
    """Ours has CrewAI here; theirs is the one that is on the PATH."""
    command(state, "python", f'exec {sys.executable} "$@"')
    assert examined(state, CREW) == (True, f"{state.project}/bin/python: crewai {metadata.version('crewai')}")
    command(state, "python", WITHOUT)
    assert examined(state, CREW) == (False, f"{state.project}/bin/python: no crewai")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no such version >&2; exit 127", "does not run: no such version"),
        ("echo crewai 2.0.1", "python: crewai 2.0.1"),
    ],
)
def test_an_interpreter_that_is_of_no_use_is_told_of(state, script, said) -> None:
    """A shim that cannot run, and a version that nobody tried."""
    command(state, "python", script)
    ok, detail = examined(state, CREW)
    assert not ok
    assert said in detail


def test_an_interpreter_that_is_looked_at_gets_no_secret(state, monkeypatch) -> None:
    """Its variables yes, for they may say where its packages are."""
    monkeypatch.setenv("CARD", "4111")
    monkeypatch.setenv("PLACE", "here")
    command(state, "python", 'echo "$PLACE$CARD" >&2; exit 1')
    crew = {"crew": "a.b:c", "env": ["PLACE"], "secrets": ["CARD"]}
    assert examined(state, {"crews": {"desk": crew}})[1].endswith("does not run: here")


def test_a_program_need_not_have_crewai(state) -> None:
    """But what it starts must be there; what is no Python is not asked."""
    command(state, "python", WITHOUT)
    assert examined(state, {"programs": {"n": {"run": ["python", "n.py"]}}})[0]
    command(state, "uv", "exit 1")
    assert examined(state, {"programs": {"n": {"run": ["uv", "run", "x"]}}})[0]
    missing = {"programs": {"n": {"run": ["pyhton", "n.py"]}}}
    assert examined(state, missing) == (False, "'pyhton' is not on the PATH of `meshgate up`")


def test_of_a_mesh_that_is_up_its_own_path_counts(state, tmp_path) -> None:
    """The shell that asks may have another one."""
    command(state, "python", f'exec {sys.executable} "$@"')
    config = {"command": [str(tmp_path / "bin" / "python3")], "env": {"PATH": "/nowhere"}}
    configs.config_file(state, "desk").write_text(json.dumps(config))
    command(state, "python3", WITHOUT)
    assert examined(state, CREW)[0]
    assert examined(state, CREW, up=True) == (False, f"{state.project}/bin/python3: no crewai")
