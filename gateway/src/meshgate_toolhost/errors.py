"""Failures of the tool host.

ToolHostError
├── ToolNotLoadable   a manifest entry that gives no tool; ends the start
└── BadResult         what a tool returned is no result; carries the error class
"""


class ToolHostError(Exception):
    """Root of the tree."""


class ToolNotLoadable(ToolHostError):
    """A manifest entry names nothing that is a tool."""


class BadResult(ToolHostError):
    """A tool's return value cannot be a result.

    Attributes:
        error_class: `result_not_json` or `result_too_large`.
    """

    def __init__(self, error_class: str, detail: str) -> None:
        super().__init__(detail)
        self.error_class = error_class
