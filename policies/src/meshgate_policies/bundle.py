"""Builds the bundle: our library, the user's packages, and data. No token, no clock: same in, same out."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshgate_policies import capabilities, check, resources
from meshgate_policies.command import Command, run
from meshgate_policies.errors import PolicyInvalid

ENTRY_POINT = "meshgate/decision"
DECISION_FOLDERS = ("decision",)  # authz is written per process: it holds the tokens' digests
ROOTS = ("decision", "mesh", "meshgate")


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """One built bundle.

    Attributes:
        revision: the first 12 hex digits of the digest of all sources and data; OPA shows it.
        sha256: hex digest of the tarball; records name it.
        path: the tarball.
    """

    revision: str
    sha256: str
    path: Path


def build(*, user_policies: Path, data: Mapping[str, object], out_dir: Path, opa: Command) -> BundleInfo:
    """Checks, composes and packs the policies.

    The format is not checked here: an odd indent is no reason to stop a mesh.

    Args:
        user_policies: the folder of the project's packages. `*_test.rego` stays out; files named
            `data.json` are merged at the place their folder names, below `data.mesh`.
        data: becomes `data.mesh.manifest`.
        out_dir: gets `bundle-<revision>.tar.gz`, renamed into place.
        opa: how to call OPA.

    Raises:
        PolicyInvalid: with a Problem per mistake: file, line, what to write instead.
        PolicyUnavailable: OPA cannot be run.
    """
    if not user_policies.is_dir():
        raise PolicyInvalid(f"no folder {user_policies}; `meshgate scan` writes a first policy per app")
    if out_dir.resolve().is_relative_to(user_policies.resolve()):
        raise ValueError(f"{out_dir} lies inside {user_policies}: the bundle would contain itself")
    problems = check.find_mistakes(opa, user_policies)
    if problems:
        raise PolicyInvalid("the policies cannot be activated", problems=tuple(problems))
    out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as folder:
        work = Path(folder)
        revision = _compose(work / "bundle", user_policies, data)
        packed = _pack(opa, work, revision)
        digest = hashlib.sha256(packed.read_bytes()).hexdigest()
        path = out_dir / f"bundle-{revision}.tar.gz"
        packed.replace(path)
    return BundleInfo(revision, digest, path)


def _compose(tree: Path, user_policies: Path, data: Mapping[str, object]) -> str:
    """Lays out the bundle's tree and returns the digest of what is in it."""
    documents: dict[str, object] = {}
    for folder in DECISION_FOLDERS:
        root = resources.library() / folder
        documents[folder] = json.loads((root / "data.json").read_text())
        _copy(root, tree / "lib" / folder)
    _copy(user_policies, tree / "user")
    documents["mesh"] = user_data(user_policies) | {"manifest": dict(data)}
    (tree / "data.json").write_text(json.dumps(documents, sort_keys=True))
    (tree / ".manifest").write_text(json.dumps({"roots": ROOTS}))
    digest = hashlib.sha256()
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        name, content = str(path.relative_to(tree)).encode(), path.read_bytes()
        digest.update(b"%d:%b%d:%b" % (len(name), name, len(content), content))
    return digest.hexdigest()[:12]


def user_data(folder: Path) -> dict[str, object]:
    """The user's `data.json` files, merged; what is below `mesh`.

    Raises:
        PolicyInvalid: a file is no JSON object, reaches outside `data.mesh`, or meets another's key.
    """
    merged: dict[str, object] = {}
    for path in sorted(folder.rglob("data.json")):
        try:
            value = json.loads(path.read_text())
        except ValueError as error:
            raise _data_problem(path, f"no JSON: {error}", "mend it") from error
        for part in reversed(path.parent.relative_to(folder).parts):
            value = {part: value}
        below = value.get("mesh", {}) if isinstance(value, dict) and set(value) <= {"mesh"} else None
        if not isinstance(below, dict):
            raise _data_problem(path, "policy data must lie below `mesh`", 'write {"mesh": {"limits": …}}')
        _merge(merged, below, path)
    if {"agents", "manifest"} & set(merged):
        raise _data_problem(
            folder / "data.json", "`mesh.agents` and `mesh.manifest` are not for data", "use another name"
        )
    return merged


def _merge(into: dict[str, object], more: dict[str, object], path: Path) -> None:
    for key, value in more.items():
        held = into.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            _merge(held, value, path)
        elif key in into:
            raise _data_problem(path, f"`{key}` is also in another data.json", "keep one of them")
        else:
            into[key] = value


def _data_problem(path: Path, message: str, fix: str) -> PolicyInvalid:
    problem = check.Problem(str(path), 1, message, fix)
    return PolicyInvalid("the policy data cannot be activated", problems=(problem,))


def _copy(root: Path, target: Path) -> None:
    for source in check.deployed_sources(root):
        place = target / source.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def _pack(opa: Command, work: Path, revision: str) -> Path:
    # Run inside the folder with a relative name: OPA writes source paths into the tarball.
    capabilities.write_effective(opa, work)
    done = run(
        opa, "build", "--bundle", "bundle", "--capabilities", "capabilities.json",
        "--revision", revision, "--output", "bundle.tar.gz", cwd=work,
    )  # fmt: skip
    if done.returncode != 0:
        raise PolicyInvalid(f"opa build failed: {(done.stderr or done.stdout).strip()}")
    packed = work / "bundle.tar.gz"
    with packed.open("rb") as file:
        os.fsync(file.fileno())
    return packed
