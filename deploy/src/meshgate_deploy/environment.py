"""Who gets which variable. The supervisor alone reads `.env` and its own environment.

A child starts with a fixed base and the variables named for it, nothing else. Where only a tool
host has a secret, agents see the text `meshgate:withheld`, so that code which checks presence
still imports.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from meshgate_deploy import store_url
from meshgate_deploy.manifest import Manifest

WITHHELD = "meshgate:withheld"
# Where programs and certificates are, and how text looks. None of these can hold a credential.
PLACES = (
    "PATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_NO_SYNC", "UV_OFFLINE", "UV_CACHE_DIR", "UV_PYTHON",
)  # fmt: skip
BASE = (
    *PLACES, "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip
TERMINAL = ("TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
# What a run takes from the shell that asks for it: a program means the same with `meshgate run --`
# before it as without, whichever environment the mesh was started in.
# `MESHGATE_RUNNER` is a folder: how a DurableRunner in the asking program speaks to its inner process.
ASKED = (*TERMINAL, *PLACES, "PYTHONPATH", "MESHGATE_RUNNER")
FIXED = {"PYTHON_DOTENV_DISABLED": "1"}  # importing CrewAI loads any `.env` it finds upward
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$")


def carried(asker: Mapping[str, str]) -> dict[str, str]:
    """Of the asker's shell, what its program needs also when the asker is gone: not the terminal's looks."""
    return {name: str(asker[name]) for name in ASKED if name in asker and name not in TERMINAL}


class Environment:
    """The variables known to the supervisor: its environment over the project's `.env`."""

    def __init__(self, *, project: Path, environ: Mapping[str, str] | None = None) -> None:
        found = os.environ if environ is None else environ
        self._values = {**read_dotenv(project / ".env"), **found}

    def base(self) -> dict[str, str]:
        """What every child starts with."""
        names = (*BASE, *(name for name in self._values if name.startswith("LC_")))
        return {name: self._values[name] for name in names if name in self._values} | FIXED

    def for_gateway(self, manifest: Manifest) -> dict[str, str]:
        """The gateway's environment: the base and, for a store on a server, how to log in there."""
        return self.base() | self.for_store(manifest)

    def for_sidecar(self, manifest: Manifest) -> dict[str, str]:
        """How sidecars log in there: by a role of their own where one is named, else by the gateway's."""
        found = self.for_store(manifest)
        if not found:
            return {}
        if store_url.DAPR_USER in self._values:
            for name in ("PGPASSWORD", "PGSSLCERT", "PGSSLKEY"):  # these are the gateway's
                found.pop(name, None)
            found["PGUSER"] = self._values[store_url.DAPR_USER]
            if store_url.DAPR_PASSWORD in self._values:
                found["PGPASSWORD"] = self._values[store_url.DAPR_PASSWORD]
        elif user := store_url.for_dapr(manifest.store)[1]:
            found["PGUSER"] = user
        return found

    def for_store(self, manifest: Manifest) -> dict[str, str]:
        """How the gateway logs in at a store on a server."""
        if not store_url.is_postgresql(manifest.store):
            return {}
        found = {name: self._values[name] for name in store_url.VARIABLES if name in self._values}
        home = self._values.get("HOME", "/nonexistent")  # a sidecar's own home is another
        found.setdefault("PGPASSFILE", f"{home}/.pgpass")
        return found

    def for_host(self, manifest: Manifest, host: str) -> dict[str, str]:
        """A tool host's environment: the base and what is named for it."""
        return self.base() | self._named(manifest, host)

    def for_own_tools(self, manifest: Manifest, app: str) -> dict[str, str]:
        """Where an app's own tools are described: as the app has it, every secret withheld."""
        withheld = dict.fromkeys(manifest.runner(app).secrets, WITHHELD)
        return self.for_agent(manifest, app, {}) | withheld

    def for_agent(self, manifest: Manifest, app: str, asker: Mapping[str, str]) -> dict[str, str]:
        """An agent's environment; secrets of hosts and other agents are withheld, unless named for it."""
        crews = (agent for crew in manifest.crews.values() for agent in crew.isolated.values())
        secrets = [part.secrets for part in manifest.toolhosts.values()] + [part.secrets for part in crews]
        withheld = dict.fromkeys((name for names in secrets for name in names), WITHHELD)
        asked = {name: asker[name] for name in ASKED if name in asker}
        return {**self.base(), **asked, **withheld, **self._named(manifest, app)}

    def missing(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Pairs of app and variable that are named but set nowhere."""
        apps = (*manifest.toolhosts, *manifest.runners)
        named = {app: dict.fromkeys(manifest.variables(app)) for app in apps}
        for one in manifest.isolated:  # what a crew gives to all of its agents is the crew's, and said once
            for name in manifest.variables(one.crew):
                named[one.app].pop(name, None)
        return [(app, name) for app, names in named.items() for name in names if name not in self._values]

    def _named(self, manifest: Manifest, app: str) -> dict[str, str]:
        return {name: self._values[name] for name in manifest.variables(app) if name in self._values}


def read_dotenv(path: Path) -> dict[str, str]:
    """Reads `NAME=value` lines; quotes are taken off, nothing is expanded."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    values = {}
    for line in lines:
        match = None if line.lstrip().startswith("#") else _LINE.match(line)
        if match:
            values[match.group(1)] = _unquoted(match.group(2))
    return values


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] in "'\"" and (end := value.find(value[0], 1)) > 0:
        return value[1:end]
    return value.split(" #", 1)[0].rstrip()
