"""The runs that this process plays: each on a thread of its own, each at most once."""

import dataclasses
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from meshgate_agents.launcher import orders
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import (
    FAULTS,
    BadSettings,
    GatewayAway,
    GatewayUnavailable,
    LauncherError,
    RunHeld,
    RunOver,
    Stopping,
)
from meshgate_agents.launcher.gateway import Begun, End, Gateway, Known
from meshgate_agents.launcher.launch import (
    AT_TERMINAL,
    LONGEST_BACKOFF_SECONDS,
    LONGEST_POLL_SECONDS,
    Launch,
)
from meshgate_agents.launcher.saying import say
from meshgate_agents.launcher.settings import Settings
from meshgate_agents.launcher.standby import Standby
from meshgate_agents.launcher.supervise import FAILED
from meshgate_agents.worker.slots import Absence, Slots
from meshgate_agents.worker.standbys import Standbys
from meshgate_agents.worker.terminals import Terminal, terminal

PAUSE_SECONDS = 1.0  # between two looks at a run that goes on elsewhere, or cannot go on now
CHANCE_SECONDS = 2.0  # between two looks whether a run still has its last chance
STOP_SECONDS = 3.0  # to say that attempts end here; the supervisor kills this process after 5
UNKNOWN = "unknown"  # what comes of a run that is not there, or another app's


