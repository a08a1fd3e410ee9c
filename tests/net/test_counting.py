"""What rules count is counted by all workers together, and a reload forgets none of it."""

from pathlib import Path

import pytest

from tests.net.fleet import fleet, hello, reload, serving, sessions_of, told
from tests.net.rig import End, Process

LIMIT = """\
[[rule]]
name = "few"
why = "to be counted"
on = "NOOP"
then = { limit = { commands = 5, per = "client", within = "1h", LOCK answer = "450 Enough" } }
"""
RATE = """\
[[rule]]
name = "few"
why = "to be counted"
on = "NOOP"
when = 'rate(client.address, 5, "1h")'
then = { answer = "450 Enough" }
"""
LOCKED = """\
[[rule]]
name = "shut-out"
why = "another rule locks"
on = "HELP"
when = 'locked("few", client.address)'
then = { answer = "550 Not you" }
"""


async def passed(client: End, many: int) -> int:
    """How many NOOPs of so many are let through."""
    replies = [await told(client, b"NOOP\r\n") for _ in range(many)]
    assert all(reply.startswith((b"250", b"450 Enough")) for reply in replies), replies
    return sum(reply.startswith(b"250") for reply in replies)


async def two_workers(process: Process) -> list[End]:
    """A session of each."""
    return [(await sessions_of(process, worker, 1))[0] for worker in await serving(process, 2)]


@pytest.mark.parametrize("text", [LIMIT.replace("LOCK", ""), RATE], ids=["limit", "rate"])
async def test_two_workers_together_let_no_more_through(tmp_path: Path, text: str) -> None:
    file = tmp_path / "counting.toml"
    file.write_text(text)
    async with fleet(tmp_path, "--rules", str(file), workers=2) as (process, _):
        one, other = await two_workers(process)
        assert (await passed(one, 3), await passed(other, 4), await passed(one, 2)) == (3, 2, 0)


async def test_a_reload_forgets_nothing_that_was_counted(tmp_path: Path) -> None:
    """Nor what was locked; its workers are others, and the rules are read anew."""
    file = tmp_path / "counting.toml"
    file.write_text(LIMIT.replace("LOCK", 'lock = "1h",') + LOCKED)
    async with fleet(tmp_path, "--rules", str(file), workers=2) as (process, _):
        one, other = await two_workers(process)
        assert (await passed(one, 3), await passed(other, 1)) == (3, 1)
        await reload(process)
        new = await process.connect()
        await hello(new)
        assert await passed(new, 3) == 1
        assert await passed(other, 1) == 0  # it runs by the old rules, and counts with all
        assert (await told(other, b"HELP\r\n")).startswith(b"550 Not you")
        file.write_text(LIMIT.replace("LOCK", 'lock = "2h",').replace("= 5", "= 500") + LOCKED)
        await reload(process)
        newer = await process.connect()
        await hello(newer)
        assert await passed(newer, 1) == 0
        assert (await told(newer, b"HELP\r\n")).startswith(b"550 Not you")
