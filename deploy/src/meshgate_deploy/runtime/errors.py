"""What goes wrong with the runtime binaries.

meshgate_deploy.errors.DependencyUnavailable
└── RuntimeUnavailable   a binary can be neither found nor built
"""

from meshgate_deploy.errors import DependencyUnavailable


class RuntimeUnavailable(DependencyUnavailable):
    """A binary can be neither found nor built; carries why, and what to do."""
