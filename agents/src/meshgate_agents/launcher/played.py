"""What is known of an attempt that ended."""

from dataclasses import dataclass

from meshgate_agents.launcher.calling import Attempt
from meshgate_agents.launcher.session import Session
from meshgate_agents.launcher.supervise import Ending


@dataclass(frozen=True, slots=True)
class Played:
    """An attempt that ended."""

    attempt: Attempt
    ending: Ending
    reports: int
    steps: int
    error: str
    traceback: str
    result: bytes
    declined: str

    @classmethod
    def of(cls, attempt: Attempt, ending: Ending, session: Session) -> "Played":
        """What is left of an attempt's session."""
        told = (session.reports, session.steps, *session.crash, session.result, session.declined)
        return cls(attempt, ending, *told)

    @property
    def cause(self) -> str:
        """Why it ended, without clear text."""
        if self.ending.fatal is not None:
            return str(self.ending.fatal)
        if self.ending.signal:
            return f"the program was ended by signal {self.ending.signal}"
        error = f" ({self.error})" if self.error else ""
        return f"the program ended with status {self.ending.status}{error}"
