"""Failures of the tool host.

ToolHostError
├── SettingsInvalid      the configuration file, or the process it starts in, is wrong
├── ToolNotLoadable      an entry of the manifest gives no tool; carries entry
├── GatewayUnavailable   no verdict: nothing was taken, or the outcome waits to be sent
├── CallRefused          the gateway said no; carries reason. No effect
├── LedgerUnavailable    our ledger cannot be written: nothing runs
├── SidecarUnavailable   no Dapr sidecar, or it does not take our token
└── ToolError            becomes a failure outcome; carries error_class
    ├── ResultNotJson    the tool ran; its result is neither text nor JSON
    ├── ResultTooLarge   the tool ran; carries size_bytes and limit_bytes
    ├── ToolRaised       the tool's body raised
    └── ToolReported     the tool itself said that it failed
"""


class ToolHostError(Exception):
    """Root of what this package raises."""


class SettingsInvalid(ToolHostError):
    """The process cannot start as it was told to."""


class ToolNotLoadable(ToolHostError):
    """An entry of the manifest gives no tool.

    Attributes:
        entry: the entry as written.
    """

    def __init__(self, entry: object, detail: str) -> None:
        super().__init__(f"tool entry {entry!r}: {detail}")
        self.entry = entry


class GatewayUnavailable(ToolHostError):
    """The gateway gave no verdict."""


class CallRefused(ToolHostError):
    """The gateway refused; asking again gives the same answer.

    Attributes:
        reason: the gateway's stable id.
        invalid: True when it is what we sent that was refused, not the call.
    """

    def __init__(self, reason: str, *, invalid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.invalid = invalid


class LedgerUnavailable(ToolHostError):
    """The ledger of finished calls cannot be read or written."""


class SidecarUnavailable(ToolHostError):
    """The Dapr sidecar does not answer us."""


class ToolError(ToolHostError):
    """A tool did not give a usable result.

    Attributes:
        error_class: stable id, shown to the caller.
    """

    error_class = "tool_failed"


class ResultNotJson(ToolError):
    """The tool ran and returned something else than text or JSON."""

    error_class = "result_not_json"


class ResultTooLarge(ToolError):
    """The tool ran and returned more than it may."""

    error_class = "result_too_large"

    def __init__(self, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the tool ran; its result has {size_bytes} bytes, the limit is {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class ToolRaised(ToolError):
    """The tool's body raised."""

    error_class = "tool_raised"


class ToolReported(ToolError):
    """The tool itself said that it did not do what it was asked."""

    error_class = "tool_reported"
