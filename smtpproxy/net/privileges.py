"""Giving up what a process may: root, groups, capabilities, and the way back to them.

The supervisor opens what takes privileges. What reads the octets of peers, a worker, keeps only what it needs while it
runs: CAP_NET_RAW where the server is to see the client's own address (ip(7), IP_TRANSPARENT), and else nothing.

- `drop` is for a process of one thread: capabilities belong to threads (capabilities(7)).
- The kernel forgets a parent-death signal when ids change (prctl(2), PR_SET_PDEATHSIG): it is set after `drop`.
- What was asked is looked at afterwards, and root is tried for. Whatever is not as it should be is an error, and then
  the process must end: it may be half way.

The numbers are those of linux/capability.h and linux/prctl.h.
"""

import contextlib
import ctypes
import grp
import os
import pwd
from collections.abc import Iterable
from typing import NamedTuple

from smtpproxy.config import Config

CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 10, 12, 13
_NAMES = {
    CAP_SETGID: "CAP_SETGID",
    CAP_SETUID: "CAP_SETUID",
    CAP_SETPCAP: "CAP_SETPCAP",
    CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_NET_RAW: "CAP_NET_RAW",
}
NOBODY = "65534"
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits each
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39


class PrivilegeError(Exception):
    """Privileges can't be given up as asked; its text says why, and what to do."""


class Identity(NamedTuple):
    """Who a process is to be."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # supplementary


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Capabilities(NamedTuple):
    """The sets of a thread, by number."""

    effective: frozenset[int]
    permitted: frozenset[int]
    inheritable: frozenset[int]


def resolve(user: str, group: str = "") -> Identity:
    """Who is meant by a name or number. No user: who this process is. No group: the user's own. Who is that already,
    and not root, has the supplementary groups it was given.

    Raises:
        PrivilegeError: there is no such user or group.
    """
    gid = _group(group) if group else -1
    own = Identity(os.geteuid(), os.getegid(), tuple(sorted(os.getgroups())))
    if not user:
        return own._replace(gid=gid) if group else own
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if group and user.isdecimal():  # of a container, where no file knows it
            return Identity(int(user), gid, (gid,))
        mend = "say its group as well" if user.isdecimal() else f"make it: `useradd --system --user-group {user}`"
        raise PrivilegeError(f"there is no user {user!r}: {mend}") from None
    gid = gid if group else found.pw_gid
    if own[:2] == (found.pw_uid, gid) and own.uid != 0:
        return own
    return Identity(found.pw_uid, gid, tuple(sorted(os.getgrouplist(found.pw_name, gid))))


def of_workers(config: Config) -> Identity:
    """Who workers become. Where nothing is said those of root become nobody, by number: no file need know it.

    Raises:
        PrivilegeError: there is no such user or group, or nobody would have what is nobody else's.
    """
    user, group = config.process.user, config.process.group
    if user or os.geteuid() != 0:
        return resolve(user, group)
    if config.tls.keylog:
        raise PrivilegeError("the key log is not for nobody, who is shared with others: say [process] user")
    return resolve(NOBODY, group or NOBODY)


def needed(config: Config) -> frozenset[int]:
    """The capabilities of a running worker."""
    return frozenset({CAP_NET_RAW}) if any(entry.keeps_client for entry in config.listeners) else frozenset()


def has(capability: int) -> bool:
    """Whether this thread may use it now."""
    return capability in capabilities().effective


def name(capability: int) -> str:
    """What people call it."""
    return _NAMES.get(capability, f"capability {capability}")


def capabilities() -> Capabilities:
    """What this thread has."""
    words = (_Word * 2)()
    _ask("capget", ctypes.byref(_Header(_VERSION_3, 0)), words)
    sets = (
        words[0].effective | words[1].effective << 32,
        words[0].permitted | words[1].permitted << 32,
        words[0].inheritable | words[1].inheritable << 32,
    )
    return Capabilities(*(frozenset(bit for bit in range(64) if value >> bit & 1) for value in sets))


def drop(uid: int, gid: int, groups: Iterable[int], keep: frozenset[int] = frozenset()) -> None:
    """Be this user with these capabilities, and no way back. Who is this user already only gives up capabilities, for
    which no privilege is needed.

    Raises:
        PrivilegeError: it can't be done, or was not; the process must end.
    """
    groups = tuple(groups)
    had = capabilities()
    bounded = CAP_SETPCAP in had.effective  # else it can't be, and with no_new_privs it need not
    if missing := sorted(keep - had.permitted):
        raise PrivilegeError(
            f"{', '.join(map(name, missing))} is needed and not there: start as root, or have the service manager give"
            f" it (AmbientCapabilities={' '.join(map(name, missing))})"
        )
    if len(os.listdir("/proc/self/task")) > 1:
        raise PrivilegeError("privileges can't be given up when there are threads already")
    try:
        if bounded:
            _forget_bounds()
        _become(uid, gid, groups)
        _set_capabilities(keep)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise PrivilegeError(f"privileges can't be given up: {error.strerror}") from error
    if why := _wrong(uid, gid, groups, keep, bounded=bounded):
        raise PrivilegeError(f"privileges were not given up: {why}")


def _group(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise PrivilegeError(f"there is no group {group!r}: make it: `groupadd --system {group}`") from None


def _forget_bounds() -> None:
    """No program that this process might become gets any capability, whoever owns it and whatever its file says."""
    for capability in _bounding():
        _prctl(_PR_CAPBSET_DROP, capability)


def _bounding() -> list[int]:
    """What can still be had by becoming another program."""
    found = []
    for capability in range(64):
        with contextlib.suppress(OSError):  # EINVAL: this kernel has no more of them
            if _prctl(_PR_CAPBSET_READ, capability):
                found.append(capability)
    return found


def _become(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """The ids, in this order: who is not root any more can't change groups. Capabilities are still there behind it."""
    _prctl(_PR_SET_KEEPCAPS, 1)
    try:
        if set(os.getgroups()) != set(groups):
            os.setgroups(groups)
        if os.getresgid() != (gid, gid, gid):
            os.setresgid(gid, gid, gid)
        if os.getresuid() != (uid, uid, uid):
            os.setresuid(uid, uid, uid)
    except PermissionError:
        raise PrivilegeError(
            f"user {os.geteuid()} can't become user {uid} with group {gid}: start as root, or leave the user out of the"
            " configuration and have the service manager set it (User=, DynamicUser=)"
        ) from None
    _prctl(_PR_SET_KEEPCAPS, 0)


