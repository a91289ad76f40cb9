"""Who gets which variable. Only the supervisor reads `.env` and its own environment."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

WITHHELD = "meshgate:withheld"
# What any process needs to run at all; none of it is a secret.
COMMON = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM", "TMPDIR",
    "COLUMNS", "LINES", "NO_COLOR", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME", "PYTHONPATH",
    "UV_PROJECT_ENVIRONMENT", "UV_NO_SYNC", "VIRTUAL_ENV",
)  # fmt: skip


def known_variables(project: Path) -> dict[str, str]:
    """`.env` of the project, overridden by the supervisor's own environment."""
    known: dict[str, str] = {}
    file = project / ".env"
    if file.is_file():
        for line in file.read_text().splitlines():
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if equals and not name.startswith("#"):
                known[name.strip()] = value.strip().strip("'\"")
    return {**known, **os.environ}


def for_process(
    known: Mapping[str, str], named: Iterable[str], withheld: Iterable[str] = ()
) -> dict[str, str]:
    """Exactly the variables named for a process, the common ones, and a mark for those withheld."""
    named = set(named)
    env = {name: known[name] for name in (*COMMON, *named) if name in known}
    env |= {name: WITHHELD for name in withheld if name in known and name not in named}
    return {**env, "PYTHON_DOTENV_DISABLED": "1"}
