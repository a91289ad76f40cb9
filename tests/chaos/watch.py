"""The driver's side of the checker: starts it, reads its log as it grows, shuts and opens its gates."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from integration.fault_mesh import eventually

HERE = Path(__file__).parent
POLL_SECONDS = 0.01

Event = dict[str, Any]


class Interrupted(Exception):
    """The part is given up: a second Ctrl-C."""


class Checker:
    """The checker's process, and what its log says so far."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "effects.jsonl"
        ready = folder / "checker.url"
        self._errors = (folder / "checker.err").open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "checker.py"), "--log", str(self.log), "--ready-file", str(ready)],
            stdin=subprocess.PIPE, stderr=self._errors, start_new_session=True,
        )  # fmt: skip
        eventually(ready.exists, "the checker is up")
        self.url = ready.read_text()
        self.stopped = threading.Event()
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join()
        self._errors.close()

    def _follow(self) -> None:
        while not self.log.exists():
            time.sleep(POLL_SECONDS)
        with self.log.open() as file:
            left = ""
            while not self._over.is_set():
                text = file.read()
                if not text:
                    time.sleep(POLL_SECONDS)
                    continue
                *lines, left = (left + text).split("\n")
                with self._changed:
                    self._events += [json.loads(line) for line in lines]
                    self._changed.notify_all()

    def shut(self, point: str, name: str) -> None:
        """Shuts a gate."""
        self._tell("shut", point=point, name=name)

    def open(self, point: str, name: str) -> None:
        """Opens it."""
        self._tell("open", point=point, name=name)

    def note(self, event: str, **fields: Any) -> None:
        """Something only the driver knows."""
        self._tell("note", e=event, **fields)

    def _tell(self, path: str, **body: Any) -> None:
        import http.client
        from urllib.parse import urlsplit

        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        connection.request("POST", f"/{path}", json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == http.HTTPStatus.OK, (path, body, answer.status)

    @property
    def length(self) -> int:
        """The number of the newest event."""
        with self._changed:
            return len(self._events)

    def find(self, wanted: Callable[[Event], bool]) -> Event | None:
        """The first event so far that is wanted."""
        with self._changed:
            return next((event for event in self._events if wanted(event)), None)

    def wait(self, wanted: Callable[[Event], bool], seconds: float) -> Event | None:
        """The first event that is wanted, past or to come; None when none came in time.

        Raises:
            Interrupted: the part was given up meanwhile.
        """
        give_up_at, seen = time.monotonic() + seconds, 0
        with self._changed:
            while True:
                for event in self._events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self._events)
                if self.stopped.is_set():
                    raise Interrupted
                left = give_up_at - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, 0.2))
