"""A process that holds keys is closed to others of its user, and is attested all the same."""

import os
import subprocess
import sys

import pytest
from meshgate_identities import attestation

NOBODY = 65534
DROP = f"""
import ctypes, os, sys, time
from meshgate_identities import attestation
from meshgate_identities.hardening import PR_SET_DUMPABLE, refuse_inspection
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # the change of user has cleared it
"""
HOLDER = """
if sys.argv[1] == "closed":
    refuse_inspection()
print("ready", flush=True)
time.sleep(600)
"""
LOOK = """
pid, found = sys.argv[1], []
for name in ("environ", "mem", "maps", "fd"):
    try:
        path = f"/proc/{pid}/{name}"
        os.listdir(path) if name == "fd" else open(path, "rb").read(1) if name != "mem" else open(path, "rb")
        found.append(name)
    except PermissionError:
        pass
process = attestation.process(int(pid))
os.close(os.pidfd_open(process.pid))
print(*found, process.start_ticks)
"""
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")


def run(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """A process of nobody, with our code but not our rights."""
    return subprocess.Popen(
        [sys.executable, "-c", DROP + script, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("how", "seen"), [("open", ["environ", "mem", "maps", "fd"]), ("closed", [])])
def test_another_process_of_the_user_looks_in(how, seen) -> None:
    """Into neither environment, memory nor descriptors; pid and start time are still told."""
    holder = run(HOLDER, how)
    try:
        assert holder.stdout.readline() == "ready\n"
        out, _ = run(LOOK, str(holder.pid)).communicate(timeout=60)
        *found, ticks = out.split()
        assert found == seen
        assert int(ticks) == attestation.process(holder.pid).start_ticks
    finally:
        holder.kill()
        holder.wait()
