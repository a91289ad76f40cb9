"""What a person at the terminal is told: what happened, why, and what to do next."""

EXIT_FAILURE, EXIT_USAGE, EXIT_DENIED, EXIT_NOT_FOUND, EXIT_UNAVAILABLE, EXIT_INTEGRITY = 1, 2, 3, 4, 5, 6


class UserError(Exception):
    """Ends a command with a message in three parts.

    Attributes:
        what: what happened.
        why: the cause, with file and line where there is one.
        fix: the next command, or what to write instead.
        exit_code: see the constants above.
    """

    def __init__(self, what: str, *, why: str, fix: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(f"{what}\n  why: {why}\n  do:  {fix}")
        self.what, self.why, self.fix, self.exit_code = what, why, fix, exit_code
