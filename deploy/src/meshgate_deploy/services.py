"""Long-lived processes: started until healthy, watched, restarted with backoff."""

import select
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshgate_identities.spiffe_id import SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer

from meshgate_deploy.errors import DependencyUnavailable
from meshgate_deploy.processes import Child, Command, Processes, tail

READY_SECONDS = 60.0  # a tool host that imports CrewAI cold takes 6 s on two busy cores
TRIES = 5
POLL_SECONDS = 0.02
WATCH_MS = 100  # a process that was stopped is seen by looking; one that ended wakes the watcher
STOPPED_SECONDS = 6.0
QUICK_RESTARTS = 3  # within the window, at once; each further one waits twice as long
RESTART_WINDOW_SECONDS = 120.0
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
# What a machine raises that is out of disk, descriptors, threads or memory: tried again, never the end.
FAULTS = (OSError, RuntimeError, MemoryError)
# What a process says that would come up at the next try: a port was gone, or another sidecar of the mesh was
# just making the same table on the server (Dapr 1.18.2 looks first and makes it then).
PASSING = (
    "address already in use", "bind: address", "could not listen on any endpoint",
    "(SQLSTATE 42P07)", "(SQLSTATE 23505)",
)  # fmt: skip

Report = Callable[["Service"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a service.

    Attributes:
        ready: asked again and again; True once it serves. Raises nothing for "not yet".
        spiffe_id: the identity that its exact pid gets from the Workload API.
    """

    command: Command
    ready: Callable[[], bool]
    spiffe_id: SpiffeId | None = None
    dns_names: tuple[str, ...] = ()


@dataclass(slots=True)
class Service:
    """A process that is kept running.

    Attributes:
        prepare: makes a start. Its argument asks for new ports; a restart keeps the old ones,
            because others know them.
        about: what `ps` shows of it while there is nothing to report.
        retired: another took its place; it is not started again.
        spiffe_id: who it is to others; empty for a process without an identity.
    """

    name: str
    prepare: Callable[[bool], Start]
    spiffe_id: str = ""
    state: str = "pending"
    child: Child | None = None
    restarts: int = 0
    seconds: float = 0.0
    detail: str = ""
    since: float = field(default_factory=time.time)
    stopped_since: float = 0.0
    recent: list[float] = field(default_factory=list)
    about: str = ""
    retired: bool = False

    def row(self) -> dict[str, object]:
        """What `ps` shows."""
        return {
            "name": self.name, "spiffe_id": self.spiffe_id or None,
            "state": self.state, "pid": self.child.pid if self.child else None,
            "restarts": self.restarts, "up_seconds": round(time.time() - self.since, 1),
            "detail": self.detail or self.about,
        }  # fmt: skip


class Services:
    """Starts, watches and stops services. Starts may come from several threads."""

    def __init__(
        self,
        *,
        processes: Processes,
        workload_api: WorkloadApiServer,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        self._processes, self._workload_api, self._report = processes, workload_api, report
        self._cancelled = cancelled
        self._services: list[Service] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row per service, in the order of their starts."""
        return [service.row() for service in self._services]

    def find(self, name: str) -> Service | None:
        """The service of that name."""
        return next((service for service in self._services if service.name == name), None)

    def start(self, service: Service) -> None:
        """Starts a service and waits until it is ready; again, with new ports, where that helps.

        Raises:
            DependencyUnavailable: it ended, or was not ready in time.
        """
        self._services.append(service)
        for _ in range(TRIES):
            try:
                self._launch(service, fresh=True)
            except _Passing:
                continue
            return
        raise DependencyUnavailable(
            f"{service.name} found no free port, or no quiet moment on the server of the store",
            why=f"{TRIES} tries", next_step=f"meshgate logs {service.name}",
        )  # fmt: skip

    def watch(self) -> None:
        """Restarts services that end from now on."""
        self._watcher.start()

    def stop(self) -> None:
        """Stops everything, the last started first; those of one kind together."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join(timeout=LONGEST_BACKOFF_SECONDS)
        for group in self._groups():
            threads = [threading.Thread(target=self._end, args=(service,)) for service in group]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def retire(self, service: Service) -> None:
        """Stops a service for good and forgets it, also one that is just being started again."""
        service.retired = True
        self._end(service)
        if service in self._services:
            self._services.remove(service)

    def kill(self, service: Service, number: int) -> None:
        """Sends a signal to a service; the watcher sees what comes of it."""
        if service.child:
            service.child.signal(number)

    def _groups(self) -> list[list[Service]]:
        """The gateway hears the last words of apps and hosts; then sidecars go, the control plane last."""
        heard = [s for s in self._services if s.name in ("gateway", "opa")]
        control = ("sentry", "placement", "scheduler")
        sidecars = [s for s in self._services if s.name.startswith("dapr-")]
        plane = [s for s in self._services if s.name in control]
        rest = [s for s in self._services if s not in (*sidecars, *plane, *heard)]
        return [rest, heard, sidecars, plane]

    def _launch(self, service: Service, *, fresh: bool) -> None:
        begun = time.monotonic()
        start = service.prepare(fresh)
        mark = _size(start.command.log)
        self._set(service, "starting")
        child = self._processes.start(start.command)
        service.child, service.since = child, time.time()
        if start.spiffe_id is not None:
            self._workload_api.register(child.pid, start.spiffe_id, start.dns_names)
        while not start.ready():
            if not child.running:
                self._ended_early(service, child, mark)
            if self._cancelled.is_set() or self._stopping.is_set():
                raise DependencyUnavailable(f"{service.name}: the start was cancelled")
            if service.retired:
                child.stop()
                self._failed(service, child, "another took its place")
            if time.monotonic() - begun > READY_SECONDS:
                child.stop()
                self._failed(service, child, f"not ready within {READY_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        service.seconds = time.monotonic() - begun
        self._set(service, "ready")

    def _ended_early(self, service: Service, child: Child, mark: int) -> None:
        self._forget(child)
        text = _since(child.command.log, mark)
        if any(sign in text for sign in PASSING):
            raise _Passing(service.name)
        self._failed(service, child, f"ended with status {child.popen.returncode} before it was ready")

    def _failed(self, service: Service, child: Child, why: str) -> None:
        self._forget(child)
        self._set(service, "failed", why)
        log = child.command.log
        last = "\n".join(tail(log).splitlines()[-8:]) if log else ""
        raise DependencyUnavailable(
            f"{service.name} did not start: {why}", why=last, next_step=f"meshgate logs {service.name}"
        )

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._wait_for_an_end()
            for service in list(self._services):
                child = service.child
                watched = service.state == "ready" and not service.retired
                if watched and child is not None:
                    try:
                        self._look_at(service, child)
                    except FAULTS as error:  # "ready", so that the next round looks at it again
                        self._set(service, "ready", f"the machine is out of something: {error}")
                        self._stopping.wait(POLL_SECONDS)

    def _look_at(self, service: Service, child: Child) -> None:
        self._kill_if_stopped(service, child)
        if not child.running:
            child.stop()  # what it left in its session: nobody speaks for that any more
            self._forget(child)
            self._set(service, "restarting", f"ended with status {child.popen.returncode}")
            threading.Thread(target=self._restart, args=(service,), daemon=True).start()

    def _wait_for_an_end(self) -> None:
        poller = select.poll()
        for service in list(self._services):
            pidfd = service.child.pidfd if service.child is not None and service.state == "ready" else -1
            if pidfd >= 0:
                poller.register(pidfd, select.POLLIN)
        poller.poll(WATCH_MS)

    @staticmethod
    def _kill_if_stopped(service: Service, child: Child) -> None:
        """A stopped process serves nobody and never ends: after three of its heartbeats it is killed."""
        if not child.stopped:
            service.stopped_since = 0.0
        elif not service.stopped_since:
            service.stopped_since = time.monotonic()
        elif time.monotonic() - service.stopped_since > STOPPED_SECONDS:
            child.signal(signal.SIGKILL)

    def _restart(self, service: Service) -> None:
        """Until it serves again. Never given up: a mesh without one of its parts heals only by that part."""
        backoff = _backoff(service)
        while not self._stopping.wait(backoff) and not service.retired:
            service.restarts += 1
            try:
                self._launch(service, fresh=False)
            except (DependencyUnavailable, _Passing, *FAULTS) as error:
                self._set(service, "restarting", str(error))
                backoff = _backoff(service)
                continue
            if service.retired:  # it came up while it was being retired
                self._end(service)
            return

    def _end(self, service: Service) -> None:
        child = service.child
        if child is not None:
            child.stop()
            self._forget(child)
        self._set(service, "stopped")

    def _forget(self, child: Child) -> None:
        self._workload_api.forget(child.pid)
        self._processes.forget(child)

    def _set(self, service: Service, state: str, detail: str = "") -> None:
        service.state, service.detail = state, detail
        self._report(service)


def _backoff(service: Service) -> float:
    """None for a first loss, long for a process that keeps ending."""
    now = time.monotonic()
    service.recent = [then for then in service.recent if now - then < RESTART_WINDOW_SECONDS] + [now]
    often = len(service.recent) - QUICK_RESTARTS
    return min(FIRST_BACKOFF_SECONDS * 2.0**often, LONGEST_BACKOFF_SECONDS) if often > 0 else 0.0


class _Passing(Exception):
    """It ended for a reason that is gone at the next try."""


def http_ready(url: str, token: str = "") -> Callable[[], bool]:
    """A health check over loopback HTTP."""
    headers = {"dapr-api-token": token} if token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        try:
            with opener.open(urllib.request.Request(url, headers=headers), timeout=1.0):  # noqa: S310 - loopback
                return True
        except (OSError, urllib.error.URLError):
            return False

    return ready


def _size(log: Path | None) -> int:
    return log.stat().st_size if log and log.exists() else 0


def _since(log: Path | None, mark: int) -> str:
    if log is None:
        return ""
    with log.open("rb") as file:
        file.seek(mark if mark <= file.seek(0, 2) else 0)
        return file.read().decode("utf-8", "replace")
