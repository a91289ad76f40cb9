"""Confines the process that calls it, for good, and whatever it starts: `confine(rules)`.

Called in a new process of one thread, just before the program is executed or run. No state is kept here.
Nothing can be taken back: what the kernel refuses a process, it refuses its descendants.

1. Over what it is to get nothing of, a mount namespace lays something empty, where the kernel lets us. For a
   program that may write everywhere else there is no other way: Landlock only allows, it knows no "all but".
2. `no_new_privs`, no core file.
3. Landlock: files, TCP ports, signals and abstract sockets, and with it no look into a process outside.
4. Another user, where the rules name one: then the kernel compares users, also where it has no Landlock.
5. No capability, now or later.
"""

import ctypes
import json
import os
import resource
import stat
import typing
from pathlib import Path

SYS_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91}
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, RULE_PATH, RULE_PORT = 1, 1, 2
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL = 38, 24, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
MOST_CAPABILITIES = 64
ALSO, INSTEAD = "also", "instead"

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPES = (1 << 0) | (1 << 1)  # abstract Unix sockets, signals
ABI_REFER, ABI_TRUNCATE, ABI_NET, ABI_IOCTL, ABI_SCOPES = 2, 3, 4, 5, 6

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 32, 4096, 16384, 1 << 19


class NotConfined(Exception):
    """The process may not run what it was to run: the sentence says what is missing."""


class Rules(typing.NamedTuple):
    """What a program may do. Every path is absolute and without symbolic links.

    Paths that are not there count for nothing.

    Attributes:
        read: folders and files that it may read and execute.
        write: those that it may also change.
        hide: what it gets nothing of, though it lies below one of them. A path below a hidden one that is
            named in `read` or `write` is given all the same.
        cover: whether what is hidden is covered, where the kernel lets us: `also` or `instead`. Unless it is
            covered `instead`, the entries of each folder above a hidden path are given one by one, as
            they are now: what appears there later is neither read nor written.
        connect: TCP ports that it may connect to; None for any.
        listen: whether it may listen on TCP ports.
        user: uid and gid that it gets, and no other group. Without Landlock these alone keep it from files
            and processes; ports, which no user is asked for, are refused to be limited then.
    """

    read: "tuple[str, ...]" = ()
    write: "tuple[str, ...]" = ()
    hide: "tuple[str, ...]" = ()
    cover: str = ""
    connect: "tuple[int, ...] | None" = None
    listen: bool = True
    user: "tuple[int, int] | None" = None

    def as_json(self) -> str:
        """For `from_json`, in the process that is to be confined."""
        return json.dumps(self._asdict())


def from_json(text: str) -> Rules:
    """The rules that another process of ours wrote."""
    raw = json.loads(text)
    lists = {name: tuple(raw[name]) for name in ("read", "write", "hide")}
    ports = None if raw["connect"] is None else tuple(raw["connect"])
    user = None if raw["user"] is None else (int(raw["user"][0]), int(raw["user"][1]))
    return Rules(cover=raw["cover"], connect=ports, listen=raw["listen"], user=user, **lists)


