"""Another agent, at work for as long as the mesh is up."""

import os
import time
from pathlib import Path

import crewai  # noqa: F401 - so that it is known to be brokered


class Victim:
    """Has a secret in its environment."""

    def kickoff(self, inputs=None):
        """Says that it is there, and waits."""
        Path(os.environ["HOME"], "pid").write_text(str(os.getpid()))
        while True:
            time.sleep(60)
