"""Real mail servers and clients around the proxy.

Rules: a peer runs from its own temporary directory, on a loopback port picked by the kernel, and talks to
nobody outside loopback; every wait has a deadline; only processes that were started here are ended, by pid.
Nothing is faked: the programs are Debian's, put there by `tests/peers/install.sh`.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

INSTALL = "tests/peers/install.sh"


class PeerError(Exception):
    """A peer did not do what was asked of it; the text holds its output."""


class PeerUnavailable(PeerError):  # noqa: N818 (no error: a test without it is skipped)
    """A peer cannot run on this machine."""


def unavailable(reason: object) -> NoReturn:
    """What a test does without its peer: it fails in CI, where all are installed, and skips elsewhere."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason}; CI has to run {INSTALL} first", pytrace=False)
    pytest.skip(f"{reason}; run {INSTALL} as root")
