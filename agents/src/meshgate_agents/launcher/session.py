"""The private socket: admits descendants, answers their requests, stamps run and attempt."""

import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_agents.child.framing import BadFrame, Message, receive, send
from meshgate_agents.launcher.errors import AttemptEnded, LauncherError, PeerRefused
from meshgate_agents.launcher.gateway import Answer, Call, Gateway, call_until_settled
from meshgate_agents.launcher.peers import admit
from meshgate_agents.launcher.tools import Refusal, ToolMap

MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with its final zero
MAX_ROLE_CHARACTERS = 200
FIRST_FRAME_SECONDS = 10.0  # a peer that connects and stays silent is dropped
HEX_DIGITS_OF_A_KEY = 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """What every forwarded call is stamped with."""

    run_id: str
    number: int


class Session:
    """Serves the children of one attempt, a thread per connection.

    `on_end` is called with the reason when the attempt cannot go on; the asking child gets no
    answer then, because no answer of ours may become text for a model.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each a collaborator
        self,
        *,
        gateway: Gateway,
        tools: ToolMap,
        attempt: Attempt,
        unavailable_seconds: float,
        on_end: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._gateway, self._tools, self._attempt = gateway, tools, attempt
        self._unavailable_seconds, self._on_end, self._note = unavailable_seconds, on_end, note
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._programs: dict[str, int] = {}
        self._steps = 0
        self._listener: socket.socket | None = None

    @property
    def reports(self) -> int:
        """How many processes said that they import CrewAI."""
        with self._lock:
            return sum(self._programs.values())

    @property
    def steps(self) -> int:
        """Settled steps so far."""
        return self._steps

    def listen(self, directory: Path) -> Path:
        """Opens the socket in a new private folder and serves it.

        Returns:
            The socket's path.

        Raises:
            LauncherError: the path would be longer than the kernel takes.
        """
        folder = Path(tempfile.mkdtemp(prefix="a", dir=directory))  # mkdtemp makes it 0700
        path = folder / "s"
        if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
            folder.rmdir()
            raise LauncherError(f"{path} is too long for a socket; choose a shorter socket_dir")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(128)
        threading.Thread(target=self._serve, args=(self._listener,), name="session", daemon=True).start()
        return path

    def close(self) -> None:
        """Stops serving; calls that are being asked again give up."""
        self._stopped.set()
        if self._listener:
            path = Path(self._listener.getsockname())
            self._listener.close()
            path.unlink(missing_ok=True)
            path.parent.rmdir()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        """One request, one answer."""
        with connection:
            try:
                pid = admit(connection)
                connection.settimeout(FIRST_FRAME_SECONDS)
                request = receive(connection)
                connection.settimeout(None)
                if request is not None:
                    send(connection, self._answer(request, pid))
            except PeerRefused as error:
                self._note(f"refused a process on the private socket: {error}")
            except (OSError, BadFrame) as error:
                self._note(f"a conversation with a child broke: {type(error).__name__}: {error}")
            except AttemptEnded as error:
                self._on_end(str(error))
                self._stopped.wait()  # the child waits until it is killed

    def _answer(self, request: Message, pid: int) -> Message:
        operation = request.get("op")
        if operation == "report":
            return self._report(request, pid)
        if operation == "call":
            return self._call(request)
        raise BadFrame(f"unknown operation {operation!r}")

    def _report(self, request: Message, pid: int) -> Message:
        program = str(request.get("program", ""))[:16]
        with self._lock:
            nth = self._programs.get(program, 0)
            self._programs[program] = nth + 1
        self._note(
            f"pid {pid} imports CrewAI {_word(request, 'crewai')} on Python {_word(request, 'python')}; "
            "its tool calls are brokered"
        )
        return {"state": "ok", "program": f"{program} {nth}"}

    def _call(self, request: Message) -> Message:
        identity, step = request.get("identity"), request.get("step")
        if not isinstance(identity, dict) or not isinstance(step, dict):
            raise BadFrame("a call without identity or step")
        tool = self._tools.find(identity=_texts(identity), name=str(request.get("name", "")))
        if isinstance(tool, Refusal):
            self._note(tool.text)
            return {"state": "refused", "text": tool.text}
        call = Call(
            run_id=self._attempt.run_id,
            attempt=self._attempt.number,
            step_key=_key(step),
            tool=tool,
            arguments_json=str(request.get("arguments", "")).encode("utf-8", "surrogatepass"),
            untrusted=_untrusted(request.get("untrusted")),
        )
        answer = call_until_settled(
            gateway=self._gateway,
            call=call,
            unavailable_seconds=self._unavailable_seconds,
            stopped=self._stopped,
        )
        with self._lock:
            self._steps += 1
        return _message(answer)


def _message(answer: Answer) -> Message:
    if answer.state == "done":
        return {"state": "done", "call_id": answer.call_id, "kind": answer.kind, "result": answer.result}
    return {"state": answer.state, "call_id": answer.call_id, "text": answer.text}


def _key(step: Mapping[str, Any]) -> str:
    key = step.get("key")
    if not isinstance(key, str) or len(key) != HEX_DIGITS_OF_A_KEY or set(key) - set("0123456789abcdef"):
        raise BadFrame("a step key is 64 lower-case hex digits")
    return key


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): value for key, value in values.items() if isinstance(value, str)}


def _untrusted(claims: object) -> dict[str, str]:
    role = claims.get("role") if isinstance(claims, dict) else None
    return {"role": role[:MAX_ROLE_CHARACTERS]} if isinstance(role, str) and role else {}


def _word(request: Message, key: str) -> str:
    return " ".join(str(request.get(key, "?")).split())[:40]
