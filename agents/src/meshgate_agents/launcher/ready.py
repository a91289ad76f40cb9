"""What a program is started with: its environment, the file of its input, and what it may do on its host."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshgate_agents.child import confine
from meshgate_agents.launcher import environment, inputs, places
from meshgate_agents.launcher.children import Child, Children, Program
from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.settings import Isolation, Settings

NO_RUNNER = (
    "a DurableRunner's program speaks to it by a folder that is its caller's alone, and this app has a user "
    "of its own: start it by `meshgate run`, or as the app's `run:`"
)


@dataclass(frozen=True, slots=True)
class Start:
    """A program that may be started now.

    Attributes:
        env: its whole environment.
        notice: one line on what it did not ask for.
    """

    program: Program
    env: Mapping[str, str]
    notice: str

    def by(self, children: Children) -> Callable[[], Child]:
        """Starts it."""
        return lambda: children.start(self.program, self.env)


@contextmanager
def ready(program: Program, *, settings: Settings, socket_path: Path) -> Iterator[Start]:
    """The start of a program; the file of its input is there while it lasts.

    Raises:
        LauncherError: it cannot be run as the app's user.
    """
    isolation = settings.isolation
    own = isolation is not None and isolation.own is not None and program.command[1:] == isolation.command
    placed = isolation.env if isolation is not None and (own or settings.user is not None) else {}
    asked = {**settings.env, **(program.env or {}), **placed}
    if settings.user is not None and environment.RUNNER in asked:
        raise LauncherError(NO_RUNNER)
    ours = environment.switches(settings=settings, env=asked, socket_path=socket_path)
    with inputs.variable(settings.socket_dir, program.given, settings.user) as given:
        env = {**asked, **ours, **given}
        if isolation is None:
            yield Start(program, env, f"{environment.notice(ours)}; isolation: none")
            return
        for folder in isolation.folders:
            places.make(folder, settings.user)
        rules = _with(isolation, own, socket_path.parent, *map(Path, given.values()))
        yield Start(
            dataclasses.replace(program, rules=rules.as_json()),
            env,
            f"{environment.notice(ours)}; isolation: {confine.described(rules)}",
        )


def _with(isolation: Isolation, own: bool, *readable: Path) -> confine.Rules:  # noqa: FBT001 - private
    """The rules of this very start: with its socket's folder and its input, and nobody else's."""
    rules = isolation.own if own and isolation.own is not None else isolation.other
    return rules._replace(read=(*rules.read, *(os.path.realpath(path) for path in readable)))
