"""The rules of each app's programs: what the manifest and the machine make of them, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from meshgate_agents.child import confine
from meshgate_agents.child.confine import Rules, from_json
from meshgate_deploy import configs, interpreter_paths, isolation, manifest
from meshgate_deploy.errors import DependencyUnavailable, ManifestError, UsageError
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.state import State, prepare_state

TEXT = """\
apiVersion: meshgate/v1
mesh: desk
trustDomain: desk.example
{more}
crews:
  clerk: {{crew: "clerk:make", env: [OPENAI_BASE_URL]{crew}}}
programs:
  nightly: {{run: [python, nightly.py]{program}}}
"""
PATH = {"PATH": os.environ["PATH"]}
MODEL = {**PATH, "OPENAI_BASE_URL": "http://127.0.0.1:8123/v1", "HOME": "/home/nobody"}


@pytest.fixture
def state(tmp_path: Path) -> State:
    """Of a project with variables and a folder."""
    (tmp_path / "reports").mkdir()
    for name in (".env", ".env.local", ".env.example"):
        (tmp_path / name).touch()
    return prepare_state(tmp_path)


def written(state: State, crew: str = "", program: str = "", more: str = "") -> Manifest:
    path = state.project / "meshgate.yaml"
    path.write_text(TEXT.format(crew=crew, program=program, more=more))
    return manifest.load(path)


def rules(made: Manifest, state: State, app: str, which: str, env: dict[str, str] | None = None) -> Rules:
    """As a launcher's config has them."""
    config = configs.launcher(made, state, app, target="", definitions={}, env=env or PATH, run_id=None)
    return from_json(Rules(**config["isolation"][which]).as_json())


def test_a_crew_s_own_program_gets_what_it_needs(state) -> None:
    """Interpreter and project to read, its own folders to write; nothing of the mesh, no variables."""
    own = rules(written(state), state, "clerk", "own")
    folders = {f"{state.root}/work/clerk/{name}" for name in ("home", "tmp", "home/.cache")}
    of_ours = {path for path in own.write if not path.startswith("/dev/")}
    assert of_ours == folders | {f"{state.data}/crewai-clerk"}
    assert {str(state.root), f"{state.project}/.env", f"{state.project}/.env.local"} <= set(own.hide)
    assert f"{state.project}/.env.example" not in own.hide
    assert str(state.project) in own.read
    assert {"/", "/home", "/tmp", "/root", "/var"}.isdisjoint(own.read)
    assert (own.connect, own.listen, own.cover) == ((443,), False, "also")


def test_any_other_program_gets_what_its_user_has_but_the_mesh(state) -> None:
    """A program of the manifest, and a command that is run as a crew."""
    made = written(state)
    for app in ("clerk", "nightly"):
        other = rules(made, state, app, "other")
        assert "/" in other.write
        assert {str(state.root), f"{state.project}/.env"} <= set(other.hide)
        assert (other.connect, other.listen, other.cover) == (None, True, "instead")
    config = configs.launcher(made, state, "nightly", target="", definitions={}, env=PATH, run_id=None)
    assert config["isolation"]["own"] is None


