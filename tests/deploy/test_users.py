"""`user:` of the manifest: who an app's user is, what is refused of it, and what launchers are told."""

import contextlib
import ctypes
import grp
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import readable_install
from meshgate_agents.child import confine
from meshgate_agents.child.confine import Rules, from_json
from meshgate_deploy import configs, isolation, manifest, state, user_checks, user_look, users
from meshgate_deploy.errors import (
    DependencyUnavailable,
    IntegrityFailed,
    ManifestError,
    MeshError,
    UsageError,
)
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.state import State, prepare_state

TEXT = """\
apiVersion: meshgate/v1
mesh: desk
trustDomain: desk.example
{more}
crews:
  clerk:
    crew: "clerk:make"
    user: 64121{crew}
    agents:
      billing: {{role: Billing{agent}}}
programs:
  nightly: {{run: [python, nightly.py]{program}}}
toolhosts:
  orders: {{tools: ["tools:refund"]}}
"""
ENV = {"PATH": "/nowhere"}
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
EACH = {"agent": ", user: 64122", "program": ", user: 64123"}


def written(folder: Path, **parts: str) -> Manifest:
    path = folder / "meshgate.yaml"
    path.write_text(TEXT.format(**{"more": "", "crew": "", "agent": "", "program": "", **parts}))
    return manifest.load(path)


@pytest.mark.parametrize("user", ["0", "-1", "root", "true", "4294967295", "'1000'", "1.5", "'a b'", "[1]"])
def test_a_user_is_a_name_or_a_number_and_not_root(tmp_path, user: str) -> None:
    """A number in quotes is no name."""
    with pytest.raises(ManifestError) as caught:
        written(tmp_path, program=f", user: {user}")
    assert "programs.nightly.user" in caught.value.problems[0].message
    assert caught.value.problems[0].fix == "desk-billing, or 2001"


def test_a_crew_s_user_is_not_its_agents(tmp_path) -> None:
    """Each of them has its own, or none."""
    made = written(tmp_path)
    assert users.every(made) == {"clerk": (64121, 64121)}
    assert users.every(written(tmp_path, **EACH)) == {
        "clerk": (64121, 64121), "nightly": (64123, 64123), "billing": (64122, 64122),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"agent": ", user: 64121"}, "apps 'clerk' and 'billing' have the same user 64121"),
        ({"program": ", user: 64121"}, "apps 'clerk' and 'nightly' have the same user 64121"),
        ({"more": "isolation: none"}, "nothing is to be kept apart: isolation: none"),
        ({"crew": "\n    isolate: crew", "agent": ", user: 64122"}, "is no app of its own"),
    ],
)
def test_what_keeps_nobody_apart_is_refused_as_it_is_written(tmp_path, parts, said: str) -> None:
    """With its line."""
    with pytest.raises(ManifestError) as caught:
        written(tmp_path, **parts)
    assert said in caught.value.problems[0].message


def _entry(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/false"))


def test_names_are_the_machine_s(tmp_path, monkeypatch) -> None:
    """One that it does not know, one that is root's, and two that are one uid are refused."""
    known = {"desk-a": _entry("desk-a", 64124, 64125), "toor": _entry("toor", 0, 64127)}
    known |= {"wheel": _entry("wheel", 64126, 0), "same": _entry("same", 64121, 64121)}
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    assert users.of(written(tmp_path, program=", user: desk-a"), "nightly") == (64124, 64125)
    for name, said in (("none", "no user 'none'"), ("toor", "uid 0"), ("wheel", "gid 0")):
        with pytest.raises(UsageError) as caught:
            users.every(written(tmp_path, program=f", user: {name}"))
        assert said in caught.value.what
        assert caught.value.what.startswith("programs.nightly.user: ")
    with pytest.raises(UsageError, match="'clerk' and 'nightly' have the same user, uid 64121"):
        users.every(written(tmp_path, program=", user: same"))


def test_a_number_without_a_name_brings_no_group_of_the_machine(tmp_path, monkeypatch) -> None:
    """Its gid has the same number: on many machines 42 reads the hashes of passwords."""
    shadow = grp.struct_group(("shadow", "x", 64128, []))
    monkeypatch.setattr(grp, "getgrgid", {64128: shadow}.__getitem__)
    with pytest.raises(UsageError) as caught:
        users.every(written(tmp_path, program=", user: 64128"))
    assert (
        caught.value.what
        == "programs.nightly.user: uid 64128 has no name, and gid 64128 is the group 'shadow'"
    )
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: _entry("own", uid, 64129))
    assert users.of(written(tmp_path, program=", user: 64128"), "nightly") == (64128, 64129)


