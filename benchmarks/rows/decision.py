"""The decision alone: OPA over its Unix socket, asked as the gateway asks it, with 4,000 grants.

The engine is the gateway's own; OPA has the served core, the asking side the generator's. The
baseline is the same question to an OPA with a single agent: what the size of the policy costs.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from load import one_at_a_time
from measure import Goal, Row, interleave
from meshgate_gateway.adapters.opa import Opa
from meshgate_policies.judge import judge
from servers import desk, opa

from rows import Bench

P50, P99 = Goal(most=150.0), Goal(most=1000.0)
QUESTIONS = (5000, 200)


class Wrong(Exception):
    """OPA did not allow what it must."""


def measure(bench: Bench) -> Sequence[Row]:
    """p50 and p99 of one question at a time."""
    with ExitStack() as stack:
        asking = {
            name: _asker(bench, stack, bench.folder / name, agents)
            for name, agents in (("many", bench.agents), ("few", 1))
        }
        bench.say("decision: OPA is up")
        count = bench.count(*QUESTIONS)
        taken = interleave(
            bench.repeats, {name: partial(one_at_a_time, ask, count=count) for name, ask in asking.items()}
        )
    grants = f"{bench.agents * desk.TOOLS_EACH} grants against {desk.TOOLS_EACH}"
    return [
        Row(
            name=f"decision.{number}",
            unit="us",
            subject=taken.series("many", number).times(1000),
            baseline=taken.series("few", number).times(1000),
            goal=goal,
            notes=f"one question at a time; {grants}",
        )
        for number, goal in (("p50", P50), ("p99", P99))
    ]


def _asker(bench: Bench, stack: ExitStack, folder: Path, agents: int) -> Callable[[], None]:
    os.sched_setaffinity(0, bench.cores.served)
    try:
        server = stack.enter_context(opa.serving(folder, agents=agents))
    finally:
        bench.cores.pin_generator()
    engine = Opa(socket_path=str(server.socket_path), token=opa.TOKEN)
    question = desk.question()

    def ask() -> None:
        if not judge(engine.evaluate(question)).allow:
            raise Wrong("the call is granted, and OPA denies it")

    return ask
