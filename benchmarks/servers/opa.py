"""A real OPA on a Unix socket, with the library, the guard and the grants of `desk`."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshgate_deploy import runtime
from meshgate_policies import bundle
from meshgate_policies import opa as opa_server
from meshgate_policies.bundle import BundleInfo

from servers import desk

TOKEN, OTHER_TOKEN = "gateway-" + "g" * 32, "supervisor-" + "s" * 32
END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Opa:
    """A running one."""

    socket_path: Path
    pid: int
    bundle: BundleInfo


@contextmanager
def serving(folder: Path, *, agents: int) -> Iterator[Opa]:
    """Builds, starts and probes; ends it afterwards."""
    binary = runtime.find_or_install(progress=lambda _: None).opa
    folder.mkdir(mode=0o700)
    policies = desk.write_policies(folder / "policies", agents=agents)
    built = bundle.build(user_policies=policies, data={}, out_dir=folder / "made", opa=binary)
    authz = opa_server.write_authz(folder / "authz", gateway_token=TOKEN, supervisor_token=OTHER_TOKEN)
    start = opa_server.OpaProcess(opa=binary, socket_path=folder / "s", bundle=built.path, authz=authz)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            start.argv(), env=start.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        opa_server.probe(
            socket_path=start.socket_path,
            gateway_token=TOKEN,
            supervisor_token=OTHER_TOKEN,
            ready_seconds=30,
            alive=lambda: process.poll() is None,
        )
        yield Opa(start.socket_path, process.pid, built)
    finally:
        process.kill()
        process.wait(END_SECONDS)
