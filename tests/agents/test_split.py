"""The same crews once in one process and once with each agent in its own: equal in all that can be seen."""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents.conftest import PROJECT, Desk, Ended
from fakes.agent_apps import AgentApps
from fakes.fake_gateway import FakeGateway, serving

PROGRAM = str(PROJECT / "split.py")
VOLATILE = re.compile(r"0x[0-9a-f]+|id=[0-9a-f-]{36}|created=[0-9T:.-]+")

# crew: how it is kicked off, and its agents' roles by app
CREWS = {
    "sequential": ("once", {"clerk": "Clerk for {shop}", "writer": "Writer"}),
    "textual": ("once", {"clerk": "Clerk"}),
    "delegates": ("once", {"lead": "Lead", "clerk": "Clerk", "writer": "Writer"}),
    "hierarchical": ("once", {"clerk": "Clerk"}),
    "managed": ("once", {"manager": "Manager", "clerk": "Clerk"}),
    "named": ("once", {"lead": "Lead of {shop}", "clerk": "Clerk for {shop}", "writer": "Writer"}),
    "managed_named": (
        "once",
        {"manager": "Manager", "clerk": "Clerk for {shop}", "aide": "Aide for {shop}"},
    ),
    "async_tasks": ("once", {"a": "A", "b": "B", "c": "C"}),
    "pydantic": ("once", {"clerk": "Clerk"}),
    "jotted": ("once", {"clerk": "Clerk"}),
    "guarded": ("once", {"clerk": "Clerk"}),
    "planned": ("once", {"clerk": "Clerk", "writer": "Writer"}),
    "callbacks": ("once", {"clerk": "Clerk", "writer": "Writer"}),
}
MORE = {
    "each": ("sequential", "each"),
    "each_async": ("sequential", "each_async"),
    "awaited": ("sequential", "async"),
}


@dataclass
class Split:
    """A crew's program, and its agents as apps."""

    desk: Desk
    apps: AgentApps
    colleagues: list[dict[str, Any]]
    program: str = PROGRAM

    def run(self, crew: str, how: str = "once", **settings: Any) -> Ended:
        settings = {"colleagues": self.colleagues, "backoff_seconds": 0.05, **settings}
        return self.desk.run(sys.executable, self.program, crew, how, **settings)

    def lines(self, name: str) -> list[str]:
        path = self.desk.tmp / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def calls(self) -> "Counter[tuple[str, str]]":
        return Counter(
            (tool, json.dumps(arguments, sort_keys=True)) for _, tool, arguments in self.apps.calls
        )

    @property
    def prompts(self) -> "Counter[str]":
        """What the models were shown, whoever asked them. CrewAI's planner is shown addresses of objects."""
        shown = (json.dumps(json.loads(line)[1:]) for line in self.lines("prompts"))
        return Counter(VOLATILE.sub("", text) for text in shown)

    @property
    def worked(self) -> set[str]:
        return {json.loads(line)[0] for line in self.lines("prompts")}


@pytest.fixture
def make(tmp_path, listed_tools, fork_server):
    """Splits, each in a folder of its own."""
    servers = []

    def made(
        crew: str, roles: dict[str, str], name: str = "many", *, program: str = PROGRAM, **more: Any
    ) -> Split:
        (tmp_path / name).mkdir()
        listed = [
            {"crew": "desk", "agent": f"the_{app}", "role": role, "app": app, **more}
            for app, role in roles.items()
        ]
        gateway = FakeGateway()
        desk = Desk(tmp_path / name, gateway, listed_tools, server=fork_server)
        settings = {"colleagues": listed, "crews": {"desk": f"{Path(program).stem}:{crew}"}}
        apps = AgentApps(desk.config, dict.fromkeys(roles, settings), fork_server)
        gateway.behave = apps.serves("desk")
        server = serving(gateway)
        server.__enter__()
        servers.append(server)
        return Split(desk, apps, listed, program)

    yield made
    for server in servers:
        server.__exit__(None, None, None)


def told(ended: Ended, what: str = "ANSWER") -> Any:
    lines = [line for line in ended.out.splitlines() if line.startswith(f"{what} ")]
    assert lines, (ended.out, ended.err)
    return json.loads(lines[-1].removeprefix(f"{what} "))


def results(ended: Ended, how: str) -> Any:
    """Copies of a crew share their models' counts, so that what is counted side by side goes by the clock."""
    found = told(ended)
    return [{**one, "usage": None} for one in found] if how == "each_async" else found


@pytest.mark.parametrize("case", [*CREWS, *MORE])
def test_a_split_crew_does_what_it_did(make, case) -> None:
    """Results, usage, tool calls, prompts and callbacks are equal; each agent works in its own app."""
    crew, how = MORE.get(case, (case, CREWS.get(case, ("", {}))[0]))
    roles = {"clerk": "Clerk for {shop}"} if how == "each" else CREWS[crew][1]  # it is long enough
    one, many = make(crew, {}, "one"), make(crew, roles)
    whole, split = one.run(crew, how), many.run(crew, how)
    errors = split.err + "".join(played.err for played in many.apps.runs.values())
    assert (whole.status, split.status) == (0, 0), errors
    assert results(split, how) == results(whole, how)
    assert many.calls == one.calls
    assert many.prompts == one.prompts
    assert Counter(many.lines("notes")) == Counter(one.lines("notes"))
    unlisted = {"desk"} if case in ("hierarchical", "planned", "each") else set()
    assert one.worked == {"desk"}
    assert many.worked == set(roles) | unlisted
    assert {caller for caller, _, _ in many.apps.calls} <= set(roles)
    assert many.desk.marks() == []
