"""Which environment variable goes to which process: the fewest that still let each import and work."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshgate_deploy.environment import read_dotenv
from meshgate_deploy.scan_findings import Tool, Use
from meshgate_deploy.scan_source import Module, Variable, looks_secret, reachable

# Read by CrewAI's model classes, so no source of the project mentions them. Not AWS_*: those open more
# than models.
_MODEL_VARIABLE = re.compile(
    r"MODEL|(OPENAI|ANTHROPIC|GEMINI|GROQ|MISTRAL|OLLAMA|OPENROUTER|DEEPSEEK|CEREBRAS|AZURE_OPENAI|AZURE_AI)_\w+"
    r"|GOOGLE_API_KEY|AZURE_(API_KEY|ENDPOINT|API_BASE|API_VERSION)"
)
_OPENAI = ("MODEL", "OPENAI_BASE_URL", "OPENAI_MODEL_NAME")  # taken from the shell as well


class Sharing:
    """Shares a project's variables out.

    A tool host gets what its tools' modules read. A crew gets what its own modules read, not what
    only its tools' modules do; of theirs, what is read at import and is no secret. (Of secrets that
    a host has, an agent's process sees that they are there, not what they are.)
    """

    def __init__(self, project: Path, modules: Mapping[str, Module], tools: Sequence[Tool]) -> None:
        self._modules = modules
        self._tools = tools
        self._dotenv = read_dotenv(project / ".env")

    def share(self, apps: Mapping[str, str]) -> tuple[tuple[Use, ...], dict[str, tuple[str, ...]]]:
        """Every variable with its holders, and each app's own.

        Args:
            apps: the module of each app's crew or program.
        """
        gets: dict[str, set[str]] = {}
        for tool in self._tools:
            if tool.entry is not None:
                read = {use.name for use in self._reads(self._known(tool.module))}
                gets.setdefault(tool.host, set()).update(read, tool.env_vars)
        of_tools = [self._known(tool.module) for tool in self._tools]
        for app, module in apps.items():
            at_import = {use.name for use in self._reads(module) if use.at_import and not use.is_secret}
            gets[app] = {use.name for use in self._reads(module, stop=of_tools)} | at_import | self._models()
        names = {use.name for module in self._modules.values() for use in module.variables}
        uses = tuple(self._use(name, gets) for name in sorted(names.union(*gets.values(), self._dotenv)))
        return uses, {app: tuple(sorted(gets[app])) for app in apps}

    def notes(self, uses: Sequence[Use]) -> Iterator[str]:
        """What a person should look at."""
        for use in uses:
            if not use.apps:
                where = use.places[0] if use.places else ".env"
                yield f"{where}: nobody gets {use.name}; name it under env: or secrets: where it is needed"

    def _reads(self, module: str, *, stop: Sequence[str] = ()) -> list[Variable]:
        found = reachable(self._modules, module, stop=stop)
        return [use for name in found for use in self._modules[name].variables]

    def _use(self, name: str, gets: Mapping[str, set[str]]) -> Use:
        places = [
            f"{module.path}:{use.line}"
            for module in self._modules.values()
            for use in module.variables
            if use.name == name
        ]
        holders = tuple(app for app, names in gets.items() if name in names)
        return Use(name, tuple(places), looks_secret(name), holders)

    def _models(self) -> set[str]:
        """What CrewAI's models read, as far as the project's `.env` or the shell sets it. Names only."""
        written = set(filter(_MODEL_VARIABLE.fullmatch, self._dotenv))
        return {"OPENAI_API_KEY", *written, *(name for name in _OPENAI if name in os.environ)}

    def _known(self, module: str) -> str:
        """A module's name as it is imported, also where the identity gives a script's path."""
        return next((known.name for known in self._modules.values() if known.path == module), module)