def _set_capabilities(keep: frozenset[int]) -> None:
    """These and no more. Ambient ones go with those that can be inherited."""
    bits = sum(1 << capability for capability in keep)
    low, high = bits & 0xFFFF_FFFF, bits >> 32
    words = (_Word * 2)(_Word(low, low, 0), _Word(high, high, 0))
    _ask("capset", ctypes.byref(_Header(_VERSION_3, 0)), words)


def _wrong(uid: int, gid: int, groups: tuple[int, ...], keep: frozenset[int], *, bounded: bool) -> str:
    """What is not as it should be, or ""."""
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or set(os.getgroups()) != set(groups):
        return "user or groups are not what they should be"
    if capabilities() != (keep, keep, frozenset()):
        return "capabilities are not what they should be"
    if _prctl(_PR_GET_NO_NEW_PRIVS) != 1 or (bounded and _bounding()):
        return "new privileges can be gained"
    for become, own in ((os.setuid, uid), (os.setgid, gid)):
        if own != 0:
            with contextlib.suppress(OSError):
                become(0)
                return "root can be regained"
    return ""


def _prctl(option: int, value: int = 0) -> int:
    """The answer; all five arguments are of one width, and those that are not used must be 0."""
    return _ask("prctl", *map(ctypes.c_ulong, (option, value, 0, 0, 0)))


def _ask(function: str, *words: object) -> int:
    """A call of the C library.

    Raises:
        OSError: it failed.
    """
    answer: int = getattr(ctypes.CDLL(None, use_errno=True), function)(*words)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
