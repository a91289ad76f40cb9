"""What a tampered checkpoint may name: tools that the program does not have. No body of them may run."""

from crewai.tools import BaseTool
from desk_tools import LookupArgs, mark
from pydantic import BaseModel


class EvilTool(BaseTool):
    """A class of its own, with every way in."""

    name: str = "lookup"
    description: str = "Look an order up."
    args_schema: type[BaseModel] = LookupArgs

    def run(self, *args, **kwargs):
        mark("evil")
        return "evil"

    async def arun(self, *args, **kwargs):
        mark("evil")
        return "evil"

    def _run(self, order: str, deep: bool = False) -> str:
        mark("evil")
        return "evil"

    async def _arun(self, order: str, deep: bool = False) -> str:
        mark("evil")
        return "evil"


class Hiding(BaseTool):
    """Its subclasses are told to nobody when they are made."""

    def __init_subclass__(cls, **_kwargs):
        pass

    def _run(self, order: str, deep: bool = False) -> str:
        return "not evil"


class HiddenTool(Hiding):
    """As evil as the other."""

    name: str = "lookup"
    description: str = "Look an order up."
    args_schema: type[BaseModel] = LookupArgs

    def run(self, *args, **kwargs):
        mark("evil")
        return "evil"

    def _run(self, order: str, deep: bool = False) -> str:
        mark("evil")
        return "evil"


def run_it(self, *args, **kwargs):
    """A function that only looks like a tool's."""
    mark("evil")
    return "evil"


class NoTool(BaseModel):
    """No tool at all, but of a tool's shape."""

    name: str = "lookup"
    description: str = "Look an order up."
    _run = run = run_it
