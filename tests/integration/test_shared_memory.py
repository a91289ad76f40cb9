"""CrewAI's memory in a crew whose agents are apps, on a real mesh: one folder that all of them may write."""

from collections.abc import Iterator
from typing import Any

import pytest
from fakes.live_mesh import LiveMesh
from integration.fault_mesh import eventually

pytestmark = [pytest.mark.plane, pytest.mark.timeout(600)]

SECONDS = 300  # three processes import CrewAI one after the other
SAVED = "order 17 was paid on a Monday"
# The model of agents and memory is the crew's own; the embedder counts letters.
PROJECT = {
    "desk.py": f"""
        import json

        from chromadb.api.types import EmbeddingFunction
        from crewai import Agent, BaseLLM, Crew, Task
        from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction


        class Model(BaseLLM):
            def call(self, messages, tools=None, *args, **kwargs):
                form = kwargs.get("response_model")
                if form is not None:
                    made = {{
                        "ExtractedMemories": {{"memories": ["{SAVED}"]}},
                        "MemoryAnalysis": {{"suggested_scope": "/desk", "categories": [], "importance": 0.7}},
                        "ConsolidationPlan": {{"actions": [], "insert_new": True}},
                    }}
                    return form.model_validate(made.get(form.__name__, {{}}))
                return "recalled" if "{SAVED}" in json.dumps(messages, default=str) else "nothing is known"

            async def acall(self, *args, **kwargs):
                return self.call(*args, **kwargs)

            def supports_function_calling(self):
                return True

            def get_context_window_size(self):
                return 100_000


        class Letters(CustomEmbeddingFunction, EmbeddingFunction):
            def __init__(self, *_args, **_kwargs):
                pass

            def __call__(self, input):
                return [[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in input]


        model = Model(model="own")
        clerk = Agent(role="Clerk", goal="pay", backstory="b", llm=model)
        writer = Agent(role="Writer", goal="write", backstory="b", llm=model)
        first = Task(description="pay order 17", expected_output="a line", agent=clerk)
        second = Task(description="what about order 17?", expected_output="a line", agent=writer)
        embedder = {{"provider": "custom", "config": {{"embedding_callable": Letters}}}}
        crew = Crew(agents=[clerk, writer], tasks=[first, second], memory=True, embedder=embedder)
    """,
    "meshgate.yaml": """
        apiVersion: meshgate/v1
        mesh: mind
        trustDomain: mind.example
        crews:
          desk:
            crew: desk:crew
            agents:
              clerk: {role: Clerk}
              writer: {role: Writer}
            env: [CREWAI_STORAGE_DIR]
    """,
    "policies/desk.rego": """
        package mesh.agents.desk

        allow contains "agent:clerk"

        allow contains "agent:writer"
    """,
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMesh]:
    """The mesh, with a folder for the crew's memory."""
    root = tmp_path_factory.mktemp("m")
    (root / "mind").mkdir()
    made = LiveMesh(root, PROJECT | {".env": f"CREWAI_STORAGE_DIR={root / 'mind'}\n"})
    try:
        made.up()
        yield made
    finally:
        made.remove()


def test_an_agent_recalls_what_another_one_saved(mesh: LiveMesh) -> None:
    """From one process to another, confined both: the first knows nothing yet, the second what was saved."""
    done = mesh.command("runs", "start", "desk", "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    over = ("completed", "failed", "cancelled")
    eventually(lambda: mesh.asked("runs", "show", "r1")["state"] in over, "the run ends", seconds=SECONDS)
    shown: dict[str, Any] = mesh.asked("runs", "show", "r1")
    assert '"recalled"' in str(shown["result"]), (mesh.root / ".meshgate/logs/writer.log").read_text()
    (task, _) = mesh.asked("runs", "show", "r1", "--steps")["steps"]
    assert "nothing is known" in str(task["output"])
    assert (mesh.root / "mind" / "memory").is_dir()
