"""Failures of a DurableRunner.

RunnerError
├── CannotRun   nothing was run; the text says why and what to do
└── RunFailed   the run ended without a result
"""


class RunnerError(Exception):
    """Root of the tree."""


class CannotRun(RunnerError):
    """There is no way to run this from here.

    Attributes:
        next_step: what helps.
    """

    def __init__(self, what: str, *, next_step: str = "") -> None:
        super().__init__(f"{what}\n  next: {next_step}" if next_step else what)
        self.next_step = next_step


class RunFailed(RunnerError):
    """The run failed or was cancelled.

    Attributes:
        run_id: which run.
        state: failed, cancelled, or what else it was left in.
        detail: why, one line.
        traceback: of the exception that ended the program; empty when there was none.
    """

    def __init__(self, *, run_id: str, state: str, detail: str, traceback: str = "") -> None:
        text = f"run {run_id} is {state}: {detail}"
        super().__init__(f"{text}\n\n{traceback.rstrip()}" if traceback else text)
        self.run_id, self.state, self.detail, self.traceback = run_id, state, detail, traceback
