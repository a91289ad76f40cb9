"""Where a process listens, as the kernel has it. Sees only processes of the same user."""

import contextlib
import ipaddress
import sys
from pathlib import Path

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTEN = "0A"  # TCP_LISTEN of the kernel's tcp_states.h


def tcp_listeners(pid: int) -> list[tuple[IpAddress, int]]:
    """Address and port of every TCP socket that a process listens on; none if it is gone."""
    held = _sockets(pid)
    found = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == _LISTEN and f"socket:[{words[9]}]" in held:
                address, port = words[1].split(":")
                found.append((_address(address), int(port, 16)))
    return found


def _sockets(pid: int) -> set[str]:
    held = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed while we look
            held.add(str(descriptor.readlink()))
    return held


def _address(text: str) -> IpAddress:
    """From the kernel's hex: words of 32 bits in the machine's byte order."""
    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    if len(raw) == ipaddress.IPV4LENGTH // 8:
        return ipaddress.IPv4Address(raw)
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address
