"""Builds the bundle: our library, the user's packages, and the tokens' digests."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshgate_policies import opa as opa_command
from meshgate_policies.errors import PolicyInvalid

_PACKAGE = re.compile(r"^package\s+(\S+)", re.MULTILINE)
USER_PACKAGES = "mesh."


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """One built bundle.

    Attributes:
        path: the tarball.
        revision: the first 12 hex digits of the digest of all sources.
        sha256: hex digest of the tarball.
    """

    path: Path
    revision: str
    sha256: str


def library() -> Path:
    """Our Rego: inside an installed wheel, else in the checkout."""
    packaged = Path(__file__).parent / "_rego"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lib"


def user_sources(folder: Path) -> list[Path]:
    """The user's Rego files without their tests, sorted."""
    return sorted(p for p in folder.rglob("*.rego") if not p.name.endswith("_test.rego"))


def build(*, opa: Sequence[str], user_policies: Path, tokens: Mapping[str, str], out_dir: Path) -> BundleInfo:
    """Checks, composes and packs the policies.

    Args:
        opa: how to call OPA.
        user_policies: the folder of the project's packages.
        tokens: `gateway` and `supervisor`, in clear; only digests enter the bundle.
        out_dir: gets `bundle/` and `bundle-<revision>.tar.gz`.

    Raises:
        PolicyInvalid: what OPA says, with file and line.
    """
    tree = out_dir / "bundle"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    capabilities = out_dir / "capabilities.json"
    capabilities.write_text(opa_command.capabilities(opa))
    digest = hashlib.sha256()
    for root, prefix in ((library(), "lib"), (user_policies, "user")):
        for source in user_sources(root):
            _check_package(source, library_file=prefix == "lib")
            target = tree / prefix / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = source.read_bytes()
            digest.update(str(target.relative_to(tree)).encode() + b"\0" + content)
            target.write_bytes(content)
    digests = {f"{name}_token_sha256": hashlib.sha256(t.encode()).hexdigest() for name, t in tokens.items()}
    (tree / "data.json").write_text(json.dumps({"authz": digests}))
    revision = digest.hexdigest()[:12]
    packed = out_dir / f"bundle-{revision}.tar.gz"
    done = opa_command.run(
        opa, "build", "--bundle", str(tree), "--capabilities", str(capabilities),
        "--revision", revision, "--output", str(packed),
    )  # fmt: skip
    if done.returncode != 0:
        raise PolicyInvalid(done.stderr.replace(str(tree / "user"), str(user_policies)).strip())
    return BundleInfo(packed, revision, hashlib.sha256(packed.read_bytes()).hexdigest())


def _check_package(source: Path, *, library_file: bool) -> None:
    match = _PACKAGE.search(source.read_text())
    if not library_file and (match is None or not match.group(1).startswith(USER_PACKAGES)):
        raise PolicyInvalid(
            f"{source}: a project's package starts with 'mesh.'; write: package mesh.agents.<app>"
        )
