"""The demo's supervisor process: `meshgate up` that also ends when its parent is gone."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from meshgate_deploy.cli_output import fail, note
from meshgate_deploy.errors import MeshError
from meshgate_deploy.supervisor import Supervisor


def main() -> None:
    """Serves the project that the only argument names."""
    try:
        supervisor = Supervisor(project=Path(sys.argv[1]), say=note)
        watch = threading.Thread(target=_when_standard_input_ends, args=(supervisor.stop,), daemon=True)
        watch.start()
        supervisor.run()
    except MeshError as error:
        fail(error)
        sys.exit(error.exit_code)


def _when_standard_input_ends(then: Callable[[], None]) -> None:
    while os.read(0, 4096):
        pass
    then()


if __name__ == "__main__":
    main()
