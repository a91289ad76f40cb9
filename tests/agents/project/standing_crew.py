"""A crew whose module notes each import, and may do at that moment what `AT_IMPORT` says."""

import contextlib
import os
import sys
import time
from pathlib import Path

import desk_tools
from crewai import Agent, Crew, Task
from scripted import Scripted, call

HERE = Path(os.environ["MARKS"]).parent
SAID = Path(__file__).with_name("words.txt").read_text().strip()
with contextlib.suppress(ImportError):
    from our_settings import SAID  # type: ignore[import-not-found]
AT_IMPORT = os.environ.get("AT_IMPORT", "")

(HERE / f"imported-{os.getpid()}").touch()
if AT_IMPORT == "calls a tool":
    desk_tools.lookup.run(order="1")
elif AT_IMPORT == "asks a model":
    Scripted(["a reply"], native=True).call([{"role": "user", "content": "hello"}])
elif AT_IMPORT == "raises":
    raise ValueError("no crew today")
elif AT_IMPORT == "ends":
    sys.exit(0)
elif AT_IMPORT == "takes long":
    while not (HERE / "go").exists():
        time.sleep(0.02)


def crew() -> Crew:
    """One agent, one task: it looks an order up and says what its module found."""
    replies = [[call("lookup", id="look", order="1")], f"{SAID} by {os.getpid()}"]
    model = Scripted(replies, native=True)
    clerk = Agent(role="Clerk", goal="g", backstory="b", tools=[desk_tools.lookup], llm=model)
    return Crew(agents=[clerk], tasks=[Task(description="look", expected_output="words", agent=clerk)])
