"""An `.env` that this process may not read is as good as none: libraries that CrewAI imports look for one."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def intercept(module: Any) -> None:
    """Lets python-dotenv pass over a file that the kernel withholds."""
    original = module.DotEnv._get_stream  # noqa: SLF001 - it has no other seam

    @contextmanager
    def get_stream(self: Any) -> Iterator[Any]:
        if _withheld(self.dotenv_path):
            yield io.StringIO("")
            return
        with original(self) as stream:
            yield stream

    module.DotEnv._get_stream = get_stream  # noqa: SLF001


def _withheld(path: Any) -> bool:
    """Tried, not asked: the answer to access(2) knows nothing of Landlock."""
    if not path:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - any kind of path
            return False
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
