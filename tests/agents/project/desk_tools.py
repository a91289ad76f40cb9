"""Tools of a small desk. Each body leaves a mark: none may be left by an agent's process."""

import os
import uuid
from pathlib import Path

from crewai.tools import BaseTool, tool
from pydantic import BaseModel, Field


def mark(name: str) -> None:
    (Path(os.environ["MARKS"]) / f"{name}-{uuid.uuid4().hex}").touch()


@tool
def refund(order: str, amount: float = 5) -> str:
    """Pay money back."""
    mark("refund")
    return "body"


@tool("delete files")
def delete_files(path: str) -> str:
    """Delete files."""
    mark("delete_files")
    return "body"


@tool
async def fetch(url: str) -> str:
    """Fetch a page."""
    mark("fetch")
    return "body"


class LookupArgs(BaseModel):
    order: str = Field(description="The order.")
    deep: bool = False


class LookupTool(BaseTool):
    name: str = "lookup"
    description: str = "Look an order up."
    args_schema: type[BaseModel] = LookupArgs

    def _run(self, order: str, deep: bool = False) -> str:
        mark("lookup")
        return "body"

    async def _arun(self, order: str, deep: bool = False) -> str:
        mark("lookup")
        return "body"


class BoxTool(BaseTool):
    """Overrides every way in."""

    name: str = "box"
    description: str = "Put something in a box."

    def run(self, *args, **kwargs):
        mark("box")
        return super().run(*args, **kwargs)

    async def arun(self, *args, **kwargs):
        mark("box")
        return self._run(*args, **kwargs)

    def _run(self, thing: str) -> dict:
        mark("box")
        return {"thing": thing}


class Mixin:
    def _run(self, thing: str) -> str:
        mark("mixed")
        return "body"


class MixedTool(Mixin, BoxTool):
    name: str = "mixed"
    description: str = "Its body comes from a class that is no tool."


@tool
def unlisted(thing: str) -> str:
    """A tool that the manifest does not know."""
    mark("unlisted")
    return "body"


lookup = LookupTool()
box = BoxTool()
mixed = MixedTool()
LISTED = {
    "desk.refund": refund,
    "desk.delete_files": delete_files,
    "desk.fetch": fetch,
    "desk.lookup": lookup,
    "desk.box": box,
    "desk.mixed": mixed,
}
