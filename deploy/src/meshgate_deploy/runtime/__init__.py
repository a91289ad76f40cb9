"""The Dapr and OPA binaries: used as found when new enough, else built once from Go modules.

`finder` is the door: `find_or_install` and `show`. `found` looks at the host, `cache` keeps what
was built, `build` builds it, `toolchain` gets Go, `modules` says what is built from what, and
`versions` reads what a program calls itself.
"""

from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.finder import RuntimeBinaries, find_or_install, show
from meshgate_deploy.runtime.progress import Progress

__all__ = ["Progress", "RuntimeBinaries", "RuntimeUnavailable", "find_or_install", "show"]
