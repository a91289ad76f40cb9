"""An ordinary program: waits at its gate, then uses tools. Arguments: a name, then tool:order pairs."""
# ruff: noqa: T201 - a program that prints

import sys
import time
from pathlib import Path

import desk_tools
from crewai.tools import tool

GATES = Path(__file__).parent / "gates"
name, *wanted = sys.argv[1:]
tools = {name: tool(getattr(desk_tools, name)) for name in {pair.partition(":")[0] for pair in wanted}}
(GATES / f"{name}.here").touch()
while not (GATES / f"{name}.open").exists():
    time.sleep(0.02)
for pair in wanted:
    used, _, order = pair.partition(":")
    print("GOT", used, str(tools[used].run(order=order))[:200], flush=True)
