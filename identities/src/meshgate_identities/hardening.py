"""What a process that holds keys does first: no other process of the same user may look into it."""

import ctypes
import os

PR_SET_DUMPABLE = 4


def refuse_inspection() -> None:
    """Makes this process undumpable: no debugger, no memory, environment or descriptors over /proc, no core.

    Its children are not, once they have become another program. Root may look all the same. Not hidden:
    its state, parent and start time, by which processes are attested.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
