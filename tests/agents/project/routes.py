"""Runs every route by which CrewAI reaches a tool; prints what each gave as one JSON line."""
# ruff: noqa: T201, BLE001 - a program that prints; an exception is a result to show

import asyncio
import json
import sys

import desk_tools as t
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.hooks import clear_all_global_hooks
from crewai.hooks.dispatch import clear_all
from scripted import Scripted, call, final, react


def agent(llm, tools, role="Clerk", **more):
    return Agent(role=role, goal="g", backstory="b", llm=llm, tools=tools, verbose=False, **more)


def crew(llm, tools, **more):
    clerk = agent(llm, tools)
    task = Task(description="do it", expected_output="x", agent=clerk)
    return Crew(agents=[clerk], tasks=[task], verbose=False, **more)


def native():
    llm = Scripted([[call("refund", order="native")], "finished"], native=True)
    out = crew(llm, [t.refund]).kickoff()
    return str(out), llm.shown[-1]


def react_route():
    llm = Scripted([react("refund", order="react"), final()], native=False)
    out = crew(llm, [t.refund]).kickoff()
    return str(out), llm.shown[-1]


def kickoff_async():
    llm = Scripted([[call("refund", order="kickoff_async")], "finished"], native=True)
    return str(asyncio.run(crew(llm, [t.refund]).kickoff_async())), llm.shown[-1]


def akickoff():
    llm = Scripted([[call("refund", order="akickoff")], "finished"], native=True)
    return str(asyncio.run(crew(llm, [t.refund]).akickoff())), llm.shown[-1]


def agent_kickoff():
    llm = Scripted([[call("refund", order="agent_kickoff")], "finished"], native=True)
    return str(agent(llm, [t.refund]).kickoff("do it")), llm.shown[-1]


def task_alone():
    llm = Scripted([react("lookup", order="task_alone"), final()], native=False)
    task = Task(description="do it", expected_output="x", agent=agent(llm, [t.lookup]))
    return str(task.execute_sync()), llm.shown[-1]


def flow_direct():
    class Desk(Flow):
        @start()
        def begin(self):
            return t.refund.run(order="flow_direct")

    return str(Desk().kickoff()), ""


def functions_of_the_model_layer():
    """A model class that runs what it is given, as LiteLLM's does."""

    class Running(Scripted):
        def call(self, messages, tools=None, callbacks=None, available_functions=None, **kwargs):
            return "; ".join(str(f(order="layer")) for f in available_functions.values())

    llm = Running(["x"], native=True)
    return str(llm.call("hi", None, None, {"a": t.refund.run, "b": t.refund.func})), str(
        llm.call("hi", available_functions={"c": t.refund.func})
    )


def direct_run():
    return str(t.lookup.run(order="direct_run")), str(t.lookup._run("direct__run", True))


def arun():
    async def both():
        one = await t.lookup.arun(order="arun")
        two = await t.lookup._arun(order="_arun")
        three = await t.fetch.arun(url="fetch")
        four = await t.box.arun(thing="box.arun")
        return f"{one} {two} {three} {four}"

    return asyncio.run(both()), str(t.fetch.run(url="fetch.run"))


def overridden():
    value = t.box.run(thing="json")
    return type(value).__name__, json.dumps(value)


def mixin():
    return str(t.mixed._run("mixin")), str(t.mixed.run(thing="mixin.run"))


def structured():
    from crewai.tools.structured_tool import CrewStructuredTool

    plain = CrewStructuredTool.from_function(t.unlisted.func, name="plain")
    return str(plain.invoke({"thing": "x"})), str(
        t.refund.to_structured_tool().invoke({"order": "structured"})
    )


def fuzzy():
    llm = Scripted([react("delete_file", path="fuzzy"), final()], native=False)
    return str(crew(llm, [t.delete_files]).kickoff()), llm.shown[-1]


def cached():
    for _ in range(2):
        llm = Scripted([[call("refund", order="cached")], "finished"], native=True)
        out = crew(llm, [t.refund], cache=True).kickoff()
    llm = Scripted(
        [react("refund", order="cached"), final(), react("refund", order="cached"), final()], False
    )
    one, two = agent(llm, [t.refund], cache=True), agent(llm, [t.refund], role="Other", cache=True)
    tasks = [Task(description="do", expected_output="x", agent=a) for a in (one, two)]
    return str(Crew(agents=[one, two], tasks=tasks, cache=True).kickoff()), str(out)


def twins():
    same = [call("refund", id=f"twin_{n}", order="twins") for n in range(3)]
    llm = Scripted([same, "finished"], native=True)
    return str(crew(llm, [t.refund]).kickoff()), llm.shown[-1]


def unlisted():
    llm = Scripted([[call("unlisted", thing="x")], "finished"], native=True)
    return str(crew(llm, [t.unlisted]).kickoff()), llm.shown[-1]


def denied_native():
    llm = Scripted([[call("refund", order="denied")], "finished"], native=True)
    out = crew(llm, [t.refund]).kickoff()
    return json.dumps([f.failure.message for f in out.tasks_output[0].tool_failures]), llm.shown[-1]