def abi() -> int:
    """The version of Landlock that the kernel has; 0 for none."""
    found = _libc().syscall(SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    return max(0, int(found))


def confine(rules: Rules) -> bool:
    """Confines this process by the rules; whether what is to be hidden was covered.

    Raises:
        NotConfined: some of it is not possible here. Nothing may be run then.
    """
    version = abi()
    if not version and rules.user is None:
        raise NotConfined("this kernel has no Landlock, and the program no user of its own")
    if version < ABI_NET and _limits_ports(rules):
        raise NotConfined(f"Landlock of this kernel (ABI {version}) knows no TCP ports")
    libc = _libc()
    covered = rules.cover != "" and _cover_all(libc, rules)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if version:
        _landlock(libc, rules, version, hide=() if covered and rules.cover == INSTEAD else rules.hide)
    _empty_bounding_set(libc)
    if rules.user is not None:
        become(*rules.user)
    _drop_capabilities(libc)
    return covered


def become(uid: int, gid: int) -> None:
    """Another user for good: all of its uids and gids, and no further group.

    Raises:
        NotConfined: this process may not, or has that user already.
    """
    if not uid or not gid or uid in os.getresuid():
        raise NotConfined(f"uid {uid}, gid {gid} keeps a program apart from nobody here")
    try:
        os.setgroups(())
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except (OSError, OverflowError) as error:
        raise NotConfined(f"becoming uid {uid}, gid {gid}: {error}") from error
    if os.getgroups() or (os.getresuid(), os.getresgid()) != ((uid,) * 3, (gid,) * 3):
        raise NotConfined(f"becoming uid {uid}, gid {gid}: the kernel did it by half")


def described(rules: Rules) -> str:
    """One line on what these rules mean on this kernel."""
    version = abi()
    if not version and rules.user is None:
        return "not possible, this kernel has no Landlock"
    ports = (
        "any TCP port"
        if rules.connect is None
        else f"TCP to {' '.join(map(str, rules.connect)) or 'no port'}"
    )
    return ", ".join((*_kept_by(rules, version), ports, "no_new_privs", "no capabilities"))


def _kept_by(rules: Rules, version: int) -> "typing.Iterator[str]":
    if rules.user is not None:
        yield f"uid {rules.user[0]} of its own"
    yield f"Landlock ABI {version}" if version else "no Landlock"
    if version >= ABI_SCOPES:
        yield "signals and abstract sockets kept in"
    elif rules.user is not None:
        yield "signals kept in, abstract sockets not"
    else:
        yield "signals not kept in"


def can_cover(*, another_user: bool = False) -> bool:
    """Whether a process like this one can cover paths, also of another user: tried out in a child."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if _own_mounts(_libc(), another_user=another_user) and _tmpfs(_libc(), "/proc") else 1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- Landlock


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64), ("port", ctypes.c_uint64))


def _landlock(libc: ctypes.CDLL, rules: Rules, version: int, *, hide: "tuple[str, ...]") -> None:
    everything = _file_rights(version)
    net = (0 if rules.connect is None else CONNECT_TCP) | (0 if rules.listen else BIND_TCP)
    scopes = SCOPES if version >= ABI_SCOPES else 0
    made = _Ruleset(everything, net, scopes)
    size = 24 if scopes else 16 if version >= ABI_NET else 8
    ruleset = libc.syscall(SYS_CREATE_RULESET, ctypes.byref(made), ctypes.c_size_t(size), ctypes.c_uint32(0))
    _must(ruleset, "a Landlock ruleset")
    try:
        for path in rules.read:
            _allow(libc, ruleset, path, READ, hide)
        for path in rules.write:
            _allow(libc, ruleset, path, everything, hide)
        for number in rules.connect or ():
            port = _Port(CONNECT_TCP, number)
            _must(_rule(libc, ruleset, RULE_PORT, port), f"a rule for port {number}")
        _must(libc.syscall(SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "Landlock")
    finally:
        os.close(ruleset)


def _limits_ports(rules: Rules) -> bool:
    return rules.connect is not None or not rules.listen


def _file_rights(version: int) -> int:
    rights = REFER - 1
    for right, since in ((REFER, ABI_REFER), (TRUNCATE, ABI_TRUNCATE), (IOCTL_DEV, ABI_IOCTL)):
        rights |= right if version >= since else 0
    return rights


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int, hide: "tuple[str, ...]") -> None:
    """Gives a path and what is below, without what is hidden there."""
    if any(_below(hidden, path) for hidden in hide):
        _add(libc, ruleset, path, READ_DIR)  # names only, also of what is hidden
        try:
            entries = list(os.scandir(path))
        except OSError:
            return
        for entry in entries:
            if entry.path not in hide and not entry.is_symlink():
                _allow(libc, ruleset, entry.path, access, hide)
    else:
        _add(libc, ruleset, path, access)


def _add(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # not there, or not ours to look at: nothing to give
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISLNK(mode):  # put there since the rules were made, maybe by the program itself
            raise NotConfined(f"{path} has become a symbolic link")
        if not stat.S_ISDIR(mode):
            access &= OF_A_FILE
        _must(_rule(libc, ruleset, RULE_PATH, _Beneath(access, descriptor)), f"a rule for {path}")
    finally:
        os.close(descriptor)


def _rule(libc: ctypes.CDLL, ruleset: int, kind: int, rule: ctypes.Structure) -> int:
    if not rule.access:
        return 0
    return int(
        libc.syscall(SYS_ADD_RULE, ctypes.c_int(ruleset), kind, ctypes.byref(rule), ctypes.c_uint32(0))
    )


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


# ---- capabilities


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _empty_bounding_set(libc: ctypes.CDLL) -> None:
    """A program of root would get all of it back with exec. Another user has not the right to do this."""
    for capability in range(MOST_CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # who has not the right has none to lose


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    number = SYS_CAPSET.get(os.uname().machine)
    if number is None:
        raise NotConfined(f"how capabilities are dropped on {os.uname().machine} is not known")
    libc.prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    none = (ctypes.c_uint32 * 6)()
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    _must(libc.syscall(number, ctypes.byref(header), ctypes.byref(none)), "dropping capabilities")


# ---- covering


def _cover_all(libc: ctypes.CDLL, rules: Rules) -> bool:
    """Covers what is hidden, in a mount namespace of this process; False where the kernel does not let us."""
    outermost = [path for path in rules.hide if not any(_below(path, other) for other in rules.hide)]
    hidden = [path for path in outermost if Path(path).exists()]
    if not _own_mounts(libc, another_user=rules.user is not None):
        return False
    for index, path in enumerate(hidden):
        kept = [other for other in (*rules.read, *rules.write) if _below(other, path)]
        opened = {other: os.open(other, os.O_PATH | os.O_CLOEXEC) for other in kept if Path(other).exists()}
        if not _cover(libc, path):
            if index:
                raise NotConfined(f"{path} could not be covered, though others were")
            return False
        for other, descriptor in opened.items():
            _uncover(libc, other, descriptor)
        if Path(path).is_dir():
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            _must(_mount(libc, None, path, None, flags), f"covering {path} for good")
    return True


def _own_mounts(libc: ctypes.CDLL, *, another_user: bool = False) -> bool:
    """In a namespace of users, where we need one for it, nobody could become another one."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS) != 0:
        if another_user or libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) != 0:
            return False
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
        except OSError:
            return False
    return bool(_mount(libc, None, "/", None, MS_REC | MS_SLAVE) == 0)


def _cover(libc: ctypes.CDLL, path: str) -> bool:
    if Path(path).is_dir():
        return _tmpfs(libc, path)
    return _mount(libc, "/dev/null", path, None, MS_BIND) == 0


def _tmpfs(libc: ctypes.CDLL, path: str) -> bool:
    """Empty, for this program alone; which may have another user, and places of its own below."""
    return _mount(libc, "tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"mode=711,size=256k") == 0


def _uncover(libc: ctypes.CDLL, path: str, descriptor: int) -> None:
    """Makes a path, which was opened before it was covered, reachable again."""
    missing = [folder for folder in Path(path).parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o711)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        Path(path).mkdir(mode=0o700, exist_ok=True)
    else:
        Path(path).touch(mode=0o600)
    _must(_mount(libc, f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC), f"keeping {path}")
    os.close(descriptor)


def _mount(  # noqa: PLR0913, PLR0917 - mount(2)
    libc: ctypes.CDLL,
    source: "str | None",
    target: str,
    kind: "str | None",
    flags: int,
    data: "bytes | None" = None,
) -> int:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    return int(libc.mount(*words, ctypes.c_ulong(flags), data))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result < 0:
        raise NotConfined(f"{what}: {os.strerror(ctypes.get_errno())}")
