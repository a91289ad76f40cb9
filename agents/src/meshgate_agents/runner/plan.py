"""What the outer process tells the inner one: a private folder that lives as long as the run."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read() -> Plan | None:
    """The plan of this process; None in one that no outer process started.

    A folder that is gone is no plan: the run is being played again by other means.
    """
    folder = os.environ.get(VARIABLE)
    if not folder or not (Path(folder) / PLAN).is_file():
        return None
    raw = json.loads((Path(folder) / PLAN).read_text(encoding="utf-8"))
    return Plan(Path(folder), tuple(raw["earlier"]), raw["inputs"])
