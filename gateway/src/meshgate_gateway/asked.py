"""What `CallTool` asks, once its shape is sound. Pure: nothing is looked up but the catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass

from jsonschema.protocols import Validator

from meshgate_gateway import calls
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.errors import InvalidRequest, NotPermitted
from meshgate_gateway.model import RUNNERS, Caller, CallRequest, Kind, Run, Tool, ToolKind


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose shape is sound: who, which call, and which bytes are offered."""

    caller: Caller
    request: CallRequest
    call_id: str
    tool: Tool | None
    arguments: calls.Arguments | None
    refused: calls.ArgumentsRefused | None
    run: Run | None = None

    @property
    def offered(self) -> bytes:
        """What a repeat of this call must offer again."""
        return self.arguments.canonical if self.arguments else self.request.arguments_json


def check(
    caller: Caller, request: CallRequest, *, catalogue: Catalogue, validators: Mapping[str, Validator]
) -> Asked:
    """The request, if its shape is sound; arguments that nobody may decide on are noted in it.

    Raises:
        NotPermitted: the caller makes no such calls.
        InvalidRequest: it breaks the protocol.
    """
    if caller.kind not in RUNNERS:
        raise NotPermitted("call_not_permitted", detail=f"a {caller.kind} calls no tools")
    in_run = bool(request.run_id)
    if not in_run and caller.kind is not Kind.PROGRAM:
        raise NotPermitted("call_outside_run", detail="only programs may call outside of a run")
    if in_run and not calls.is_run_id(request.run_id):
        raise InvalidRequest("run_id_invalid")
    if not calls.is_step_key(request.step_key, in_run=in_run):
        raise InvalidRequest("step_key_invalid")
    if not calls.is_untrusted(request.untrusted):
        raise InvalidRequest("untrusted_invalid")
    if not calls.is_place(request, in_run=in_run):
        raise InvalidRequest("step_place_invalid")
    call_id = calls.call_id(caller=caller.spiffe_id, run_id=request.run_id, step_key=request.step_key)
    tool = catalogue.tools.get(request.tool)
    if tool is not None and not in_run and (tool.in_agent or tool.kind is ToolKind.DELEGATE):
        raise NotPermitted("call_outside_run", tool=tool.id, detail="this tool is called in a run only")
    if tool is None:
        unknown = calls.ArgumentsRefused("tool_unknown")
        return Asked(caller, request, call_id, None, None, unknown)
    try:
        parsed = calls.parse_arguments(request.arguments_json, tool, validators[tool.id])
    except calls.ArgumentsRefused as refused:
        return Asked(caller, request, call_id, tool, None, refused)
    return Asked(caller, request, call_id, tool, parsed, None)
