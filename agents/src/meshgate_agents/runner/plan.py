"""What the outer process tells the inner one: a private folder that lives as long as the run."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshgate_agents.runner.errors import CannotRun

MAX_GIVEN_BYTES = 1_500_000  # with the run's result (2 MiB) in one answer of the gateway (4 MiB)
VARIABLE = "MESHGATE_RUNNER"  # names the folder; a shell's word that `meshgate run` hands on
PLAN, EVENTS = "plan.json", "events.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which call of `run` the inner process is for.

    Attributes:
        earlier: how each call before it ended; the script is played again from its top.
        inputs: of the call, JSON: the outer process's, so that each attempt has the same.
    """

    folder: Path
    earlier: tuple[dict[str, Any], ...]
    inputs: str

    def write(self) -> None:
        """Puts it into its folder."""
        text = json.dumps({"earlier": self.earlier, "inputs": self.inputs})
        (self.folder / PLAN).write_text(text, encoding="utf-8")

    @property
    def events(self) -> Path:
        """A line per event, written by the inner process."""
        return self.folder / EVENTS


@dataclass(frozen=True, slots=True)
class Given:
    """What the run keeps of its call: with that, and without an outer process, it is played again.

    Attributes:
        inputs: JSON, of the call that the run is for.
        earlier: as in Plan.
    """

    inputs: str
    earlier: tuple[dict[str, Any], ...] = ()

    def text(self) -> str:
        """The inputs, and on a second line what came of the calls before, where there were any."""
        if not self.earlier:
            return self.inputs
        text = f"{self.inputs}\n{json.dumps(self.earlier)}"
        return text if len(text.encode("utf-8", "surrogatepass")) <= MAX_GIVEN_BYTES else f"{self.inputs}\n"

    @classmethod
    def parse(cls, text: str) -> "Given":
        """From `text`.

        Raises:
            CannotRun: what came before was too much to be kept.
        """
        inputs, later, earlier = text.partition("\n")
        if later and not earlier:
            raise CannotRun(
                "this run needs results of runs before it, which were too large to be kept with it"
            )
        return cls(inputs, tuple(json.loads(earlier)) if later else ())


def read() -> Plan | None:
    """The plan of this process; None in one that no outer process started.

    A folder that is gone is no plan: the run is being played again by other means.
    """
    folder = os.environ.get(VARIABLE)
    if not folder or not (Path(folder) / PLAN).is_file():
        return None
    raw = json.loads((Path(folder) / PLAN).read_text(encoding="utf-8"))
    return Plan(Path(folder), tuple(raw["earlier"]), raw["inputs"])
