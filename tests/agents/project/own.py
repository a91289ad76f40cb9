"""A desk that stages changes in its own memory; prints what was staged and what came of it."""
# ruff: noqa: T201

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

from crewai import Agent, Crew, Task
from crewai.tools import BaseTool, tool
from pydantic import BaseModel
from scripted import Scripted, call, final, react

HERE = Path(os.environ.get("MARKS", "/nowhere/marks")).parent
pending: list[str] = []
lock = threading.Lock()


def _once(name: str) -> bool:
    if (HERE / name).exists():
        return False
    (HERE / name).touch()
    return True


class Change(BaseModel):
    """What is staged."""

    order: str
    amount: float = 5


class StageTool(BaseTool):
    """Stages a change: what a crew would send off in one go at its end."""

    name: str = "stage"
    description: str = "Stage a change."
    args_schema: type[BaseModel] = Change

    def _run(self, order: str, amount: float = 5) -> dict:
        if os.environ.get("DIE_IN_BODY") == order and _once("died-in-body"):
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "bad":
            raise ValueError("no such order")
        with lock:
            pending.append(f"{order} {amount!r}")
            staged = sorted(pending)
        shown = str(os.getpid()) if os.environ.get("DRIFT") else order
        return {"staged": shown, "first": staged[0].split()[0]}

    async def _arun(self, order: str, amount: float = 5) -> dict:
        return self._run(order=order, amount=amount)


class CountTool(BaseTool):
    """Says how much was staged before: what it gives goes by the order of all calls."""

    name: str = "count"
    description: str = "Count what is staged."

    def _run(self, order: str) -> dict:
        pending.append(order)
        inner = note.run(text=f"of {order}") if order == "nested" else ""
        return {"nth": len(pending), "inner": inner}


@tool
def note(text: str) -> str:
    """Keep a note."""
    pending.append(text)
    return f"kept {text}"


@tool
async def think(text: str) -> str:
    """Keep a thought."""
    await asyncio.sleep(0)
    pending.append(text)
    return f"thought {text}"


class SlimTool(BaseTool):
    """Gives what is no JSON, too much, or nothing."""

    name: str = "slim"
    description: str = "Give something odd."

    def _run(self, what: str) -> object:
        return {"odd": {1, 2}, "large": "x" * 2000, "none": None}[what]


class HangTool(BaseTool):
    """Does not end."""

    name: str = "hang"
    description: str = "Take forever."

    def _run(self, order: str) -> str:
        with (HERE / "hung").open("a") as file:
            file.write("1")
        pending.append(order)
        threading.Event().wait()
        return order

    async def _arun(self, order: str) -> str:
        return await asyncio.to_thread(self._run, order)


stage, count, hang = StageTool(), CountTool(), HangTool()
LISTED = {
    "desk.stage": stage,
    "desk.note": note,
    "desk.think": think,
    "desk.slim": SlimTool(),
    "desk.count": count,
    "desk.hang": hang,
}


class Model(Scripted):
    """By how many replies the messages hold already; may die before one."""

    def call(self, messages, tools=None, *args, **kwargs):
        done = sum(message["role"] == "assistant" for message in messages)
        if os.environ.get("DIE_AT_REPLY") == str(done) and _once("died"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.replies[min(done, len(self.replies) - 1)]


def play(replies, *, native=True, tools=(stage, note)) -> None:
    worker = Agent(
        role="Clerk", goal="g", backstory="b", tools=list(tools), llm=Model(replies, native), max_iter=12
    )
    task = Task(description="work", expected_output="done", agent=worker)
    tell(Crew(agents=[worker], tasks=[task]).kickoff().raw.rpartition(": ")[2])


def tell(*answers) -> None:
    print("STAGED", json.dumps([sorted(pending), *answers]), flush=True)


def native() -> None:
    """One call, then two of one reply at once, a note, and the end."""
    play(
        [
            [call("stage", id="a", order="1", amount=5)],
            [call("stage", id="b", order="2"), call("stage", id="c", order="3", amount=1.5)],
            [call("note", id="d", text="hello")],
            final("all staged"),
        ]
    )


def textual() -> None:
    """The same way by text."""
    play(
        [react("stage", order="1", amount=5), react("note", text="hello"), final("all staged")], native=False
    )


def plain() -> None:
    """Every way in, without a crew: what each gives, with the type it has."""
    given = [
        stage.run(order="1", amount=2),
        stage._run("2"),
        asyncio.run(stage.arun(order="3")),
        note.run(text="n"),
        asyncio.run(note.arun(text="m")),
        think.run(text="t"),
        asyncio.run(think.arun(text="u")),
        asyncio.run(_inside_a_loop()),
    ]
    tell(*given)


def decided() -> None:
    """Asks for one thing, both ways."""
    tell(stage.run(order="asked"), asyncio.run(stage.arun(order="asked")))


def crowd() -> None:
    """Many at once; in the second attempt they come the other way round."""
    first, orders, given = _once("crowd"), ["1", "nested", "3", "4", "5", "6"], {}

    def ask(order: str) -> None:
        given[order] = count.run(order=order)

    threads = [threading.Thread(target=ask, args=(order,)) for order in orders]
    for thread in threads if first else reversed(threads):
        thread.start()
        thread.join(0.1)  # it is on its way
    for thread in threads:
        thread.join()
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    tell(given)


async def _inside_a_loop() -> object:
    return think.run(text="v")


def hangs() -> None:
    """A body without an end, both ways, between others."""
    stage.run(order="1", amount=2)
    answers = [hang.run(order="2"), asyncio.run(hang.arun(order="3"))]
    stage.run(order="4")
    tell(*(answer.message for answer in answers))


def odd() -> None:
    """Failures, as CrewAI's own value and never raised."""
    slim = LISTED["desk.slim"]
    made = [slim.run(what=what) for what in ("odd", "large", "none")]
    tell(*(getattr(answer, "message", answer) for answer in [*made, stage.run(order="bad")]))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
