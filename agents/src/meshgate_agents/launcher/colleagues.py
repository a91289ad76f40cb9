"""The agents of a crew that are apps of their own: whom a child may ask, and what it is told of them."""

import dataclasses
from collections.abc import Iterable, Mapping

from meshgate_agents.child.framing import BadFrame, Message
from meshgate_agents.launcher.settings import Colleague, Settings
from meshgate_agents.launcher.tools import Refusal

MAX_APP_CHARACTERS = 80
PREFIX = "agent:"  # of an app that is an agent, among the names of tools
# What a child may say of a delegation that it does not take. Its own words would stand in records.
DECLINED = {
    "unreadable": "the delegation cannot be read",
    "other_crew": "asks for a crew that this app is no agent of",
    "other_agent": "asks for an agent that this app is not",
    "other_task": "asks for a task it was not given",
    "other_colleague": "tells of a colleague that its crew has not",
    "no_agent": "its crew has no agent of that role",
    "no_crew": "its reference gives no crew",
    "hindered": "the task holds what cannot be carried over",
    "no_form": "gave what is neither text nor an object of a class that the task names",
    "unheard": "its crew is built without a step callback or an event listener that the asking process has",
    "no_tool": (
        "its crew is built without a tool that the asking process has for this task; its log names the tool "
        "and says what to do"
    ),
    "no_memory": "its process may not write where the memory of its crew lies",
    "too_large": "gave a result that is too large",
}


class Colleagues:
    """Of one app. Frozen."""

    def __init__(
        self, *, own: str = "", listed: Iterable[Colleague] = (), crews: Mapping[str, str] | None = None
    ) -> None:
        self._own, self._listed, self._crews = own, tuple(listed), dict(crews or {})

    @property
    def told(self) -> Message:
        """For the answer to a report."""
        listed = [dataclasses.asdict(one) for one in self._listed]
        return {"app": self._own, "colleagues": listed, "crews": dict(self._crews)}

    def tool(self, request: Message) -> str | Refusal:
        """What the gateway knows a delegation as; nobody but a colleague is asked for anything.

        Raises:
            BadFrame: the request names no app.
        """
        app = request.get("app")
        if not isinstance(app, str):
            raise BadFrame("a delegation without an app")
        if app == self._own or app not in {one.app for one in self._listed}:
            shown = " ".join(app.split())[:MAX_APP_CHARACTERS]
            return Refusal(
                f"refused: app {shown!r} is no colleague of {self._own!r}; its crew lists an agent "
                "under crews.<crew>.agents in meshgate.yaml"
            )
        return f"{PREFIX}{app}"


def of(settings: Settings) -> Colleagues:
    """As the config has them."""
    return Colleagues(own=settings.app, listed=settings.colleagues, crews=settings.crews)
