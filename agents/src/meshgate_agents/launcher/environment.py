"""The child's environment: exactly what the config names, plus our switches."""

import os
from collections.abc import Mapping
from pathlib import Path

from meshgate_agents.launcher.settings import Settings

SITE_FOLDER = Path(__file__).resolve().parent.parent / "child" / "sitecustomize"

RUNNER = "MESHGATE_RUNNER"  # names the folder by which a DurableRunner speaks to its program
INPUT = "MESHGATE_INPUT"  # names the file of a run's input, where it has one

ON = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TOOLS_FORCE_SAFE_PATHS": "true",
    "PYTHON_DOTENV_DISABLED": "1",  # importing CrewAI loads any .env it finds upward
}
OFF = {
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_DESERIALIZE_CALLBACKS": "false",
    "CREWAI_ALLOW_FLOW_SCRIPT_EXECUTION": "false",
    "CREWAI_TOOLS_ALLOW_UNSAFE_PATHS": "false",
}


def switches(*, settings: Settings, env: Mapping[str, str], socket_path: Path) -> dict[str, str]:
    """The variables that we set, over whatever the program's own `env` says of them."""
    inherited = env.get("PYTHONPATH", "")
    storage = settings.project_root / ".meshgate" / "data" / f"crewai-{settings.app}"
    return {
        **ON,
        **OFF,
        "CREWAI_STORAGE_DIR": env.get("CREWAI_STORAGE_DIR", str(storage)),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(SITE_FOLDER), inherited))),
        "MESHGATE_APP": settings.app,
        "MESHGATE_SOCKET": str(socket_path),
        "MESHGATE_PROJECT_ROOT": str(settings.project_root),  # so that paths in tools compare equal
    }


def notice(names: Mapping[str, str]) -> str:
    """One line that says what the program did not ask for."""
    return "sets " + " ".join(f"{name}={value}" for name, value in sorted(names.items()))
