"""CrewAI's own tools, which CrewAI adds unasked and which run inside the agent's process.

In this version they run as they are: they touch the crew's own objects, memory and scratch files
and hold no credential of a tool host. A delegation tool runs the coworker in this process, and
every tool call of the coworker is brokered like any other. CrewAI's MCP tools are not in the list:
they open connections, so they are refused like unknown tools.
"""

import sys

RESERVED_IDS = {
    ("crewai.tools.agent_tools.delegate_work_tool", "DelegateWorkTool"): "crewai.delegate_work",
    ("crewai.tools.agent_tools.ask_question_tool", "AskQuestionTool"): "crewai.ask_question",
    ("crewai.tools.agent_tools.add_image_tool", "AddImageTool"): "crewai.add_image",
    ("crewai.tools.agent_tools.read_file_tool", "ReadFileTool"): "crewai.read_file",
    (
        "crewai.tools.agent_tools.deferred_tool_result_reader",
        "DeferredToolResultReader",
    ): "crewai.read_deferred_result",
    ("crewai.tools.memory_tools", "RecallMemoryTool"): "crewai.search_memory",
    ("crewai.tools.memory_tools", "RememberTool"): "crewai.save_to_memory",
    ("crewai.skills.tool", "LoadSkillTool"): "crewai.load_skill",
}


def reserved_id(tool_class: type) -> str | None:
    """The reserved id of a class of CrewAI's own; None for every other class.

    A class that only carries the name, and a subclass, are no tools of CrewAI's own.
    """
    name = (tool_class.__module__, tool_class.__qualname__)
    found = RESERVED_IDS.get(name)
    if found is None or getattr(sys.modules.get(name[0]), name[1], None) is not tool_class:
        return None
    return found
