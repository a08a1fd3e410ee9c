"""The named leniencies: what each undoes, and that it undoes nothing else."""

import pytest

from smtpproxy.smtp import anomalies, leniencies
from smtpproxy.smtp.leniencies import canonical
from smtpproxy.smtp.registry.rows import Argument

# kind, as it came, as it is sent on, what was undone
CASES: list[tuple[Argument, bytes, bytes, tuple[str, ...]]] = [
    # nothing to undo
    (Argument.MAIL, b"from:<a@b> SIZE=1", b"from:<a@b> SIZE=1", ()),
    (Argument.TEXT, b"a  b", b"a  b", ()),  # blanks inside a text are its own
    (Argument.CHUNK, b"0", b"0", ()),
    # blank-after-colon
    (Argument.MAIL, b"FROM: <a@b>", b"FROM:<a@b>", ("blank-after-colon",)),
    (Argument.RCPT, b"to:\t  <a@b>", b"TO:<a@b>", ("blank-after-colon",)),
    # bare-path
    (Argument.MAIL, b"FROM:a@b", b"FROM:<a@b>", ("bare-path",)),
    (Argument.RCPT, b"TO: a@b X=1", b"TO:<a@b> X=1", ("blank-after-colon", "bare-path")),
    (Argument.RCPT, b"TO:a@[192.0.2.1]", b"TO:<a@[192.0.2.1]>", ("bare-path",)),
    (Argument.RCPT, b"TO:postmaster", b"TO:postmaster", ()),  # not a mailbox
    (Argument.RCPT, b"TO:@r:a@b", b"TO:@r:a@b", ()),  # not a plain one
    (Argument.RCPT, b'TO:"a"@b', b'TO:"a"@b', ()),
    (Argument.RCPT, b"TO:a@b>", b"TO:a@b>", ()),  # half a bracket
    (Argument.RCPT, b"TO:a@b,c@d", b"TO:a@b,c@d", ()),  # two
    # odd-separator
    (Argument.MAIL, b" FROM:<a@b>", b"FROM:<a@b>", ("odd-separator",)),
    (Argument.MAIL, b"FROM:<a@b>  SIZE=1\tX", b"FROM:<a@b> SIZE=1 X", ("odd-separator",)),
    (Argument.MAIL, b'FROM:<"a  b"@c>', b'FROM:<"a  b"@c>', ()),  # blanks inside quotes are the local-part's
    (Argument.MAIL, b'FROM:<"a  b"@c>  X', b'FROM:<"a  b"@c> X', ("odd-separator",)),
    (Argument.TEXT, b"\ta\tb", b"a b", ("odd-separator",)),
    (Argument.AUTH, b"PLAIN  YQ==", b"PLAIN YQ==", ("odd-separator",)),
    # trailing-blank
    (Argument.NONE, b" \t", b"", ("trailing-blank",)),
    (Argument.MAIL, b"FROM:<a@b>\t", b"FROM:<a@b>", ("trailing-blank",)),
    (Argument.HELLO, b"a.example ", b"a.example", ("trailing-blank",)),
    # leading-zeros
    (Argument.CHUNK, b"000", b"0", ("leading-zeros",)),
    (Argument.CHUNK, b"005 LAST", b"5 LAST", ("leading-zeros",)),
    (Argument.COUNTED, b"01 02", b"1 2", ("leading-zeros",)),
    (Argument.CHUNK, b"0" * 20 + b"5", b"0" * 20 + b"5", ()),  # more than 20 digits
    (Argument.CHUNK, b"0x5", b"0x5", ()),
    (Argument.CHUNK, b"0_5", b"0_5", ()),
    (Argument.CHUNK, "0５".encode(), "0５".encode(), ()),
    # odd-case
    (Argument.CHUNK, b"5 last", b"5 LAST", ("odd-case",)),
    (Argument.URI, b"imap:x Last", b"imap:x LAST", ("odd-case",)),
    # several
    (
        Argument.CHUNK,
        b" 05 \tLast  ",
        b"5 LAST",
        ("trailing-blank", "odd-separator", "odd-case", "leading-zeros"),
    ),
]


@pytest.mark.parametrize(("kind", "came", "sent", "names"), CASES)
def test_canonical(kind: Argument, came: bytes, sent: bytes, names: tuple[str, ...]) -> None:
    assert canonical(kind, came) == (sent, names)


@pytest.mark.parametrize(("kind", "came", "sent", "names"), CASES)
def test_what_is_canonical_stays_so(kind: Argument, came: bytes, sent: bytes, names: tuple[str, ...]) -> None:
    assert canonical(kind, sent) == (sent, ())


def test_every_name_is_explained() -> None:
    assert set(anomalies.ANOMALIES) >= leniencies.NAMES


def test_every_name_is_in_the_table() -> None:
    """But those that arguments.py gives, because it alone knows the strict grammar beside the loose one."""
    given = {name for *_, names in CASES for name in names}
    assert leniencies.NAMES - given == {"odd-hello", "odd-local-part", "odd-domain"}