def test_a_user_that_is_none_is_one_check_of_many(mesh) -> None:
    """`doctor` goes on with what is not about users."""
    made = written(mesh.project, program=", user: no-such-user")
    checks = isolation.examine(made, mesh, dict.fromkeys(made.runners, ENV))
    assert [(check.name, check.ok) for check in checks] == [("isolation", False)]
    assert "no user 'no-such-user'" in checks[0].detail


@pytest.fixture
def mesh(tmp_path: Path) -> State:
    """A project's state."""
    return prepare_state(tmp_path)


def _rules(made: Manifest, mesh: State, app: str) -> tuple[dict[str, Any], Rules, Rules | None]:
    config = configs.launcher(made, mesh, app, target="", definitions={}, env=ENV, run_id=None)
    found = config["isolation"]
    own = None if found["own"] is None else from_json(Rules(**found["own"]).as_json())
    return config, from_json(Rules(**found["other"]).as_json()), own


def test_a_launcher_is_told_of_the_user_and_its_places(mesh) -> None:
    """Sockets and inputs, home and storage lie where others pass through, and nowhere below .meshgate."""
    made = written(mesh.project, **EACH)
    config, other, own = _rules(made, mesh, "billing")
    assert own is not None
    assert (other.user, own.user) == ((64122, 64122), (64122, 64122))
    assert config["socket_dir"] == str(mesh.app_sockets)
    names = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "CREWAI_STORAGE_DIR": "crewai"}
    folders = {name: f"{mesh.project}/.meshgate-apps/billing/{folder}" for name, folder in names.items()}
    assert folders.items() <= config["isolation"]["env"].items()
    assert set(config["isolation"]["folders"]) == set(folders.values()) <= set(own.write)
    assert {str(mesh.apps), str(mesh.app_sockets), str(mesh.root)} <= set(own.hide) & set(other.hide)


def test_an_app_without_a_user_gets_nothing_of_those_with_one(mesh) -> None:
    """It is root's, so that it is hidden what belongs to the others; its own places are where they were."""
    config, other, own = _rules(written(mesh.project), mesh, "nightly")
    assert (own, other.user, config["socket_dir"]) == (None, None, str(mesh.sockets))
    assert {str(mesh.apps), str(mesh.app_sockets)} <= set(other.hide)
    assert str(mesh.root / "work/nightly/home") in config["isolation"]["folders"]


@pytest.mark.parametrize("version", [0, 3])
def test_without_landlock_every_app_needs_a_user(mesh, monkeypatch, version: int) -> None:
    """Then ports are not limited, unless they are written: that is refused, also by who starts programs."""
    monkeypatch.setattr(confine, "abi", lambda: version)
    with pytest.raises(DependencyUnavailable) as caught:
        isolation.require(written(mesh.project), mesh)
    assert caught.value.why.endswith("and no user of their own have: nightly, billing")
    assert "`user:`" in caught.value.next_step
    made = written(mesh.project, **EACH)
    isolation.require(made, mesh)
    for app in ("clerk", "billing", "nightly"):
        for rules in _rules(made, mesh, app)[1:]:
            assert rules is None or (rules.connect, rules.listen) == (None, True)
    told = isolation.examine(made, mesh, dict.fromkeys(made.runners, ENV))
    assert all("of its own" in check.detail and "any TCP port" in check.detail for check in told)
    ported = written(
        mesh.project, **{**EACH, "program": ", user: 64123, ports: [443]", "crew": "\n    ports: [5432]"}
    )
    own = _rules(ported, mesh, "billing")[2]
    assert own is not None
    assert (own.connect, own.listen) == ((443, 5432), False)
    with pytest.raises(DependencyUnavailable, match=r"crews\.clerk\.ports cannot be kept to"):
        isolation.require(ported, mesh)
    assert _rules(ported, mesh, "nightly")[1].connect == (443,)