def test_sockets_that_lie_elsewhere_are_hidden_too(tmp_path, monkeypatch) -> None:
    """With a long path they are in a folder of their own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    project = tmp_path / ("p" * 90)
    project.mkdir()
    state = prepare_state(project)
    assert not state.sockets.is_relative_to(state.root)
    assert str(state.sockets) in rules(written(state), state, "nightly", "other").hide


def test_ports_are_the_model_s_and_the_written(state) -> None:
    """From addresses in the app's variables, with or without a port; a program's when they are written."""
    env = {
        **MODEL, "AZURE_ENDPOINT": "https://a.example", "OLLAMA_API_BASE": "http://o.example",
        "https_proxy": "proxy.example:3128", "BROKEN_BASE_URL": "http://[", "DATABASE": "x://y:5432",
    }  # fmt: skip
    assert rules(written(state), state, "clerk", "own", env).connect == (80, 443, 3128, 8123)
    made = written(state, crew=", ports: [5432]", program=", ports: [5432, 443]")
    assert rules(made, state, "clerk", "own", MODEL).connect == (443, 5432, 8123)
    assert rules(made, state, "nightly", "other", MODEL).connect == (443, 5432)
    with pytest.raises(ManifestError):
        written(state, crew=", ports: [0]")


def test_what_is_writable_is_named(state) -> None:
    """A folder of the project, or all of it: then what is hidden there is covered and nothing else."""
    assert (
        f"{state.project}/reports"
        in rules(written(state, crew=", writable: [reports]"), state, "clerk", "own").write
    )
    whole = rules(written(state, crew=', writable: ["."]'), state, "clerk", "own")
    assert (str(state.project) in whole.write, whole.cover) == (True, "instead")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none", "does not exist"),
        (".env", "the mesh's own"),
        (".meshgate/ca", "the mesh's own"),
        ("link", "own"),
    ],
)
def test_what_cannot_be_writable_is_refused(state, path: str, why: str) -> None:
    """Before anything starts; a link counts as where it leads."""
    (state.project / "link").symlink_to(state.root)
    with pytest.raises(UsageError) as caught:
        isolation.require(written(state, crew=f", writable: [{path}]"), state)
    assert f"crews.clerk.writable: '{path}'" in caught.value.what
    assert why in caught.value.what


@pytest.mark.parametrize(("version", "why"), [(0, "no Landlock"), (3, "no TCP ports")])
def test_a_kernel_that_cannot_is_refused(state, monkeypatch, version: int, why: str) -> None:
    """Unless the manifest says that nothing is to be kept apart."""
    monkeypatch.setattr(confine, "abi", lambda: version)
    with pytest.raises(DependencyUnavailable) as caught:
        isolation.require(written(state), state)
    assert why in caught.value.why
    assert "isolation: none" in caught.value.next_step
    (check,) = isolation.examine(written(state), state, {})
    assert (check.ok, why in check.detail) == (False, True)
    without = written(state, more="isolation: none")
    isolation.require(without, state)
    config = configs.launcher(without, state, "clerk", target="", definitions={}, env=PATH, run_id=None)
    assert config["isolation"] is None
    checks = isolation.examine(without, state, {})
    assert [(check.name, check.detail) for check in checks] == [
        ("isolation of clerk", "none, as written"), ("isolation of nightly", "none, as written"),
    ]  # fmt: skip


def test_doctor_says_per_app_what_is_in_force(state) -> None:
    """Kind of confinement, ports, what is written."""
    made = written(state, crew=", writable: [reports]")
    clerk, nightly = isolation.examine(made, state, {"clerk": MODEL, "nightly": MODEL})
    assert "Landlock ABI" in clerk.detail
    assert "TCP to 443 8123" in clerk.detail
    assert clerk.detail.endswith("writes its work folder, reports")
    assert "any TCP port" in nightly.detail
    assert "all files of its user but .meshgate/ and .env" in nightly.detail


def test_an_interpreter_is_found_behind_a_shim_with_what_it_points_to(tmp_path) -> None:
    """As pyenv has it; editable installs of either kind."""
    shim, venv = tmp_path / "python", tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    shim.write_text(f'#!/bin/sh\nexec {venv}/bin/python "$@"\n')
    shim.chmod(0o755)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "one.pth").write_text("/elsewhere/one\nimport evil\nrelative\n")
    (site / "__editable___two_finder.py").write_text(
        "MAPPING: dict = {'two': '/elsewhere/two'}\nraise SystemExit('run')\n"
    )
    found = interpreter_paths.look(str(shim), {"PATH": os.environ["PATH"], "PYTHONPATH": "/given:relative"})
    assert found.executable == f"{venv}/bin/python"
    assert {"/elsewhere/one", "/elsewhere/two", "/given", f"{venv}/pyvenv.cfg"} <= set(found.paths)
    assert str(tmp_path) not in found.paths
    assert interpreter_paths.look("/no/python", {}).executable == "/no/python"
