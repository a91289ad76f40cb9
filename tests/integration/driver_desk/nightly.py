"""An ordinary program: uses the tools that its input names, in turn. Or its arguments, without an input."""
# ruff: noqa: T201 - a program that prints

import json
import os
import sys
from pathlib import Path

import desk_tools
from crewai.tools import tool

given = os.environ.get("MESHGATE_INPUT")
wanted = json.loads(Path(given).read_text())["wanted"] if given else sys.argv[1:]
tools = {name: tool(getattr(desk_tools, name)) for name in ("lookup", "pay")}
for pair in wanted:
    used, _, order = pair.partition(":")
    print("GOT", used, str(tools[used].run(order=order)), flush=True)
print("END", *wanted, flush=True)
