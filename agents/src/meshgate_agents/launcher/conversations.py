"""The private socket of one run: who speaks on it, and how many at once. What is said is `Session`'s.

A process may keep a connection for its next request: to connect, to be admitted and to be given a thread
costs more than most requests do.
"""

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from meshgate_agents.child.framing import BadFrame, Message, receive, send
from meshgate_agents.launcher import budget
from meshgate_agents.launcher.errors import AttemptEnded, LauncherError, PeerRefused
from meshgate_agents.launcher.peers import admit
from meshgate_agents.launcher.places import TRAVERSED, User, give

MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with its final zero
FIRST_FRAME_SECONDS = 10.0  # a peer that connects and stays silent is dropped
PAUSED_POLL_SECONDS = 0.2
MAX_CONVERSATIONS = 128  # at once; each is a thread. A crew's worst is a call per item of kickoff_for_each
MAX_KEPT = 32  # while no more than these are open, one may stay open at rest: new ones find room


class Conversations:
    """Serves one socket, a thread per connection.

    `answer` gives what is sent for a request of a pid, or None for a request that gets no answer.
    `on_end` is called when it says that the attempt cannot go on; who asked gets no answer then.
    `user` is whose processes ask, where it is not ours: they reach the socket, and nobody else's do.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        belongs: Callable[[int], bool],
        answer: Callable[[Message, int], Message | None],
        on_end: Callable[[AttemptEnded], None],
        stopped: threading.Event,
        note: Callable[[str], None],
        user: User | None = None,
    ) -> None:
        self._user = user
        self._belongs, self._answer, self._on_end = belongs, answer, on_end
        self._stopped, self._note = stopped, note
        self._listener: socket.socket | None = None
        self._budget = budget.Budget(budget.SESSION_BYTES, above=budget.PROCESS)
        self._room = threading.BoundedSemaphore(MAX_CONVERSATIONS)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

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
        try:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            if self._user is not None:  # nobody can connect before `listen`
                folder.chmod(TRAVERSED)
                give(path, self._user)
            self._listener.listen(128)
        except OSError:
            self._abandon(folder)
            raise
        threading.Thread(target=self._serve, args=(self._listener,), name="session", daemon=True).start()
        return path

    def _abandon(self, folder: Path) -> None:
        """Leaves nothing of a socket that could not be opened."""
        if self._listener:
            self._listener.close()
            self._listener = None
        (folder / "s").unlink(missing_ok=True)
        folder.rmdir()

    def close(self) -> None:
        """Takes no further connection and ends those at rest. Call it once `stopped` is set."""
        listener, self._listener = self._listener, None
        if listener:
            path = Path(listener.getsockname())
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # `close` alone leaves `accept` waiting, and us in memory
            listener.close()
            with contextlib.suppress(OSError):  # a program may have put something beside it
                path.unlink(missing_ok=True)
                path.parent.rmdir()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # what is being answered still is

    def _serve(self, listener: socket.socket) -> None:
        """Takes connections while there is room; who comes later waits in the kernel's queue."""
        while True:
            self._room.acquire()
            try:
                connection, _ = listener.accept()
            except OSError as error:
                self._room.release()
                if self._stopped.wait(PAUSED_POLL_SECONDS):
                    return  # closed
                self._note(f"a connection on the private socket was not taken: {error}")
                continue
            try:
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()
            except RuntimeError as error:  # the asker sees its connection closed
                self._room.release()
                connection.close()
                self._note(f"a connection on the private socket was not served: {error}")

    def _converse(self, connection: socket.socket) -> None:
        """A connection from its first request to its end."""
        with self._lock:
            self._open.add(connection)
        try:
            self._conversed(connection)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
            self._room.release()

    def _conversed(self, connection: socket.socket) -> None:
        try:
            pid = admit(connection, self._belongs, os.getuid() if self._user is None else self._user[0])
            while self._exchange(connection, pid):
                connection.settimeout(None)
                if not connection.recv(1, socket.MSG_PEEK):  # at rest, for as long as its process likes
                    return
        except PeerRefused as error:
            self._note(f"refused a process on the private socket: {error}")
        except (OSError, BadFrame) as error:
            self._note(f"a conversation with a child broke: {type(error).__name__}: {error}")
        except AttemptEnded as error:
            self._on_end(error)
            self._stopped.wait()  # the child waits until it is killed

    def _exchange(self, connection: socket.socket, pid: int) -> bool:
        """One request, and its answer where it gets one; whether the connection stays."""
        with self._budget.loan() as loan:
            connection.settimeout(FIRST_FRAME_SECONDS)
            request = receive(connection, loan.take)
            if request is None:
                return False
            connection.settimeout(None)
            answer = self._answer(request, pid)
            if answer is None:  # it goes on, on this very connection
                return True
            keep = self._may_stay()
            send(connection, {**answer, "keep": keep})
            return keep

    def _may_stay(self) -> bool:
        with self._lock:
            return len(self._open) <= MAX_KEPT and not self._stopped.is_set()
