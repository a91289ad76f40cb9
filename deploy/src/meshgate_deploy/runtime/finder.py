"""Finds every runtime binary, building what is missing. `meshgate runtime install|show`."""

from collections.abc import Mapping
from dataclasses import dataclass

from meshgate_deploy.runtime import cache
from meshgate_deploy.runtime.build import built, cached_path
from meshgate_deploy.runtime.found import Found, find_daprd, find_opa
from meshgate_deploy.runtime.modules import CONTROL_PLANE, DAPRD, OPA, Module
from meshgate_deploy.runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class RuntimeBinaries:
    """How to start each program: an argument list to which flags are added.

    Attributes:
        daprd: the sidecar.
        sentry: the certificate authority of the Dapr plane.
        placement: the actor placement service.
        scheduler: the reminder and job service.
        opa: the policy engine.
        versions: of `daprd`, `control plane` and `opa`.
    """

    daprd: tuple[str, ...]
    sentry: tuple[str, ...]
    placement: tuple[str, ...]
    scheduler: tuple[str, ...]
    opa: tuple[str, ...]
    versions: Mapping[str, str]


def find_or_install(*, progress: Progress) -> RuntimeBinaries:
    """Finds every binary, building what is missing.

    Does not check that a found daprd was built with the components that are needed.

    Args:
        progress: gets one line now and then while something is fetched or built.

    Raises:
        RuntimeUnavailable: something can be neither found nor built.
    """
    daprd, opa = find_daprd(), find_opa()
    sidecar = daprd or Found(built(DAPRD, progress=progress), DAPRD.version)
    plane = str(built(CONTROL_PLANE, progress=progress))
    engine = opa or Found(built(OPA, progress=progress), OPA.version)
    return RuntimeBinaries(
        daprd=(str(sidecar.path),),
        sentry=(plane, "sentry"),
        placement=(plane, "placement"),
        scheduler=(plane, "scheduler"),
        opa=(str(engine.path),),
        versions={
            "daprd": str(sidecar.version),
            "control plane": str(CONTROL_PLANE.version),
            "opa": str(engine.version),
        },
    )


def show() -> list[dict[str, str]]:
    """One row per part: `name`, `state` (found, built, missing), `version`, `path`. Builds nothing.

    `path` of a missing part is where it would be built; `version`, what would be.

    Raises:
        RuntimeUnavailable: MESHGATE_DAPR or MESHGATE_OPA names something that does not serve.
    """
    return [
        _row("daprd", DAPRD, find_daprd()),
        _row("control plane", CONTROL_PLANE, None),
        _row("opa", OPA, find_opa()),
    ]


def _row(name: str, module: Module, found: Found | None) -> dict[str, str]:
    if found is not None:
        return {"name": name, "state": "found", "version": str(found.version), "path": str(found.path)}
    path = cached_path(module)
    state = "built" if cache.is_intact(path) else "missing"
    return {"name": name, "state": state, "version": str(module.version), "path": str(path)}
