"""What is done to the record of a listener's sessions before it is written anywhere, as it is configured."""

from collections.abc import Callable
from pathlib import Path

from smtpproxy.audit.hiding import Addresses
from smtpproxy.audit.lines import Private
from smtpproxy.audit.privacy import Pseudonyms, load
from smtpproxy.audit.sealing import sealer
from smtpproxy.config import AuditConfig


class Discretion:
    """What all listeners share: keys.

    Raises:
        KeyFileError: one can't be had.
    """

    def __init__(self, config: AuditConfig) -> None:
        self._pseudonyms = Pseudonyms(load(Path(config.pseudonym_key))) if config.pseudonym_key else None
        self._seal = sealer(Path(config.auditor)) if config.auditor else None

    def of(self, addresses: str) -> Callable[[], Private | None]:
        """What gives each session of a listener what it needs, by the listener's `addresses`."""
        if addresses == "clear":
            private = None if self._seal is None else Private(seal=self._seal)
            return lambda: private
        mode = Addresses(self._pseudonyms if addresses == "pseudonym" else None)
        seal = self._seal
        return lambda: Private(mode.session(), seal)
