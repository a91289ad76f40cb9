"""Which attempt of which run this process works on, as the launcher named them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .framing import Message


class _Named:
    def __init__(self) -> None:
        self.run, self.number = "", 0


_named = _Named()


def learn(answer: "Message") -> None:
    """The launcher's word on who this process is and what it works on.

    Once per process, or twice where there was no task yet when it was said first.
    """
    from . import colleagues, progress
    from .scopes import set_program

    set_program(str(answer["program"]))
    _named.run, _named.number = str(answer.get("run", "")), int(answer.get("attempt", 0))
    progress.begun(_named.number)
    colleagues.learn(answer)


def run() -> str:
    """The run's id."""
    return _named.run


def number() -> int:
    """The attempt; 0 before it was named, and in a replay."""
    return _named.number
