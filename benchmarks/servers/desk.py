"""The mesh that the single-process rows serve: its catalogue, its grants, its one call."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from ca import DOMAIN, MESH
from meshgate_gateway import catalogue as gateway_catalogue
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.decide import policy_input
from meshgate_gateway.model import Caller, Kind, ToolCall
from meshgate_policies.scaffold import agent_package, file_names
from meshgate_wire import broker_pb2 as pb

CALLER, HOST = "bench", "orders"
TOOLS_EACH = 20  # grants per agent; how many agents there are, the runner says
TOOL = f"{HOST}.refund_0"
ARGUMENTS = b'{"order":"A-1001","amount":12.5}'
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {"order": {"type": "string"}, "amount": {"type": "number"}},
    "required": ["order", "amount"],
}


def catalogue() -> Catalogue:
    """One program, one host, its tools."""
    entry = {"host": HOST, "kind": "tool", "effect": "external", "schema": SCHEMA}
    tools = {tool: {**entry, "definition_sha256": "d" * 64} for tool in _tools()}
    apps = {CALLER: {"kind": "program"}, HOST: {"kind": "toolhost"}}
    return gateway_catalogue.parse(json.dumps({"tools": tools, "apps": apps}).encode())


def write_policies(folder: Path, *, agents: int) -> Path:
    """A package per agent, as `meshgate scan` writes it."""
    folder.mkdir(parents=True)
    for app in [CALLER, *(f"agent{number}" for number in range(1, agents))]:
        policy, _ = agent_package(app, _tools())
        (folder / file_names(app)[0]).write_text(policy)
    return folder


def fresh_call() -> pb.CallToolRequest:
    """A call nobody made before: its key is new, so it is decided, recorded and executed."""
    return pb.CallToolRequest(step_key=uuid7(), tool=TOOL, arguments_json=ARGUMENTS)


def uuid7() -> str:
    """A UUIDv7, as a program that calls outside of a run makes one."""
    text = uuid.uuid4().hex
    return f"{text[:8]}-{text[8:12]}-7{text[13:16]}-{text[16:20]}-{text[20:]}"


def question() -> dict[str, object]:
    """What the gateway asks about such a call, as large as a real one."""
    caller = Caller(
        f"spiffe://{DOMAIN}/ns/{MESH}/{CALLER}", DOMAIN, MESH, CALLER, Kind.PROGRAM, "01", "ab" * 32, "ipv4:"
    )
    call = ToolCall("c" + "0" * 40, catalogue().tools[TOOL], ARGUMENTS, "cd" * 32, "", 0, "", 0, {})
    return policy_input(
        caller=caller,
        call=call,
        arguments=json.loads(ARGUMENTS),
        run=None,
        delegation=(),
        time="2026-01-01T00:00:00.000Z",
    )


def _tools() -> list[str]:
    return [f"{HOST}.refund_{number}" for number in range(TOOLS_EACH)]
