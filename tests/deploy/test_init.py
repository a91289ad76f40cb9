"""`meshgate init`."""

from pathlib import Path

import pytest
from meshgate_deploy import manifest
from meshgate_deploy.errors import UsageError
from meshgate_deploy.init import init
from meshgate_policies import check
from meshgate_policies.rego_tests import run_tests


@pytest.mark.parametrize("name", ["refund_desk", "Shop 2.0", "gateway"])
def test_what_init_writes_is_valid(tmp_path: Path, name: str, opa_binary: Path) -> None:
    """The manifest loads, and its policy allows nothing and passes its own tests."""
    project = tmp_path / name
    project.mkdir()
    written = init(project)
    assert all((project / path).is_file() for path in written)
    made = manifest.load(project / "meshgate.yaml")
    assert len(made.crews) == 1
    assert "gateway" not in made.crews
    opa = (str(opa_binary),)
    assert check.check_policies(opa, project / "policies") == []
    assert run_tests(opa, project / "policies").red == ()


def test_the_comments_are_valid_when_uncommented(tmp_path: Path) -> None:
    """Each commented-out section is YAML that the manifest knows."""
    init(tmp_path)
    text = (tmp_path / "meshgate.yaml").read_text()
    lines = []
    for line in text.splitlines():
        bare = line.lstrip()
        example = bare.startswith("# ") and (
            bare[2:].startswith((" ", "programs:", "toolhosts:", "tools:", "agents:"))
        )
        lines.append(line.replace("# ", "", 1) if example else line)
    (tmp_path / "meshgate.yaml").write_text("\n".join(lines))
    made = manifest.load(tmp_path / "meshgate.yaml")
    assert set(made.toolhosts) == {"orders", "time"}
    assert made.programs
    assert made.tools["orders.lookup_order"].effect == "read"
    assert next(iter(made.crews.values())).agents["writer"].role == "Senior Writer"


CREW = """\
from crewai import Agent, Crew, LLM, Task

llm = LLM(model="openai/gpt-4o-mini", api_key="none")
triage = Agent(role="Triage {kind} Analyst", goal="g", backstory="b", llm=llm)
billing = Agent(role="Billing Clerk", goal="g", backstory="b", llm=llm, allow_delegation=True)
tasks = [Task(description="d", expected_output="e", agent=agent) for agent in (triage, billing)]
crew = Crew(agents=[triage, billing], tasks=tasks)
"""


def test_the_agents_of_a_crew_are_apps_at_once(tmp_path: Path, opa_binary: Path) -> None:
    """What `scan` finds of crews and agents is in the manifest, each with a policy that allows nothing."""
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "__init__.py").touch()
    (tmp_path / "desk" / "crew.py").write_text(CREW)
    written = init(tmp_path)
    made = manifest.load(tmp_path / "meshgate.yaml")
    (crew,) = made.crews.values()
    assert crew.crew == "desk.crew:crew"
    assert {one.role for one in made.isolated} == {"Triage {kind} Analyst", "Billing Clerk"}
    assert set(made.runners.values()) == {"crew", "agent"}
    assert {f"policies/{app}.rego" for app in made.runners} <= {path.as_posix() for path in written}
    opa = (str(opa_binary),)
    assert check.check_policies(opa, tmp_path / "policies") == []
    assert run_tests(opa, tmp_path / "policies").red == ()
    rules = [(tmp_path / "policies" / f"{app}.rego").read_text() for app in made.runners]
    assert not [line for text in rules for line in text.splitlines() if line.startswith("allow contains")]


def test_a_project_that_cannot_be_imported_gets_an_example(tmp_path: Path) -> None:
    """As one without any crew does; nothing of it is run twice to find out."""
    (tmp_path / "crew.py").write_text(CREW + "raise SystemExit('not here')\n")
    init(tmp_path)
    (crew,) = manifest.load(tmp_path / "meshgate.yaml").crews.values()
    assert crew.agents == {}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """One file that exists stops the whole command, until it is forced."""
    (tmp_path / "meshgate.yaml").write_text("mine")
    with pytest.raises(UsageError):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["meshgate.yaml"]
    assert (tmp_path / "meshgate.yaml").read_text() == "mine"
    init(tmp_path, force=True)
    assert manifest.load(tmp_path / "meshgate.yaml").api_version == "meshgate/v1"
