"""Services: what is retired is not started again, whenever its end comes."""

import os
import signal
import sys
import threading
import time

import pytest
from meshgate_deploy import services as kept
from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.processes import Command, Processes
from meshgate_deploy.services import Service, Services, Start


class NoIdentities:
    """Stands for the Workload API."""

    def forget(self, _pid: int) -> None: ...


def _until(condition, seconds=20.0):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.fixture
def services(tmp_path, monkeypatch):
    """Services that are watched, with a short first backoff."""
    monkeypatch.setattr(kept, "FIRST_BACKOFF_SECONDS", 0.01)
    processes = Processes(record=tmp_path / "processes.json")
    made = Services(
        processes=processes, workload_api=NoIdentities(), report=lambda _: None, cancelled=threading.Event()
    )
    made.watch()
    yield made
    made.stop()
    processes.close()


def _service(tmp_path, ready=lambda: True, started=None):
    def prepare(_fresh):
        if started is not None:
            started.append(1)
        argv = [sys.executable, "-c", "import time; time.sleep(600)"]
        return Start(
            command=Command(name="it", argv=argv, env={}, cwd=tmp_path, log=tmp_path / "log"), ready=ready
        )

    return Service("it", prepare, about="policy r1")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_crashed_service_is_started_again(services, tmp_path):
    """The watcher sees its end; `ps` shows what it is about when there is nothing to report."""
    service = _service(tmp_path)
    services.start(service)
    first = service.child.pid
    assert services.rows[0]["detail"] == "policy r1"
    services.kill(service, signal.SIGKILL)
    _until(lambda: service.child.pid != first and service.state == "ready")
    assert service.restarts == 1


def test_a_retired_service_is_gone_for_good(services, tmp_path):
    """Stopped, forgotten, and not taken for a crash by the watcher."""
    service, other = _service(tmp_path), _service(tmp_path)
    services.start(service)
    services.start(other)
    services.retire(service)
    assert not _alive(service.child.pid)
    services.kill(other, signal.SIGKILL)  # the watcher went round since
    _until(lambda: other.restarts == 1 and other.state == "ready")
    assert (service.restarts, len(services.rows)) == (0, 1)


def test_retiring_ends_a_restart_under_way(services, tmp_path):
    """A service that is just being started again when it is retired does not come back."""
    up, started = threading.Event(), []
    up.set()
    service = _service(tmp_path, ready=up.is_set, started=started)
    services.start(service)
    up.clear()
    services.kill(service, signal.SIGKILL)
    _until(lambda: len(started) == 2 and service.state == "starting")
    services.retire(service)
    up.set()
    _until(lambda: not _alive(service.child.pid))
    assert (len(started), services.rows) == (2, [])


def test_a_service_that_keeps_ending_is_never_given_up(services, tmp_path, monkeypatch):
    """Ten losses in a row: it is started an eleventh time, each time a little later."""
    monkeypatch.setattr(kept, "LONGEST_BACKOFF_SECONDS", 0.05)
    service = _service(tmp_path)
    services.start(service)
    for number in range(1, 11):
        pid = service.child.pid
        os.kill(pid, signal.SIGKILL)
        _until(lambda pid=pid: service.state == "ready" and service.child.pid != pid)
        assert service.restarts == number


@pytest.mark.parametrize("where", ["write", "prepare", "thread"])
def test_a_machine_that_is_out_of_something_ends_no_watching(services, tmp_path, monkeypatch, where):
    """No disk or no thread left in the moment of a loss: started again once that is over, as others are."""
    out, other = _service(tmp_path), _service(tmp_path)
    services.start(out)
    services.start(other)
    met = threading.Event()

    def full(*_, **__):
        met.set()
        raise (RuntimeError("no thread") if where == "thread" else OSError(28, "No space left on device"))

    with monkeypatch.context() as patched:
        if where == "write":
            patched.setattr(Processes, "_write", full)
        elif where == "prepare":
            patched.setattr(out, "prepare", full)
        else:
            patched.setattr(kept.threading.Thread, "start", full)
        services.kill(out, signal.SIGKILL)
        assert met.wait(20)
    pid = other.child.pid
    services.kill(other, signal.SIGKILL)
    _until(lambda: out.state == "ready" and _alive(out.child.pid) and out.restarts > 0)
    _until(lambda: other.state == "ready" and other.child.pid != pid)


def test_a_stopped_service_is_killed_and_started_again(services, tmp_path, monkeypatch):
    """SIGSTOP: it serves nobody and would never end."""
    monkeypatch.setattr(kept, "STOPPED_SECONDS", 0.3)
    service = _service(tmp_path)
    services.start(service)
    pid = service.child.pid
    os.kill(pid, signal.SIGSTOP)
    _until(lambda: service.state == "ready" and service.child.pid != pid)
    assert not _alive(pid)


def test_what_would_come_up_at_the_next_try_is_tried_again(services, tmp_path):
    """Two sidecars make one table at once: the second ends, and finds it there when it is started again."""
    told = 'ERROR: relation "meshgate_dapr_metadata" already exists (SQLSTATE 42P07)'
    first = tmp_path / "first"
    script = (
        f"import pathlib, sys, time; first = pathlib.Path({str(first)!r})\n"
        f"if not first.exists(): first.touch(); print({told!r}); sys.exit(1)\n"
        "time.sleep(600)"
    )
    fresh = []

    def prepare(new_ports):
        fresh.append(new_ports)
        argv = [sys.executable, "-c", script]
        command = Command(name="it", argv=argv, env={}, cwd=tmp_path, log=tmp_path / "log")
        return Start(command=command, ready=lambda: first.exists() and len(fresh) > 1)

    service = Service("it", prepare)
    services.start(service)
    assert (fresh, service.state) == ([True, True], "ready")


def test_any_other_end_is_told_at_once(services, tmp_path):
    """With the last lines of its log."""
    argv = [sys.executable, "-c", "import sys; print('no such flag'); sys.exit(1)"]
    command = Command(name="it", argv=argv, env={}, cwd=tmp_path, log=tmp_path / "log")
    service = Service("it", lambda _: Start(command=command, ready=lambda: False))
    with pytest.raises(DependencyUnavailable, match="ended with status 1") as raised:
        services.start(service)
    assert "no such flag" in raised.value.why
