"""Agents on meshgate. `DurableRunner` is for a program's own use; the rest is found by our processes.

Importing this needs neither CrewAI nor grpc.
"""

from meshgate_agents.runner import DurableRunner
from meshgate_agents.runner.errors import CannotRun, RunFailed
from meshgate_agents.runner.outside import RunEvent

__all__ = ["CannotRun", "DurableRunner", "RunEvent", "RunFailed"]
