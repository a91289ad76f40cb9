"""FAKE, UNSAFE: plays one run of an agent's app from its order, as a worker does. Tests only."""

import subprocess
import sys
from pathlib import Path

from fakes.unsafe_launcher import unsafe_insecure
from meshgate_agents.launcher import orders, peers
from meshgate_agents.launcher.children import Children, Program
from meshgate_agents.launcher.forks import Forks
from meshgate_agents.launcher.launch import Launch
from meshgate_agents.launcher.saying import say
from meshgate_agents.launcher.settings import load


def main(config: str) -> int:
    """Plays it to its end."""
    settings = load(Path(config))
    peers.become_subreaper()
    own = Program(
        command=(sys.executable, "-m", "meshgate_agent"),
        cwd=settings.project_root,
        streams=(subprocess.DEVNULL, None, None),
    )
    children = Children(Forks(settings.fork_servers, say))
    with unsafe_insecure(settings) as gateway:
        known = gateway.read_run(str(settings.run_id))
        program = orders.program(known.input_json, own)
        return Launch(settings=settings, gateway=gateway, program=program, children=children).play()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
