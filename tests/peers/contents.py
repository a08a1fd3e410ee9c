"""Contents that a careless relay would change: dots, empty lines, long lines, octets of all kinds, SMTP inside."""

from __future__ import annotations

HEADER = (
    b"From: Sender <sender@src.example>\r\n"
    b"To: recipient@dst.example\r\n"
    b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n"
    b"Date: Mon, 02 Jan 2023 03:04:05 +0000\r\n"
    b"Message-ID: <matrix@src.example>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"X-Folded: one\r\n two\r\n\tthree\r\n"
    b"\r\n"
)
OCTETS = bytes(set(range(1, 256)) - set(b"\r\n"))
CONTENTS = {
    "plain": b"hello\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n...\r\n.x\r\n .\r\n. \r\n.\t\r\n\r\n.\r\n\r\n..\r\n.\r\n",
    "octets": b"gr\xc3\xbc\xc3\x9fe\r\nlatin \xe4\xf6\xfc\r\n" + OCTETS + b"\r\n",
    "long": b"".join(b"%0*d\r\n.%0*d\r\n" % (998, n, 997, n) for n in range(100)),
    "lines": b"\r\n\r\nFrom somebody\r\n>From somebody\r\nRSET\r\nQUIT\r\n \r\n\t\r\n\r\n\r\n",
}
