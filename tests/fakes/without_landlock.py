"""A command on a kernel without Landlock: a filter says so, also to whatever the command starts.

Usage: python without_landlock.py COMMAND…
"""

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LANDLOCK = (444, 445, 446)  # on every machine that we know
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.ENOSYS


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """For this process and all that it starts."""
    count = len(LANDLOCK)
    jumps = [(JUMP_IF_EQUAL, count - index, 0, number) for index, number in enumerate(LANDLOCK)]
    rows = [(LOAD, 0, 0, 0), *jumps, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = b"".join(struct.pack("HBBI", *row) for row in rows)
    libc, program = ctypes.CDLL(None, use_errno=True), Program(len(rows), code)
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # root without CAP_SYS_ADMIN
        if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
            sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    install()
    # As it was given: an interpreter that starts in the C locale adds a variable of its own.
    given = [item.partition(b"=") for item in Path("/proc/self/environ").read_bytes().split(b"\0") if item]
    os.execve(sys.argv[1], sys.argv[1:], {name: value for name, _, value in given})
