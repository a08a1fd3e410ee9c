"""How many CPUs this process may use: those it may run on, and no more than its control group is given time for."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cpus(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """At least one. The limits are those of control groups version 2 (cgroups(7)): a container that may use one CPU of
    sixty-four sees them all."""
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas(groups, own)]))


def _quotas(groups: Path, own: Path) -> Iterator[int]:
    """What the group of this process and those around it are given, as far as they are given less than all."""
    path = next((line.removeprefix("0::/") for line in _read(own).splitlines() if line.startswith("0::/")), "")
    here = groups / path
    while True:
        quota, _, period = _read(here / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield math.ceil(int(quota) / int(period))
        if here == groups or groups not in here.parents:
            return
        here = here.parent


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError:
        return ""
