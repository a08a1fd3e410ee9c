"""The handler of the aiosmtpd peer, loaded by `python -m aiosmtpd -c aiosmtpd_store.Store DIRECTORY`.

It runs in aiosmtpd's own process and imports nothing of the project. What it stores reads like a piped mail.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any


class Store:
    def __init__(self, directory: str) -> None:
        self._directory = directory

    @classmethod
    def from_cli(cls, parser: argparse.ArgumentParser, *args: str) -> Store:
        if len(args) != 1:
            parser.error("one directory, please")
        return cls(args[0])

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        handle, path = tempfile.mkstemp(dir=os.path.join(self._directory, "tmp"))
        with open(handle, "wb") as file:
            file.write(f"{envelope.mail_from}\n{' '.join(envelope.rcpt_tos)}\n".encode())
            if session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None:
                file.write(b"X-Client-Proto: ESMTPS\r\n")  # it puts no Received of its own
            file.write(envelope.original_content)
        os.rename(path, os.path.join(self._directory, "new", os.path.basename(path)))
        return "250 2.0.0 stored"