def denied_react():
    llm = Scripted([react("refund", order="denied"), final()], native=False)
    out = crew(llm, [t.refund]).kickoff()
    return json.dumps([f.failure.message for f in out.tasks_output[0].tool_failures]), llm.shown[-1]


def failed():
    llm = Scripted([react("refund", order="fails"), final()], native=False)
    return str(crew(llm, [t.refund]).kickoff()), llm.shown[-1]


def invalid():
    return str(t.refund.run(amount="much")), str(t.lookup._run())


def delegation():
    boss_llm = Scripted(
        [
            react("delegate_work_to_coworker", task="pay", context="c", coworker="Payer"),
            final(),
        ],
        native=False,
    )
    payer_llm = Scripted([[call("refund", order="delegated")], "paid"], native=True)
    boss = agent(boss_llm, [], role="Boss", allow_delegation=True)
    payer = agent(payer_llm, [t.refund], role="Payer")
    task = Task(description="do", expected_output="x", agent=boss)
    return str(Crew(agents=[boss, payer], tasks=[task]).kickoff()), boss_llm.shown[-1]


def hooks_cleared():
    clear_all()
    clear_all_global_hooks()
    llm = Scripted([react("refund", order="cleared"), final()], native=False)
    return str(crew(llm, [t.refund]).kickoff()), llm.shown[-1]


def patch_missing():
    """A body that was put back on the class after ours was put there."""

    class Late(t.LookupTool):
        name: str = "late"

    def body(self, order: str, deep: bool = False) -> str:
        t.mark("late")
        return "body"

    Late._run = body
    clear_all()
    seen = []
    for is_native, reply in ((True, [call("late", order="late")]), (False, react("late", order="late"))):
        llm = Scripted([reply, final()], native=is_native)
        crew(llm, [Late()]).kickoff()
        seen.append(llm.shown[-1])
    return seen[0], seen[1]


def mcp():
    from crewai.tools.mcp_native_tool import MCPNativeTool

    def connect():
        t.mark("mcp")
        raise RuntimeError("connected")

    made = MCPNativeTool(
        client_factory=connect, tool_name="time", tool_schema={"description": "d"}, server_name="clock"
    )
    return str(made.run()), str(made._run())


def akickoff_react():
    llm = Scripted([react("refund", order="akickoff_react"), final()], native=False)
    return str(asyncio.run(crew(llm, [t.refund]).akickoff())), llm.shown[-1]


def agent_akickoff():
    llm = Scripted([[call("refund", order="agent_akickoff")], "finished"], native=True)
    return str(asyncio.run(agent(llm, [t.refund]).akickoff("do it"))), llm.shown[-1]


def agent_kickoff_async():
    llm = Scripted([react("refund", order="agent_kickoff_async"), final()], native=False)
    return str(asyncio.run(agent(llm, [t.refund]).kickoff_async("do it"))), llm.shown[-1]


def for_each():
    llm = Scripted(
        [[call("refund", order="for_each")], "finished", [call("refund", order="for_each")], "finished"],
        native=True,
    )
    return str(crew(llm, [t.refund]).kickoff_for_each([{"a": 1}, {"a": 2}])), llm.shown[-1]


def async_task():
    llm = Scripted([[call("refund", order="async_task")], "finished"], native=True)
    clerk = agent(llm, [t.refund])
    return str(
        Crew(
            agents=[clerk],
            tasks=[Task(description="d", expected_output="x", agent=clerk, async_execution=True)],
        ).kickoff()
    ), llm.shown[-1]


def with_timeout():
    llm = Scripted([[call("refund", order="timeout")], "finished"], native=True)
    clerk = agent(llm, [t.refund], max_execution_time=20)
    return str(
        Crew(agents=[clerk], tasks=[Task(description="d", expected_output="x", agent=clerk)]).kickoff()
    ), llm.shown[-1]


def real_model_layer():
    """CrewAI's own OpenAI client against a loopback stub; it runs the function it is given."""
    from crewai import LLM
    from openai_stub import serving

    tools = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
    with serving("refund", {"order": "real_layer"}) as url:
        llm = LLM(model="openai/gpt-4o-mini", base_url=url, api_key="none")
        brokered = llm.call("pay", tools=tools, available_functions={"refund": t.refund.run})
        raw = llm.call("pay", tools=tools, available_functions={"refund": t.refund.func})
    return str(brokered), str(raw)


ROUTES = [
    native, react_route, kickoff_async, akickoff, agent_kickoff, task_alone, flow_direct,
    functions_of_the_model_layer, direct_run, arun, overridden, mixin, structured, fuzzy, cached,
    twins, unlisted, denied_native, denied_react, failed, invalid, delegation, mcp, hooks_cleared,
    patch_missing, akickoff_react, agent_akickoff, agent_kickoff_async, for_each, async_task,
    with_timeout, real_model_layer,
]  # fmt: skip

if __name__ == "__main__":
    wanted = sys.argv[1:]
    for route in ROUTES:
        if not wanted or route.__name__ in wanted:
            try:
                shown = route()
            except Exception as error:
                import traceback

                traceback.print_exc()
                shown = ["raised", f"{type(error).__name__}: {error}"]
            print("ROUTE", json.dumps([route.__name__, *shown]), flush=True)
