"""`python -m meshgate_agents.launcher --config FILE -- COMMAND…`: runs a program as an agent app.

Standard streams are inherited. The exit status is the program's own, 125 for a failure of ours.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

from meshgate_identities.hardening import refuse_inspection

from meshgate_agents.launcher import budget, inputs, peers
from meshgate_agents.launcher.announcing import Announcement
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.errors import LauncherError
from meshgate_agents.launcher.forks import Forks
from meshgate_agents.launcher.gateway import Gateway
from meshgate_agents.launcher.identity import connect
from meshgate_agents.launcher.launch import Launch
from meshgate_agents.launcher.replay import Replay
from meshgate_agents.launcher.saying import say
from meshgate_agents.launcher.settings import Settings, load
from meshgate_agents.launcher.supervise import FAILED

Connect = Callable[[Settings], AbstractContextManager[Gateway]]


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:], connect=connect))


def run(arguments: Sequence[str], *, connect: Connect) -> int:
    """Runs the launcher with a way to reach the gateway.

    Args:
        arguments: the command line without the program's name.
        connect: how to reach the gateway; tests give an unsafe one.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="meshgate-launcher", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(arguments)
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not command:
        parser.error("no command after --")
    try:
        settings = load(parsed.config)
        refuse_inspection()
        budget.raise_descriptors()
        peers.become_subreaper()
        inputs.sweep(settings.socket_dir)
        with connect(settings) as gateway:
            kind = Replay if settings.replay else Launch
            program = Program(command=tuple(command))
            with closing(Announcement(settings.programs_file)) as announcement:
                return kind(
                    settings=settings,
                    gateway=gateway,
                    program=program,
                    children=Children(Forks(settings.fork_servers, say)),
                    announcement=announcement,
                ).run()
    except (LauncherError, OSError) as error:
        following = getattr(error, "next_step", "")
        say(str(error) + (f"\n  next: {following}" if following else ""))
        return FAILED


if __name__ == "__main__":
    main()
