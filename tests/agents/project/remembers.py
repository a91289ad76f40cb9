"""A crew with memory on, as users write it. May be killed at many places: see `maybe_die`."""
# ruff: noqa: T201

import hashlib
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import desk_tools
from chromadb.api.types import EmbeddingFunction
from crewai import Agent, Crew, Task
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai.memory.unified_memory import Memory
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction
from scripted import Scripted, call

HERE = Path(os.environ["MARKS"]).parent
LOCK = threading.Lock()
VOLATILE = re.compile(r"id=[0-9a-f-]{36}|created=[0-9T:.-]+")


def log(name, what):
    """Remembers what happened, also beyond the death of this process."""
    with (HERE / name).open("a") as file:
        file.write(json.dumps(what) + "\n")


def maybe_die(where, what=None):
    """Killed at the times that KILLS names: `before save:2` is the second time here before a save.

    `everywhere` kills once at each step: when it is done and nobody knows of it yet, or in the middle of it.
    """
    with LOCK:
        if os.environ.get("KILLS") == "everywhere":
            if where.startswith("before"):
                return
            text = VOLATILE.sub("", json.dumps(what, default=str))
            here = f"{where} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
            if not (HERE / "deaths").exists() or json.dumps(here) not in (HERE / "deaths").read_text():
                log("deaths", here)
                os.kill(os.getpid(), signal.SIGKILL)
            return
        log("places", where)
        times = (HERE / "places").read_text().splitlines().count(json.dumps(where))
        here = f"{where}:{times}"
        if here in os.environ.get("KILLS", "").split(","):
            log("deaths", here)
            os.kill(os.getpid(), signal.SIGKILL)


class Minded(Scripted):
    """Answers by what it is shown alone; is the memory's model too."""

    def call(self, messages, tools=None, *args, **kwargs):
        model = kwargs.get("response_model")
        name = model.__name__ if model else "agent"
        maybe_die(f"before {name}", messages)
        log("model-calls", [name, json.dumps(messages, default=str)])
        reply = self._memory(model) if model else self._agent(messages)
        maybe_die(f"after {name}", messages)
        return reply

    def _agent(self, messages):
        done = sum(message["role"] == "assistant" for message in messages)
        return self.replies[min(done, len(self.replies) - 1)]

    def _memory(self, model):
        made = {
            "ExtractedMemories": {
                "memories": [f"{self.replies[-1]} is true", f"{self.replies[-1]} on a Monday"]
            },
            "MemoryAnalysis": {"suggested_scope": "/desk", "categories": ["money"], "importance": 0.7},
            "ConsolidationPlan": {"actions": [], "insert_new": True},
        }
        return model.model_validate(made.get(model.__name__, {}))


class Letters(CustomEmbeddingFunction, EmbeddingFunction):
    """An embedder of our own: how often each letter occurs. No network."""

    def __init__(self, *_args, **_kwargs):
        """Needs nothing."""

    def __call__(self, input):  # noqa: A002 - CrewAI's name
        maybe_die("embed", input)
        if os.environ.get("BLIND") and not (HERE / "seen").exists():
            raise ValueError("no embedder today")
        return [[float(text.lower().count(chr(97 + n))) + 0.01 for n in range(26)] for text in input]


class Watched(LanceDBStorage):
    """CrewAI's own store; the process may die right after a save."""

    def save(self, records):
        contents = [record.content for record in records]
        maybe_die("before save", contents)
        super().save(records)
        maybe_die("after save", contents)


EMBEDDER = {"provider": "custom", "config": {"embedding_callable": Letters}}


def agent(*replies, role):
    model = Minded(list(replies), native=True)
    tools = [desk_tools.refund]
    return Agent(role=role, goal="g", backstory="b", tools=tools, llm=model, max_iter=12)


def crew(memory, *, searches=()):
    first = agent([call("refund", id="a", order="1", amount=5)], "paid 1", role="A")
    second = agent(*searches, [call("refund", id="b", order="2", amount=5)], "paid 2", role="B")
    tasks = [
        Task(description=f"work {worker.role}", expected_output="done", agent=worker)
        for worker in (first, second)
    ]
    return Crew(agents=[first, second], tasks=tasks, memory=memory, embedder=EMBEDDER)


def tell(answer, storage):
    records = [[one.content, one.scope] for one in storage.list_records()]
    print("ANSWER", json.dumps([answer.raw, sorted(records)]), flush=True)


def own() -> None:
    """A memory object, with a store that tells; the agent searches and saves by itself too."""
    storage = Watched(path=str(HERE / "memory"), vector_dim=26)
    mind = Memory(llm=Minded(["mind"], native=True), embedder=Letters(), storage=storage)
    searches = (
        [call("search_memory", id="s", queries=["who was paid", "on which day"])],
        [call("save_to_memory", id="t", contents=["one was paid"])],
    )
    if os.environ.get("KILLS") == "everywhere":
        _around_calls()
    tell(crew(mind, searches=searches).kickoff(), storage)


def _around_calls() -> None:
    """Places after each call of a tool, as CrewAI's hooks show them."""
    from crewai.hooks.tool_hooks import register_after_tool_call_hook

    register_after_tool_call_hook(
        lambda context: maybe_die("after a tool", [context.tool_name, context.tool_input])
    )


def switched_on() -> None:
    """`memory=True`, and nothing else."""
    made = crew(True)
    tell(made.kickoff(), made._memory._storage)


def off() -> None:
    print("ANSWER", json.dumps([crew(False).kickoff().raw, []]), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
