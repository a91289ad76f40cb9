"""The worker's configuration: what a launcher needs for every run, and the app's own sidecar."""

import json
from dataclasses import dataclass
from pathlib import Path

from meshgate_agents.launcher import settings as launcher
from meshgate_agents.launcher.errors import BadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Read once.

    Attributes:
        play: of every run.
        runs_at_once: attempts under way; those that rest, or wait for a person, take no place.
        command: what a run starts when its order names no command.
        ready_file: appears when runs are taken, and says what is being played (`launcher.announcing`).
        terminals: where the supervisor says which run has a terminal (`worker.terminals`).
    """

    play: launcher.Settings
    runs_at_once: int
    command: tuple[str, ...]
    grpc_port: int
    api_token_file: Path
    ready_file: Path
    terminals: Path


def load(path: Path) -> Settings:
    """Reads the file.

    Raises:
        BadSettings: unreadable, no JSON, or a key is missing or has the wrong type.
    """
    play = launcher.load(path)
    try:
        raw = json.loads(path.read_text())
        return Settings(
            play=play,
            runs_at_once=int(raw["runs_at_once"]),
            command=tuple(map(str, raw["command"])),
            grpc_port=int(raw["dapr"]["grpc_port"]),
            api_token_file=Path(raw["dapr"]["api_token_file"]),
            ready_file=Path(raw["ready_file"]),
            terminals=Path(raw["terminals"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSettings(f"{path}: missing or mistyped: {error!r}") from error


def read_token(path: Path) -> str:
    """The sidecar's API token.

    Raises:
        BadSettings: no file, or an empty one.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise BadSettings(f"the token {path} cannot be read") from error
    if not token:
        raise BadSettings(f"the token {path} is empty")
    return token