class Plays:
    """Plays runs until the store says that they have ended. Safe for threads."""

    def __init__(  # noqa: PLR0913 - keyword-only, each a collaborator
        self,
        *,
        settings: Settings,
        runs_at_once: int,
        command: Sequence[str],
        gateway: Gateway,
        children: Children,
        announcement: Announcement,
        terminals: Path | None = None,
    ) -> None:
        self._terminals, self._called_off = terminals, dict[str, int]()
        self._settings, self._command = settings, tuple(command)
        self._standbys = Standbys(
            settings=settings, program=self._own(), children=children, note=_note("standby"),
            on_change=lambda one: announcement.stands(one.child if one else None),
        )  # fmt: skip
        self._gateway, self._children, self._announcement = gateway, children, announcement
        self._slots, self._last_chance = Slots(runs_at_once), Slots(1)
        self._runs_at_once = runs_at_once
        self._deeper: dict[int, tuple[Slots, Slots]] = {}
        self._lock = threading.Lock()
        self._playing: dict[str, Future[str]] = {}
        self._launches: dict[str, Launch] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._stop = threading.Event()

    def __contains__(self, run_id: str) -> bool:
        with self._lock:
            return run_id in self._playing

    def known(self, run_id: str) -> Known | None:
        """The run as the store has it; None when it is not there, or another app's.

        Raises:
            GatewayUnavailable: nobody could say.
            AttemptEnded: the gateway does not serve this app.
        """
        try:
            return self._gateway.read_run(run_id)
        except RunOver:
            return None

    def play(self, run_id: str) -> "Future[str]":
        """The state in which the run ends. One that is being played here is joined, not played twice.

        It is never settled once `stop` was called: another process goes on.
        """
        with self._lock:
            joined = self._playing.get(run_id)
            if joined is not None or self._stop.is_set():
                return joined or Future()
            future: Future[str] = Future()
            future.set_running_or_notify_cancel()
            self._playing[run_id] = future
            self._announcement.add(run_id)
            thread = threading.Thread(target=self._settle, args=(run_id, future), name=run_id, daemon=True)
            self._threads[run_id] = thread
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had: delivered again later
            self._forget(run_id)
            raise
        return future

    def stop(self) -> None:
        """Ends every program and leaves its run to another process, which is told that it may go on."""
        reason = Stopping("the worker of this app is told to end")
        with self._lock:
            self._stop.set()
            launches, threads = list(self._launches.values()), list(self._threads.values())
        for launch in launches:
            launch.stop(reason)
        self._standbys.end()  # may wait for its keeper: what is played is told first
        give_up_at = time.monotonic() + STOP_SECONDS
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def give_up(self, run_id: str, why: str, *, after: int) -> None:
        """Ends a run of which nothing can be played as failed.

        Raises:
            GatewayUnavailable: ask again.
            AttemptEnded: it is held up, or over, or its attempt is not the one that was seen.
        """
        self._end(run_id, End(state="failed", detail=why), after=after)

    def _end(self, run_id: str, end: End, *, after: int) -> None:
        """Ends a run by an attempt of which nothing is played."""
        _note(run_id)(f"{end.state}: {end.detail}")
        begun = self._gateway.start_attempt(run_id=run_id, instance=secrets.token_hex(16), after=after)
        self._gateway.finish(run_id=run_id, attempt=begun.number, end=end)

    def _settle(self, run_id: str, future: "Future[str]") -> None:
        try:
            state = self._until_ended(run_id)
        except Stopping:
            return
        except BaseException as error:
            self._forget(run_id)
            future.set_exception(error)
            raise
        self._forget(run_id)
        future.set_result(state)

    def _forget(self, run_id: str) -> None:
        with self._lock:
            self._playing.pop(run_id, None)
            self._threads.pop(run_id, None)
            self._called_off.pop(run_id, None)
            self._announcement.remove(run_id)

    def _until_ended(self, run_id: str) -> str:
        elsewhere, faults = False, 0
        while True:
            pause = PAUSE_SECONDS
            try:
                known = self.known(run_id)
                if known is None:
                    return UNKNOWN
                if known.ended:
                    return known.state
                if not elsewhere or known.forsaken or run_id in self._called_off:
                    self._go_on(run_id, known)
                    elsewhere = True  # not over, and not ours any more: another attempt was begun
            except GatewayUnavailable:
                pass  # asked again for as long as it takes: the run is not over
            except Stopping:
                raise
            except LauncherError as error:
                _note(run_id)(str(error))
                # Of one that is held up each look is an attempt refused, and on record.
                pause = LONGEST_POLL_SECONDS if isinstance(error, RunHeld) else pause
            except FAULTS as error:  # a full disk, no descriptors, no threads: not the run's fault
                faults += 1
                pause = min(PAUSE_SECONDS * 2.0 ** min(faults, 16), LONGEST_BACKOFF_SECONDS)
                _note(run_id)(f"{type(error).__name__}: {error}; tried again in {pause:g} s")
            if self._stop.wait(pause):
                raise Stopping("the worker ends")

    def _go_on(self, run_id: str, known: Known) -> None:
        try:
            if run_id in self._called_off:  # it was played, and nobody could be told how it ended
                end = End(state="cancelled", detail="cancelled by a signal at its terminal")
                self._end(run_id, end, after=known.attempt)
            else:
                self._play_once(run_id, known)
        except RunOver as error:  # another worker is at it, or somebody ended it
            _note(run_id)(str(error))

    def _own(self) -> Program:
        """What the app runs by itself."""
        return Program(
            command=self._command, cwd=self._settings.project_root, streams=(subprocess.DEVNULL, None, None)
        )

    def _play_once(self, run_id: str, known: Known) -> None:
        own = self._own()
        asked_at = self._terminals if orders.has_command(known.input_json) else None
        with terminal(asked_at, run_id) as at:
            try:
                orders.fit(known.input_json, kind=self._settings.kind)
                program = orders.program(known.input_json, own)
            except BadSettings as error:
                self.give_up(run_id, str(error), after=known.attempt)
                return
            if at is None:
                launch = self._launch(
                    run_id, known, program, _note(run_id), standby=lambda: self._standbys.take(program)
                )
                self._launched(launch, run_id)
            else:
                self._play_at(at, run_id, known, program)

    def _play_at(self, at: Terminal, run_id: str, known: Known, program: Program) -> None:
        """Plays a run at its terminal, and says there how it ended."""
        program = dataclasses.replace(program, streams=at.streams, env={**(program.env or {}), **at.env})
        launch = self._launch(run_id, known, program, at.say, printed=AT_TERMINAL)

        def signalled(number: int) -> None:
            self._called_off[run_id] = number
            launch.signal(number)

        at.listen(signalled)
        try:
            status = self._launched(launch, run_id)
        except (Stopping, GatewayUnavailable, GatewayAway):
            raise  # it goes on at the same terminal
        except LauncherError as error:
            at.say(str(error))
            called_off = self._called_off.get(run_id)
            if called_off is not None or self._is_over(run_id):
                at.ended(FAILED if called_off is None else 128 + called_off)
            raise
        if run_id in self._called_off or self._is_over(run_id):
            at.ended(status)

    def _is_over(self, run_id: str) -> bool:
        try:
            known = self.known(run_id)
        except LauncherError:
            return False  # it will be seen when somebody can say
        return known is None or known.ended

    def _launch(  # noqa: PLR0913 - what a launch is made of
        self,
        run_id: str,
        known: Known,
        program: Program,
        note: Callable[[str], None],
        *,
        printed: str = "",
        standby: Callable[[], Standby | None] = lambda: None,
    ) -> Launch:
        return Launch(
            settings=dataclasses.replace(self._settings, run_id=run_id),
            gateway=self._gateway,
            program=program,
            children=self._children,
            note=note,
            last=Begun(known.attempt, known.failures),
            place=partial(self._place, run_id, known, count()),
            away=Absence(self._pools(known)[0]),
            announcement=self._announcement,
            printed=printed,
            standby=standby,
        )

    def _launched(self, launch: Launch, run_id: str) -> int:
        with self._lock:
            if self._stop.is_set():
                raise Stopping("the worker ends")
            self._launches[run_id] = launch
        try:
            return launch.play()
        finally:
            with self._lock:
                self._launches.pop(run_id, None)

    @contextmanager
    def _place(self, run_id: str, known: Known, looks: Iterator[int]) -> Iterator[int | None]:
        """Waits for its turn. A run whose next loss is its last begins alone: others' faults are not its.

        Gives the run's attempt as it is then: whoever begins another first has the run.

        Raises:
            RunOver: another worker began an attempt meanwhile, and is at it.
        """
        with ExitStack() as held:
            if self._on_last_chance(known) and self._on_last_chance(self.known(run_id)):
                held.enter_context(self._alone(run_id, known))
            waited = held.enter_context(self._pools(known)[0].slot(self._stop))
            if not next(looks) and not waited and not known.attempt:
                yield known.attempt  # it was seen just now, and whoever began an attempt since has the run
                return
            now = self.known(run_id)
            if now and now.state == "running" and not now.forsaken and now.attempt > known.attempt:
                raise RunOver(
                    f"another worker began attempt {now.attempt} while this one waited for its turn"
                )
            yield now.attempt if now else None

    def _pools(self, known: Known) -> tuple[Slots, Slots]:
        """The slots, and the place for last chances, of runs with as many callers above them.

        A run waits for deeper ones alone. Were they to share slots, two apps whose agents give each other
        tasks could wait for each other's for ever.
        """
        depth = orders.depth(known.input_json)
        if not depth:
            return self._slots, self._last_chance
        with self._lock:
            return self._deeper.setdefault(depth, (Slots(self._runs_at_once), Slots(1)))

    def _on_last_chance(self, known: Known | None) -> bool:
        """Whether the run is given up should its next attempt be lost."""
        return known is not None and known.failures > 0 and known.failures >= self._settings.attempts - 1

    @contextmanager
    def _alone(self, run_id: str, known: Known) -> Iterator[None]:
        """The one place for last chances, until the attempt has brought a step or is over."""
        over = threading.Event()
        with ExitStack() as place:
            place.enter_context(self._pools(known)[1].slot(self._stop))
            about = (run_id, known.attempt, place, over)
            watch = threading.Thread(target=self._leave_early, args=about, daemon=True)
            watch.start()
            try:
                yield
            finally:
                over.set()
                watch.join()  # only one of the two leaves the place

    def _leave_early(self, run_id: str, after: int, place: ExitStack, over: threading.Event) -> None:
        """Makes room for the next one as soon as the loss of the attempt under way would not be the last.

        While an attempt is under way and has brought no step, the gateway counts it among the failures.
        """
        while not over.wait(CHANCE_SECONDS):
            try:
                now = self.known(run_id)
                if now is None or (now.attempt > after and now.failures < self._settings.attempts):
                    place.close()
                    return
            except LauncherError:
                continue  # nobody could say: asked again


def _note(run_id: str) -> Callable[[str], None]:
    return lambda text: say(f"[{run_id}] {text}")