def test_with_landlock_both_hold(mesh) -> None:
    """A user takes nothing away from the rules."""
    own = _rules(written(mesh.project, **EACH), mesh, "billing")[2]
    assert own is not None
    assert (own.user, own.connect, own.listen) == ((64122, 64122), (443,), False)


class Placed:
    """A project that the users of its apps may read, with an interpreter."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = root / "above" / "project"
        site = root / "site"
        for folder in (self.project.parent, self.project, self.project / "policies", site):
            folder.mkdir()
            folder.chmod(0o755)
        for name in ("clerk.py", "tools.py", "nightly.py", "policies/a.rego", "../../site/sitecustomize.py"):
            (self.project / name).touch(0o644)
        (self.project / ".env").touch(0o600)
        self.mesh = prepare_state(self.project)
        self.python = readable_install.python(root)
        (root / "bin").mkdir(mode=0o755)
        (root / "bin/python").symlink_to(self.python)
        self.env = {"PATH": str(root / "bin"), "HOME": "/root"}
        monkeypatch.setattr(user_checks, "SITE_FOLDER", site)

    def require(self, **parts: str) -> None:
        """As `up` does."""
        made = written(self.project, **{**EACH, **parts})
        (self.project / "meshgate.yaml").chmod(0o644)
        user_checks.require(made, self.mesh, dict.fromkeys(made.runners, self.env))


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placed]:
    """One that is as it should be."""
    with readable_install.folder() as root:
        yield Placed(root, monkeypatch)


def _mode(name: str, mode: int) -> Any:
    return lambda placed: (placed.project / name).chmod(mode)


def _owner(name: str, uid: int) -> Any:
    return lambda placed: os.chown(placed.project / name, uid, -1)


def _given(name: str, uid: int, mode: int) -> Any:
    """Its owner could write it again."""

    def spoil(placed: Placed) -> None:
        os.chown(placed.project / name, uid, -1)
        (placed.project / name).chmod(mode)

    return spoil


def _storage(placed: Placed) -> None:
    placed.env["CREWAI_STORAGE_DIR"] = str(placed.project)


def _closed_python(placed: Placed) -> None:
    placed.python.parent.parent.chmod(0o700)


def _sticky(placed: Placed) -> None:
    placed.project.parent.chmod(0o1777)


@ROOT
@pytest.mark.parametrize(
    ("spoil", "said", "step"),
    [
        (_mode("../", 0o700), "uid 64121 cannot read {project}/..", "chmod o+x"),
        (_mode(".", 0o711), "uid 64121 cannot read {project}", "chmod o+x"),
        (_mode("clerk.py", 0o600), "uid 64121 cannot read {project}/clerk.py", "chmod o+r"),
        (_closed_python, "uid 64121 cannot read {base}", "chmod o+x"),
        (_mode(".env", 0o644), "uid 64121 can read {project}/.env", "chmod 600"),
        (_mode(".meshgate", 0o755), "uid 64121 can read {project}/.meshgate", "chmod 700"),
        (_mode(".meshgate", 0o711), "uid 64121 can read {project}/.meshgate", "chmod 700"),
        (_owner(".env", 64123), "uid 64123 can read {project}/.env", "chown root"),
        (_owner(".", 64123), "uid 64123 can change {project}", "chown root"),
        (_given(".", 64123, 0o555), "uid 64123 can change {project}", "chown root"),
        (_mode(".", 0o777), "uid 64121 can change {project}", "chmod go-w"),
        (_mode("..", 0o777), "uid 64121 can change {project}/..", "chmod go-w"),
        (_mode("policies/a.rego", 0o666), "uid 64121 can change {project}/policies/a.rego", "chmod go-w"),
        (_mode("policies", 0o777), "uid 64121 can change {project}/policies", "chmod go-w"),
        (_mode("tools.py", 0o666), "uid 64121 can change {project}/tools.py", "chmod go-w"),
        (_storage, "uid 64121 cannot write {project}", "chown 64121:64121"),
    ],
)
def test_a_user_with_other_rights_than_it_needs_is_refused(placed, spoil, said: str, step: str) -> None:
    """With the path that is wrong, and what to do; `doctor` says the same."""
    placed.require()
    spoil(placed)
    said = said.format(project=placed.project, base=placed.python.parent.parent)
    with pytest.raises(UsageError) as caught:
        placed.require()
    found, _, path = caught.value.what.partition(": ")[2].rpartition(" ")
    assert (found, Path(path).resolve()) == (said.rpartition(" ")[0], Path(said.rpartition(" ")[2]).resolve())
    assert step in caught.value.next_step
    made = manifest.load(placed.project / "meshgate.yaml")
    checks = user_checks.examine(made, placed.mesh, dict.fromkeys(made.runners, placed.env))
    assert [check for check in checks if not check.ok and check.fix == caught.value.next_step]


@ROOT
def test_a_folder_above_may_be_everybody_s_when_it_is_sticky(placed) -> None:
    """As /tmp is: what is root's there stays where it is. And `doctor` says who each is."""
    _sticky(placed)
    placed.require()
    made = manifest.load(placed.project / "meshgate.yaml")
    checks = user_checks.examine(made, placed.mesh, dict.fromkeys(made.runners, placed.env))
    assert [(check.name, check.ok) for check in checks] == [
        ("user of clerk", True), ("user of nightly", True), ("user of billing", True),
    ]  # fmt: skip
    assert checks[0].detail.startswith("uid 64121, gid 64121: ")


