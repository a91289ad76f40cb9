"""Failures of the launcher.

LauncherError
├── BadSettings          the config file is not what was agreed; nothing was started
├── GatewayUnavailable   no verdict came; asking again with the same key is right
├── AttemptEnded         this attempt cannot go on; the text is for a person, never for a model
│   ├── GatewayAway      no verdict came for as long as it was waited for
│   ├── RunHeld          the run waits for a person or for an outcome, or it is paused
│   ├── RunFull          no further attempt would come further; it fails, and its journal is kept
│   ├── RunOver          the run has ended, or another attempt has taken it over
│   ├── Stopping         this process ends; the run goes on in another
│   └── Differs          a replay asks for a step that the journal does not hold
├── StartsSpent          a run's workflow was started so often in vain that it is not started again
└── PeerRefused          a process that is no descendant of ours came to the socket
"""


class LauncherError(Exception):
    """Root of the tree."""


# What a machine raises that is out of disk, descriptors, threads or memory. Tried again, with a bound.
FAULTS = (OSError, RuntimeError, MemoryError)


class BadSettings(LauncherError):
    """The config cannot be used; the text names the key."""


class GatewayUnavailable(LauncherError):
    """The gateway, or something behind it, gave no verdict.

    Attributes:
        reason: stable id from the gateway's trailing metadata, or the gRPC status name.
        detail: one line.
    """

    def __init__(self, *, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class AttemptEnded(LauncherError):
    """This attempt is over, whatever the program does. Another may go on where it stopped.

    Attributes:
        next_step: the command that helps, for who reads it at a terminal.
    """

    def __init__(self, text: str, *, next_step: str = "") -> None:
        super().__init__(text)
        self.next_step = next_step


class GatewayAway(AttemptEnded):
    """Asking again later is right; nothing was decided."""


class RunHeld(AttemptEnded):
    """The run goes on when somebody has spoken."""


class RunOver(AttemptEnded):
    """Nothing is left for this launcher to do in this run."""


class RunFull(AttemptEnded):
    """The run reached a bound, or a step cannot be recorded: no further attempt would come further."""


class Stopping(AttemptEnded):
    """The process that plays the run is told to end. The run is not."""


class Differs(AttemptEnded):
    """The text describes the step."""


class StartsSpent(LauncherError):
    """Nothing of the run was begun, however often it was handed out."""


class PeerRefused(LauncherError):
    """The process at the other end of the socket may not speak for this run."""
