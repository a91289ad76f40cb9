"""Our Go modules: what each gives, and the name under which its binary is kept.

Pure but for reading the modules' own files.
"""

import hashlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy.runtime.errors import RuntimeUnavailable
from meshgate_deploy.runtime.versions import Version

# What `go build` gets beside the linker flags; part of a binary's key.
GO_FLAGS = "-mod=readonly -trimpath -buildvcs=false"


def _dapr_stamp(version: str) -> str:
    """What Dapr's own build sets: the version it answers with, and the one in its log lines."""
    answered, logged = "github.com/dapr/dapr/pkg/buildinfo.version", "github.com/dapr/kit/logger.DaprVersion"
    return f"-X {answered}={version} -X {logged}={version}"


@dataclass(frozen=True, slots=True)
class Module:
    """One of our Go modules.

    Attributes:
        folder: below `deploy/runtime`.
        binary: the name of what it builds.
        version: what the binary must call itself.
        stamp: the linker flags that make it do so, empty where the source already does.
        version_argument: how to ask it.
        version_before: what stands before the version in its answer.
    """

    folder: str
    binary: str
    version: Version
    stamp: str
    version_argument: str
    version_before: str = ""

    @property
    def linker_flags(self) -> str:
        """No symbol table, no debug data, and the stamp."""
        return f"-s -w {self.stamp}".strip()

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.binary} {self.version}"


DAPRD = Module("daprd", "daprd", Version(1, 18, 2), _dapr_stamp("1.18.2"), "--version")
CONTROL_PLANE = Module(
    "control-plane", "dapr-control-plane", Version(1, 18, 3), _dapr_stamp("1.18.3"), "version"
)
OPA = Module("opa", "opa", Version(1, 22, 2), "", "version", "Version: ")


def source(module: Module) -> Path:
    """The module's folder: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parents[1] / "_runtime_modules" / module.folder
    checkout = Path(__file__).parents[3] / "runtime" / module.folder
    for folder in (packaged, checkout):
        if (folder / "go.mod").is_file():
            return folder
    raise RuntimeUnavailable(
        f"the Go module of {module.binary} is missing",
        why=f"neither {packaged} nor {checkout} holds a go.mod",
        next_step="install meshgate again",
    )


def key(module: Module) -> str:
    """The name of the folder that keeps the binary: it changes when anything built from does.

    The Go release that compiles is not part of it, only the one that go.mod asks for: a binary
    must be found again, offline too, after Go was upgraded or removed. The platform is, since a
    home folder may be shared by machines of two kinds.
    """
    digest = hashlib.sha256()
    parts = [GO_FLAGS, module.linker_flags, sys.platform, platform.machine()]
    folder = source(module)
    named = [(part, b"") for part in parts]
    named += [
        (path.name, path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.name in ("go.mod", "go.sum") or path.suffix == ".go"
    ]
    for name, content in named:
        digest.update(f"{len(name)}:{name}{len(content)}:".encode() + content)
    return f"{module.binary}-{digest.hexdigest()[:16]}"