@ROOT
def test_what_is_writable_is_the_user_s(placed) -> None:
    """Root makes no folder for it in the project, and all of the project is not given."""
    (placed.project / "out").mkdir(mode=0o755)
    with pytest.raises(UsageError, match=r"cannot write .*/out"):
        placed.require(crew="\n    writable: [out]")
    shutil.chown(placed.project / "out", 64121, 64121)
    placed.require(crew="\n    writable: [out]")
    shutil.chown(placed.project, 64121, 64121)
    with pytest.raises(UsageError, match="can change"):
        placed.require(crew='\n    writable: ["."]')


def test_who_is_not_root_can_give_no_user(mesh, monkeypatch) -> None:
    """Said by `up` and by `doctor`."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    made = written(mesh.project)
    with pytest.raises(DependencyUnavailable) as caught:
        user_checks.require(made, mesh, {"clerk": ENV})
    assert "meshgate runs as uid 1000, and only root" in caught.value.why
    assert "start meshgate as root" in caught.value.next_step
    (check,) = user_checks.examine(made, mesh, {"clerk": ENV})
    assert (check.ok, "uid 1000" in check.detail) == (False, True)


@ROOT
@pytest.mark.parametrize(("number", "name"), [(0, "CHOWN"), (5, "KILL"), (6, "SETGID"), (7, "SETUID")])
def test_root_without_the_capability_can_give_none_either(placed, number: int, name: str) -> None:
    """As in a container that has lost it; without CAP_KILL no program could be ended."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(confine.PR_CAPBSET_DROP, number, 0, 0, 0)
            try:
                placed.require()
            except MeshError as error:
                fine = isinstance(error, DependencyUnavailable) and error.why == f"meshgate lacks CAP_{name}"
                os._exit(0 if fine else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@ROOT
def test_folders_that_others_pass_through_are_root_s(mesh) -> None:
    """What lies there already, and is another's or a link, is not used."""
    try:
        for _ in range(2):
            state.prepare_apps(mesh)
            state.prepare_app(mesh, "clerk")
        for folder in (mesh.apps, mesh.app_sockets, mesh.apps / "clerk"):
            assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o711)
        os.chown(mesh.app_sockets, 64121, -1)
        with pytest.raises(IntegrityFailed, match="is not ours"):
            state.prepare_apps(mesh)
    finally:
        mesh.app_sockets.rmdir()
    mesh.app_sockets.symlink_to(mesh.project)
    try:
        with pytest.raises(IntegrityFailed, match="is not ours"):
            state.prepare_apps(mesh)
    finally:
        mesh.app_sockets.unlink()


def test_a_look_finds_all_that_is_wrong(tmp_path) -> None:
    """Of a process that may do everything: each kind, for each path."""
    places = user_look.Places(
        read=(str(tmp_path),), write=(), hidden=(str(tmp_path),), kept=(str(tmp_path / "none"),)
    )
    found = [(one.how, one.path) for one in user_look.wrongs(os.getuid(), places)]
    assert found == [
        (user_look.READABLE, str(tmp_path)), (user_look.CHANGEABLE, str(tmp_path)),
        (user_look.CHANGEABLE, str(tmp_path)),
    ]  # fmt: skip
