"""The printed examples in deploy/nftables: which they are. Run as a module, it writes them."""

from __future__ import annotations

from typing import NamedTuple

from smtpproxy.config import load_config
from smtpproxy.config.inline import Mode, WhenDown
from smtpproxy.gateway.nft import Options, text
from tests.peers.process import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "nftables"


class Example(NamedTuple):
    """A configuration of the folder, and what is said on the command line."""

    mode: Mode
    when_down: WhenDown

    def printed(self) -> str:
        settings = load_config(FOLDER / f"{self.mode}.toml")
        return text(settings, Options((self.mode,), self.when_down), "/etc/smtpproxy/smtpproxy.toml")


_MODES: tuple[Mode, ...] = ("tproxy", "redirect")
_WHEN_DOWN: tuple[WhenDown, ...] = ("bypass", "refuse", "hold")
EXAMPLES = {f"{mode}-{when_down}": Example(mode, when_down) for mode in _MODES for when_down in _WHEN_DOWN}


if __name__ == "__main__":
    for name, example in EXAMPLES.items():
        (FOLDER / f"{name}.nft").write_text(example.printed(), encoding="utf-8")
