"""Which attempt of which run this process works on, as the launcher named them."""


class _Named:
    def __init__(self) -> None:
        self.run, self.number = "", 0


_named = _Named()


def name(*, run: str, number: int) -> None:
    """The launcher's word, once per process."""
    _named.run, _named.number = run, number


def run() -> str:
    """The run's id."""
    return _named.run


def number() -> int:
    """The attempt; 0 before it was named, and in a replay."""
    return _named.number
