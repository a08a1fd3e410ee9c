"""The world around a gateway, in the hands of a test: the clock, the moment of a sync or a death, the room on a disk.

`Shim` is a library that is loaded before libc in each process of a gateway (LD_PRELOAD) and does what a page of memory
shared with the test says. `Disk` is a small tmpfs in a mount namespace of its own: nobody else's disk is filled up.
"""

import contextlib
import errno
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final, Self

from tests.peers import PeerUnavailable, unavailable
from tests.peers.process import find, need_root

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct page {
    volatile int64_t later;                 /* seconds that CLOCK_REALTIME is ahead */
    volatile int32_t hold, held, failing;   /* syncs wait; so many do; they fail with this errno */
    volatile int32_t tear, torn;            /* so many writes are to be cut off by a SIGKILL; so many were */
    volatile int32_t skip;                  /* writes before the next of these */
    char file[64];                          /* how the path ends of which all this is */
} *page;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("SMTPPROXY_TEST_SHIM");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *found = fd < 0 ? MAP_FAILED : mmap(0, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (found != MAP_FAILED) page = found;
}

static int is_it(int fd)
{
    char link[64], path[4096];
    char digits[16], *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = '0' + fd % 10; while (fd /= 10);
    strcpy(link, "/proc/self/fd/");
    strcat(link, at);
    ssize_t n = readlink(link, path, sizeof path - 1);
    size_t length = strlen(page->file);
    return n >= (ssize_t)length && length && !memcmp(path + n - length, page->file, length);
}

static size_t part(int fd, const void *octets, size_t n)
{
    if (!page || page->tear <= 0 || n < 2 || !is_it(fd)) return 0;
    if (__sync_fetch_and_sub(&page->skip, 1) > 0) return 0;
    if (__sync_fetch_and_sub(&page->tear, 1) <= 0) return 0;
    __sync_fetch_and_add(&page->torn, 1);
    size_t half = n / 2;
    const char *last = (const char *)octets + half - 1;
    if (half > 4 && (*last == '\n' || *last == '}')) half -= 3;  /* not what is a line but for its end */
    return half;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *octets, size_t n)
{
    REAL(write);
    size_t half = part(fd, octets, n);
    if (half) { real(fd, octets, half); kill(getpid(), SIGKILL); }
    return real(fd, octets, n);
}

ssize_t pwrite64(int fd, const void *octets, size_t n, off64_t at)
{
    REAL(pwrite64);
    size_t half = part(fd, octets, n);
    if (half) { real(fd, octets, half, at); kill(getpid(), SIGKILL); }
    return real(fd, octets, n, at);
}

ssize_t pwrite(int fd, const void *octets, size_t n, off_t at)
{
    return pwrite64(fd, octets, n, at);
}

static int sync_is_refused(int fd)
{
    if (!page || !(page->hold || page->failing) || !is_it(fd)) return 0;
    if (page->hold) {
        __sync_fetch_and_add(&page->held, 1);
        while (page->hold) usleep(1000);
    }
    errno = page->failing;
    return page->failing;
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    return sync_is_refused(fd) ? -1 : real(fd);
}

int fsync(int fd)
{
    REAL(fsync);
    return sync_is_refused(fd) ? -1 : real(fd);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    REAL(clock_gettime);
    int result = real(which, now);
    if (page && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += page->later;
    return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
    REAL(gettimeofday);
    int result = real(now, zone);
    if (page) now->tv_sec += page->later;
    return result;
}

time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""
_PAGE: Final = 4096
_FIELDS: Final = {
    "later": ("=q", 0),
    "hold": ("=i", 8),
    "held": ("=i", 12),
    "failing": ("=i", 16),
    "tear": ("=i", 20),
    "torn": ("=i", 24),
    "skip": ("=i", 28),
    "file": ("=64s", 32),
}


class Shim:
    """What the processes of a gateway that are given `env` see of the clock and the disk.

    Args:
        base: a directory they can read.
    """

    def __init__(self, base: Path) -> None:
        library, page = base / "shim.so", base / "shim.page"
        try:
            compiler = find("cc")
        except PeerUnavailable as error:
            unavailable(error)
        argv = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), "-xc", "-", "-ldl"]
        subprocess.run(argv, input=_SOURCE.encode(), check=True, timeout=60)
        page.write_bytes(bytes(_PAGE))
        with page.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _PAGE)
        self.env = {"LD_PRELOAD": str(library), "SMTPPROXY_TEST_SHIM": str(page)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._set("hold", 0)
        self._map.close()

    def _get(self, name: str) -> int:
        form, at = _FIELDS[name]
        return int(struct.unpack_from(form, self._map, at)[0])

    def _set(self, name: str, value: int | bytes) -> None:
        form, at = _FIELDS[name]
        struct.pack_into(form, self._map, at, value)

    @property
    def later(self) -> int:
        """Seconds the wall clock is ahead; below 0, behind. The monotonic one is as ever."""
        return self._get("later")

    @later.setter
    def later(self, seconds: int) -> None:
        self._set("later", seconds)

    def tear(self, file: str, *, skip: int = 0) -> None:
        """Whoever writes this file next, or after so many writes, is killed when half of it is written."""
        self._set("file", file.encode())
        self._set("skip", skip)
        self._set("tear", 1)

    @property
    def torn(self) -> int:
        """How many were, so far."""
        return self._get("torn")

    def hold_syncs(self, file: str) -> None:
        """Whoever syncs this file waits until `go_on`."""
        self._set("file", file.encode())
        self._set("held", 0)
        self._set("hold", 1)

    @property
    def held(self) -> int:
        """How many syncs were begun since then."""
        return self._get("held")

    def fail_syncs(self, file: str, error: int = errno.EIO) -> None:
        """Syncs of this file come back with this."""
        self._set("file", file.encode())
        self._set("failing", error)

    def go_on(self) -> None:
        """Syncs are what they were."""
        self._set("failing", 0)
        self._set("hold", 0)


class Disk:
    """A tmpfs of so many MiB at a directory, seen only by who is started with `prefix`, and by this test at `path`."""

    def __init__(self, at: Path, mib: int) -> None:
        try:
            need_root("a mount namespace")
            self._nsenter = find("nsenter")
            argv = [
                find("setpriv"),
                "--pdeathsig",
                "KILL",
                "--",
                find("unshare"),
                "--mount",
                "--propagation",
                "private",
            ]
        except PeerUnavailable as error:
            unavailable(error)
        at.mkdir()
        script = 'mount -t tmpfs -o "size=$1,mode=755" none "$2" && echo there && exec sleep infinity'
        argv += ["sh", "-c", script, "sh", f"{mib}m", str(at)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"there\n":
            _, why = self._holder.communicate(timeout=10)
            unavailable(f"no mount namespace can be made here: {why.decode()}")
        self.at = at
        self.path = Path(f"/proc/{self._holder.pid}/root{at}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate(timeout=10)

    def prefix(self, directory: Path) -> list[str]:
        """What runs a program that sees it, in this directory."""
        return [self._nsenter, f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wd={directory}", "--"]

    def fill(self, *, free: int = 0) -> None:
        """No octet is left, or so many KiB."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while self.free() - free * 1024 >= size:
                        file.write(bytes(size))

    def free(self) -> int:
        """Octets of it."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def empty(self) -> None:
        """What it was filled with is gone."""
        (self.path / "filler").unlink(missing_ok=True)

    def copy(self, name: str, to: Path) -> Path:
        """A directory on it, where SQLite finds it: that looks for the real path of a file, here elsewhere."""
        return Path(shutil.copytree(self.path / name, to))
