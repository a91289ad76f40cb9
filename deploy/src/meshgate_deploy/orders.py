"""What `meshgate run` asks for, and how the supervisor hears what its asker goes on to say."""

import contextlib
import json
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.errors import NotFound, UsageError
from meshgate_deploy.manifest import Manifest

FORWARDED = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order whose asker waits for the end.

    Attributes:
        app: one of the manifest's.
        asker: variables of the asker's shell; what `environment.ASKED` does not name is left out.
        streams: stdin, stdout, stderr.
    """

    app: str
    run_id: str
    command: tuple[str, ...]
    cwd: Path
    asker: Mapping[str, str]
    streams: tuple[int, int, int]


def forward(connection: socket.socket, deliver: Callable[[int], None]) -> None:
    """Hands on the signals that the asker got; when it goes away, that is one too."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        for line in lines:
            deliver(FORWARDED.get(json.loads(line).get("signal"), signal.SIGTERM))
    deliver(signal.SIGTERM)


def choose_app(manifest: Manifest, wanted: str | None, command: Sequence[str]) -> str:
    """The app that a command runs as: named, or the program with just this command, or the only one.

    A crew beside programs is not the only one: who misspells a program's command is not to act as the crew.

    Raises:
        NotFound: the named app does not exist.
        UsageError: several would do.
    """
    agents = [*manifest.crews, *manifest.programs]
    if wanted is not None:
        if wanted in agents:
            return wanted
        if crews := [one.crew for one in manifest.isolated if one.app == wanted]:
            raise UsageError(
                f"{wanted!r} is an agent of crew {crews[0]!r}: it acts only when it is given a task",
                next_step=f"--app {crews[0]}",
            )
        raise NotFound(
            f"no crew or program {wanted!r} in the manifest",
            next_step="--app " + (" | ".join(agents) or "<none>"),
        )
    same = [name for name, program in manifest.programs.items() if program.run == tuple(command)]
    candidates = same or agents
    if len(candidates) == 1:
        return candidates[0]
    raise UsageError(
        "which app does this command run as?",
        why=f"it could be {', '.join(candidates)}"
        if candidates
        else "the manifest has no crew and no program",
        next_step=f"meshgate run --app {'|'.join(candidates) or 'NAME'} -- …",
    )
