"""Failures of the policy layer.

PolicyError
├── PolicyInvalid       policies that do not compile; carries the problems
└── PolicyUnavailable   no verdict: engine away, slow, or refusing our token
"""


class PolicyError(Exception):
    """Root of the tree."""


class PolicyInvalid(PolicyError):
    """The policies cannot be activated."""


class PolicyUnavailable(PolicyError):
    """The engine gave no answer. Never a denial: nothing was evaluated."""
