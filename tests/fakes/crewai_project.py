"""Projects as `crewai create` writes them, and an environment to run one in."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

QUIET = {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}
CREWAI = Path(sys.executable).with_name("crewai")
RESEARCHER = "config=self.agents_config['researcher'], # type: ignore[index]\n"


def create(folder: Path, name: str) -> Path:
    """CrewAI's own scaffold of a crew, made offline."""
    subprocess.run(
        [CREWAI, "create", "crew", name, "--classic", "--skip-provider"],
        cwd=folder,
        env={**os.environ, **QUIET},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=150,
    )
    return folder / name


def give_researcher(project: Path, tool: str) -> None:
    """Adds a stock tool to the scaffold's first agent."""
    crew = project / "src" / project.name / "crew.py"
    text = crew.read_text()
    assert text.count(RESEARCHER) == 1
    text = text.replace(RESEARCHER, f"{RESEARCHER}            tools=[{tool}],\n")
    crew.write_text(f"from crewai_tools import {tool.partition('(')[0]}\n{text}")


def environment(project: Path, folder: Path) -> Path:
    """What installing the project leaves: CrewAI, the project, its scripts. meshgate is not in it.

    By hand, because an installer would fetch 148 packages. (A path file's folder is not searched for
    further path files, so our own editable install stays out.)
    """
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    packages.joinpath("project.pth").write_text(f"{sysconfig.get_path('purelib')}\n{project / 'src'}\n")
    scripts = tomllib.loads((project / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        script = folder / "bin" / name
        script.write_text(
            f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    return folder
