"""What comes again and again is told once a minute."""

from structlog.testing import capture_logs

from smtpproxy.net.troubles import AGAIN, KINDS, Troubles


def test_it_is_told_once_and_then_counted() -> None:
    with capture_logs() as lines:
        troubles = Troubles("TLS failed", listener="mx")
        for second in range(5):
            troubles.add("no such key", float(second), side="server")
            troubles.check(float(second))
        troubles.add("another", 5.0)
        troubles.check(AGAIN)
        troubles.check(AGAIN + 1)
    assert [(line["event"], line["listener"], line["why"], line.get("times")) for line in lines] == [
        ("TLS failed", "mx", "no such key", None),
        ("TLS failed", "mx", "another", None),
        ("TLS failed", "mx", "no such key", 4),
    ]
    assert lines[0]["side"] == "server"
    assert {line["log_level"] for line in lines} == {"warning"}


def test_what_is_over_is_forgotten_and_told_again_when_it_comes_back() -> None:
    with capture_logs() as lines:
        troubles = Troubles("TLS failed")
        troubles.add("x", 0.0)
        troubles.check(AGAIN)
        troubles.add("x", AGAIN + 1)
    assert len(lines) == 2


def test_a_peer_does_not_fill_the_log() -> None:
    with capture_logs() as lines:
        troubles = Troubles("TLS failed")
        for number in range(3 * KINDS):
            troubles.add(str(number), 0.0)
    assert len(lines) == KINDS
