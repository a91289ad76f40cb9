"""An ordinary program: uses the tools that its input names, in turn. Or its arguments, without an input.

`wait:NAME` is no tool: it waits itself, outside of any step, while a test holds the name. `tell:NAME` writes
its pid into NAME.pid. `fell:` asks for the end of its worker, which it may not end itself.
"""
# ruff: noqa: T201 - a program that prints

import json
import os
import sys
import time
from pathlib import Path

import desk_own
import desk_tools
from crewai.tools import tool

given = os.environ.get("MESHGATE_INPUT")
wanted = json.loads(Path(given).read_text())["wanted"] if given else sys.argv[1:]
tools = {"keep": desk_own.keep, **{name: tool(getattr(desk_tools, name)) for name in ("lookup", "pay")}}
for pair in wanted:
    used, _, order = pair.partition(":")
    if used == "fell":
        Path("fell.part").write_text(str(os.getpid()))
        Path("fell.part").rename("fell")
        time.sleep(600)
    if used == "tell":
        (Path(__file__).parent / f"{order}.pid").write_text(str(os.getpid()))
        continue
    if used == "wait":
        while (Path(__file__).parent / "hold" / order).exists():
            time.sleep(0.02)
        continue
    print("GOT", used, str(tools[used].run(order=order)), flush=True)
print("KEPT", *desk_own.kept, flush=True)
print("END", *wanted, flush=True)
