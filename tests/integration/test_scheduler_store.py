"""The Scheduler's store on its folder: one at a time, and clear words when the folder does not serve."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.live_mesh import eventually
from meshgate_deploy import runtime
from meshgate_deploy.ports import LOOPBACK, free_ports
from meshgate_deploy.services import http_ready

pytestmark = [pytest.mark.plane, pytest.mark.timeout(300)]

DEAD_LEASE_SECONDS = 20.0  # go-etcd-cron's


class Scheduler:
    """A Scheduler without certificates, alone on the machine but for its folder."""

    def __init__(self, folder: Path, log: Path, *flags: str) -> None:
        port, health, metrics = free_ports(3)
        self._log, self.ready = log, http_ready(f"http://{LOOPBACK}:{health}/healthz")
        argv = [
            *runtime.find_or_install(progress=print).scheduler, "--log-as-json",
            "--etcd-data-dir", str(folder), "--port", str(port), "--listen-address", LOOPBACK,
            "--healthz-port", str(health), "--healthz-listen-address", LOOPBACK,
            "--metrics-port", str(metrics), "--metrics-listen-address", LOOPBACK, *flags,
        ]  # fmt: skip
        with log.open("w") as out:
            self.process = subprocess.Popen(
                argv, stdout=out, stderr=out, env={"NAMESPACE": "dapr-system"}, cwd=folder
            )

    def refused(self) -> str:
        """What it said when it ended by itself, with an error."""
        assert self.process.wait(30) == 1, self._log.read_text()
        return self._log.read_text()

    def said(self, text: str) -> None:
        """Waits until its log has a text."""
        eventually(lambda: text in self._log.read_text(), text)


@contextmanager
def _running(folder: Path, log: Path, *flags: str) -> Iterator[Scheduler]:
    made = Scheduler(folder, log, *flags)
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.process.kill()
        made.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the reminders are kept."""
    made = tmp_path / "scheduler"
    made.mkdir()
    return made


@pytest.fixture
def used(folder: Path, tmp_path: Path) -> Path:
    """The folder of a Scheduler that was killed while it served."""
    with _running(folder, tmp_path / "earlier.log") as earlier:
        earlier.said("leadership quorum reached")
        eventually(earlier.ready, "scheduler ready")
    return folder


def _member(folder: Path) -> Path:
    return folder / "dapr-system-dapr-scheduler-server-0" / "dapr-0.1" / "member"


def test_a_second_scheduler_is_refused_and_the_first_serves_on(folder: Path, tmp_path: Path) -> None:
    """It neither waits for ever nor ends the leases of the living one."""
    with _running(folder, tmp_path / "first.log") as first:
        eventually(first.ready, "scheduler ready")
        with _running(folder, tmp_path / "second.log") as second:
            said = second.refused()
        assert f"another scheduler works on {_member(folder).parents[1]}" in said
        assert "starting an etcd server" not in said
        assert first.ready()
        assert "leadership" not in (tmp_path / "first.log").read_text().partition("api is ready")[2]


def test_a_scheduler_that_waits_for_its_folder_can_be_ended(folder: Path, tmp_path: Path) -> None:
    """SIGTERM while another has the folder: it goes at once, and calls that no error."""
    with _running(folder, tmp_path / "first.log") as first:
        eventually(first.ready, "scheduler ready")
        with _running(folder, tmp_path / "second.log") as second:
            second.said("metrics server started")
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(4) == 0


def test_a_killed_scheduler_is_back_at_once(used: Path, tmp_path: Path) -> None:
    """It does not wait for the leases of the dead."""
    begun = time.monotonic()
    with _running(used, tmp_path / "again.log") as again:
        again.said("leadership quorum reached")
        eventually(again.ready, "scheduler ready")
        assert time.monotonic() - begun < DEAD_LEASE_SECONDS / 2
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(5) == 0


@pytest.mark.parametrize("part", ["snap/db", "wal/0000000000000000-0000000000000000.wal"])
def test_a_damaged_folder_is_named_and_left(used: Path, tmp_path: Path, part: str) -> None:
    """One line says what is damaged and what to do, at every start; nothing begins anew by itself."""
    path = _member(used) / part
    path.write_bytes(b"\xa5" * 65536)
    for name in ("once.log", "again.log"):
        with _running(used, tmp_path / name) as started:
            said = started.refused()
        assert "the folder is damaged" in said
        assert "move it away" in said
        assert "goroutine" not in said
    kept = [file for file in path.parent.iterdir() if file.read_bytes()[:16] == b"\xa5" * 16]
    assert kept


def test_a_database_without_its_log_is_damage(used: Path, tmp_path: Path) -> None:
    """It would be started on by etcd, which drops what is written."""
    with _running(used, tmp_path / "ended.log") as ended:
        eventually(ended.ready, "scheduler ready")
        ended.process.send_signal(signal.SIGTERM)  # so that the database has all that the log has
        assert ended.process.wait(5) == 0
    shutil.rmtree(_member(used) / "wal")
    with _running(used, tmp_path / "log") as started:
        assert "the folder is damaged (its write-ahead log is gone)" in started.refused()


def test_a_start_cut_short_before_its_log_goes_on(used: Path, tmp_path: Path) -> None:
    """A folder with a database that was never written, as when the power went at the first start."""
    shutil.rmtree(_member(used) / "wal")
    (_member(used) / "snap" / "db").write_bytes(b"")
    with _running(used, tmp_path / "log") as started:
        eventually(started.ready, "scheduler ready")


def test_a_file_where_the_folder_should_be_is_named(folder: Path, tmp_path: Path) -> None:
    """The path and the kernel's reason."""
    (folder / "dapr-system-dapr-scheduler-server-0").touch()
    with _running(folder, tmp_path / "log") as started:
        said = started.refused()
    assert f"the scheduler's folder: mkdir {_member(folder).parents[1]}: not a directory" in said


def test_a_store_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its flags are Dapr's; the one that would have it use another etcd is not passed over."""
    flags = ("--etcd-embed=false", "--etcd-client-endpoints", f"{LOOPBACK}:1")
    with _running(folder, tmp_path / "log", *flags) as started:
        assert "this scheduler keeps its own store" in started.refused()
