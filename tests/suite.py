"""`./dev test`: the whole suite in two processes. One plays whole meshes, the other all the rest.

What the other says is shown when both have ended. Not by xdist: it would start a module's mesh in each of its
workers, since its groups are not looked at under pytest 9.2.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PYTEST = str(Path(sys.executable).with_name("pytest"))
INTERRUPTED = 130


def main() -> int:
    """0 when everything passed, else a status of pytest's own."""
    with tempfile.TemporaryFile() as words:
        rest = subprocess.Popen([PYTEST, "-m", "not plane"], stdout=words, stderr=subprocess.STDOUT)
        try:
            status = subprocess.call([PYTEST, "-m", "plane"])
            return status or rest.wait()
        except KeyboardInterrupt:
            rest.send_signal(signal.SIGINT)
            return INTERRUPTED
        finally:
            rest.wait()
            words.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(words, sys.stdout.buffer)
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
