"""What is said on a command line, as spans of values."""

import pytest

from smtpproxy.inquiry.filters import OPTIONS, Filter, Question, Span, after, moment, question
from smtpproxy.store.schema import client_key, key_of

NOW = 1_795_514_400.0  # Tuesday, 24 November 2026, 10:00 UTC
DAY = 86_400
MIDNIGHT = NOW - 10 * 3600


def fits(option: str, word: str, value: str | int | None, field: str = "") -> bool:
    """Whether one of the spans of an option has a value of a field."""
    spans = OPTIONS[option].read(word)
    return any(span.fits(value) for span in spans if span.field == (field or spans[0].field))


def wrong(option: str, word: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        question({option: [word]}, now=NOW)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        ("ann@x.example", ["ann@x.example", "ann@X.EXAMPLE"], ["Ann@x.example", "ann@x.example.org", "a@x.example"]),
        ("<ann@x.example>", ["ann@x.example"], ["<ann@x.example>"]),
        ("*@x.example", ["ann@x.example", "@x.example"], ["ann@y.x.example", "ann@xx.example", "x.example"]),
        ("*@.x.example", ["a@x.example", "a@y.x.example", "a@z.y.x.example"], ["a@yx.example", "a@example"]),
        ("*@*.x.example", ["a@y.x.example"], ["a@x.example"]),
        ("ann@.x.example", ["ann@x.example", "ann@y.x.example"], ["joann@x.example", "ann@yx.example"]),
        ("ann@*", ["ann@x.example", "ann@y"], ["joann@x.example", "ann", "x@ann"]),
        ("a*n@x.example", ["an@x.example", "aXn@x.example"], ["a@x.example", "ann@y.example", "anna@x.example"]),
        ("*n*@x.example", ["n@x.example", "ann1@x.example"], ["a@x.example"]),
        ("<>", [""], ["a@x.example", "postmaster"]),
        ("", [""], ["a@x.example"]),
        ("postmaster", ["postmaster"], ["postmaster@x.example", ""]),
        ("*", ["", "a@x.example", "postmaster"], []),
        ("a@[192.0.2.1]", ["a@[192.0.2.1]"], ["a@192.0.2.1"]),
        ("%_@x.example", ["%_@x.example"], ["ab@x.example"]),  # no wildcards of SQL
    ],
)
def test_addresses(word: str, inside: list[str], outside: list[str]) -> None:
    assert [one for one in inside if not fits("sender", word, key_of(one))] == []
    assert [one for one in outside if fits("sender", word, key_of(one))] == []
    assert not fits("sender", word, None)


def test_an_address_is_looked_for_on_both_sides_and_a_domain_too() -> None:
    for option, word in (("address", "a@x.example"), ("domain", "x.example")):
        spans = OPTIONS[option].read(word)
        assert {span.field for span in spans} == {"sender", "recipient"}
        for field in ("sender", "recipient"):
            assert fits(option, word, key_of("a@x.example"), field)
    assert {span.field for span in OPTIONS["recipient"].read("a@x.example")} == {"recipient"}


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        ("x.example", ["a@x.example"], ["a@y.x.example", "a@example", "x.example"]),
        ("X.Example", ["a@x.example"], []),
        (".x.example", ["a@x.example", "a@y.x.example"], ["a@yx.example"]),
        ("*.x.example", ["a@y.x.example"], ["a@x.example"]),
        ("*", ["a@x.example"], ["postmaster", ""]),
    ],
)
def test_domains(word: str, inside: list[str], outside: list[str]) -> None:
    assert [one for one in inside if not fits("domain", word, key_of(one))] == []
    assert [one for one in outside if fits("domain", word, key_of(one))] == []


def test_what_is_no_address_says_what_is_perhaps_meant() -> None:
    assert wrong("sender", "x.example") == "--sender: 'x.example' is no address: say *@x.example, or --domain x.example"
    assert "is no domain; --address" in wrong("domain", "a@x.example")
    for word in ("a@x*.example", "a@", "a@.", "a@*.", "a@*x", "a@x.*", "a@*.*.example"):
        assert "stands for all of it, or for its first labels" in wrong("sender", word), word
    assert "more than two *" in wrong("sender", "*a*b*@x.example")
    assert "more than two *" in wrong("hello", "a*b*c*d")


# ------------------------------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        ("192.0.2.7", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.70", "::c000:207"]),
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
        ("10.128.0.0/9", ["10.128.0.0", "10.255.255.255"], ["10.127.255.255", "11.0.0.0"]),
        ("192.0.2.9/24", ["192.0.2.1"], ["192.0.3.1"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::1", "2001:db8::"]),
        ("2001:db8::/32", ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "32.1.13.184"]),
        ("[2001:DB8:0::7]", ["2001:db8::7"], ["2001:db8::70"]),
        ("::ffff:10.0.0.0/104", ["10.9.9.9"], ["11.0.0.0"]),
        ("::/0", ["::1"], ["10.9.9.9"]),
    ],
)
def test_clients(word: str, inside: list[str], outside: list[str]) -> None:
    assert [one for one in inside if not fits("client", word, client_key(one))] == []
    assert [one for one in outside if fits("client", word, client_key(one))] == []


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        ("mx.example", ["mx.example:25", "mx.example:587", "mx.example"], ["amx.example:25", "mx.example.org:25"]),
        ("mx.example:25", ["mx.example:25"], ["mx.example:257"]),
        ("192.0.2.1", ["192.0.2.1:25"], ["192.0.2.11:25"]),
        ("2001:db8::1", ["[2001:db8::1]:25"], ["[2001:db8::11]:25"]),
        ("[2001:db8::1]", ["[2001:db8::1]:25"], []),
        ("[2001:db8::1]:25", ["[2001:db8::1]:25"], ["[2001:db8::1]:26"]),
        ("mx*:25", ["mx1.example:25"], ["mx1.example:26"]),
    ],
)
def test_servers(word: str, inside: list[str], outside: list[str]) -> None:
    assert [one for one in inside if not fits("server", word, one)] == []
    assert [one for one in outside if fits("server", word, one)] == []


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        (">1M", [2**20 + 1, 2**60], [2**20, 0]),
        (">=1M", [2**20], [2**20 - 1]),
        ("<10k", [1, 10_239], [0, 10_240]),
        ("<=10k", [10_240], [10_241]),
        ("10k..2M", [10_240, 2**21], [10_239, 2**21 + 1]),
        ("..10", [1, 10], [0, 11]),
        ("10..", [10, 10**12], [9]),
        ("1000", [1000], [999, 1001]),
        ("10 MB", [10**7], [10 * 2**20]),
        (">99999999999G", [], [10**18]),
    ],
)
def test_sizes(word: str, inside: list[int], outside: list[int]) -> None:
    assert [one for one in inside if not fits("size", word, one)] == []
    assert [one for one in outside if fits("size", word, one)] == []


@pytest.mark.parametrize(
    ("word", "field", "inside", "outside"),
    [
        ("450", "reply", ["450"], ["451", "550"]),
        ("4xx", "reply", ["400", "450", "499"], ["500", "399"]),
        ("45X", "reply", ["450", "459"], ["460", "440"]),
        ("250", "code", [250], [251, 0]),
        ("2xx", "code", [200, 299], [300, 199]),
        ("35x", "code", [350, 359], [360]),
    ],
)
def test_replies(word: str, field: str, inside: list[str | int], outside: list[str | int]) -> None:
    assert [one for one in inside if not fits("reply", word, one, field)] == []
    assert [one for one in outside if fits("reply", word, one, field)] == []


@pytest.mark.parametrize(
    ("word", "version"),
    [
        ("1.3", "TLSv1.3"),
        ("TLSv1.2", "TLSv1.2"),
        ("tls1.1", "TLSv1.1"),
        ("1.0", "TLSv1"),
        ("TLSv1", "TLSv1"),
        ("none", None),
    ],
)
def test_versions_of_tls(word: str, version: str | None) -> None:
    assert fits("tls", word, version)
    assert not any(
        fits("tls", word, other) for other in ("TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1", None) if other != version
    )
    assert fits("tls", "any", "TLSv1.2")
    assert not fits("tls", "any", None)


def test_a_message_id_may_lack_its_brackets() -> None:
    for word in ("<one@x>", "one@x", "one@*", "*@x"):
        assert fits("message-id", word, "<one@x>") or word == "*@x", word
    assert fits("message-id", "*@x", "<one@x>")
    assert not fits("message-id", "one@x", "<two-one@x>")


def test_a_rule_is_one_that_acted_or_would_have() -> None:
    assert [span.field for span in OPTIONS["rule"].read("no-*")] == ["rule", "observed"]


@pytest.mark.parametrize(
    ("option", "word", "said"),
    [
        ("client", "192.0.2.300", "is no address and no network"),
        ("client", "mx.example", "is no address and no network"),
        ("verdict", "anser", "there is no verdict 'anser'; did you mean answer?"),
        ("outcome", "acepted", "there is no outcome 'acepted'; did you mean accepted?"),
        ("outcome", "zzz", "there is no outcome 'zzz' (accepted, refused, "),
        ("tls", "1.4", "is no version of TLS"),
        ("size", "much", "is no size"),
        ("size", "2M..1M", "the first is larger than the second"),
        ("size", ">", "is no size"),
        ("reply", "600", "is no reply code"),
        ("reply", "4x0", "is no reply code"),
        ("hello", "\udcff", "is no UTF-8"),
    ],
)
def test_what_makes_no_sense_is_said(option: str, word: str, said: str) -> None:
    assert wrong(option, word).startswith(f"--{option}: ")
    assert said in wrong(option, word)


def test_names_are_in_any_case_where_they_are_a_closed_set() -> None:
    assert fits("outcome", "rset", "RSET")
    assert fits("outcome", "Another mail", "another MAIL")
    assert fits("verdict", "PASS", "pass")


@pytest.mark.parametrize(
    ("prefix", "behind"),
    [("a", "b"), ("az", "a{"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("", None), ("\ud7ff", "\ue000")],
)
def test_what_is_behind_all_that_begin_so(prefix: str, behind: str | None) -> None:
    assert after(prefix) == behind


# ---------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("word", "begin", "end"),
    [
        ("2h", NOW - 7200, NOW - 7200),
        ("90m ago", NOW - 5400, NOW - 5400),
        ("7d", NOW - 7 * DAY, NOW - 7 * DAY),
        ("now", NOW, NOW),
        ("today", MIDNIGHT, MIDNIGHT + DAY),
        ("Yesterday", MIDNIGHT - DAY, MIDNIGHT),
        ("2026-11-24", MIDNIGHT, MIDNIGHT + DAY),
        ("2026-11-24T10:00", NOW, NOW),
        ("2026-11-24 10:00:00", NOW, NOW),
        ("2026-11-24T10:00:00Z", NOW, NOW),
        ("2026-11-24t10:00:00.5z", NOW + 0.5, NOW + 0.5),
        ("2026-11-24T11:00:00+01:00", NOW, NOW),
        ("2026-11-24T05:30:00-04:30", NOW, NOW),
    ],
)
def test_moments(word: str, begin: float, end: float) -> None:
    assert moment(word, NOW) == begin
    assert moment(word, NOW, end=True) == end


@pytest.mark.parametrize(
    "word", ["", "2 fortnights", "tomorrow", "2026-13-01", "2026-W48", "20261124", "-2h", "9" * 30 + "d"]
)
def test_what_is_no_moment(word: str) -> None:
    with pytest.raises(ValueError, match="is no moment"):
        moment(word, NOW)


def test_there_is_time_between_since_and_until() -> None:
    whole = question({}, since="yesterday", until="yesterday", now=NOW)
    assert whole == Question((), MIDNIGHT - DAY, MIDNIGHT)
    assert (whole.holds(MIDNIGHT - DAY, {}), whole.holds(MIDNIGHT, {})) == (True, False)
    with pytest.raises(ValueError, match="no time between them"):
        question({}, since="1h", until="2h", now=NOW)
    with pytest.raises(ValueError, match=r"--since: 'x' is no moment"):
        question({}, since="x", now=NOW)
    with pytest.raises(ValueError, match=r"--until: 'x' is no moment"):
        question({}, until="x", now=NOW)


# ------------------------------------------------------------------------------------------------------------ together


def test_options_are_joined_by_and_their_values_by_or() -> None:
    both = question({"verdict": ["answer", "discard"], "tag": ["bulk"]}, now=NOW)
    assert both.holds(NOW, {"verdict": ("answer",), "tag": ("odd", "bulk")})
    assert both.holds(NOW, {"verdict": ("discard",), "tag": ("bulk",)})
    assert not both.holds(NOW, {"verdict": ("pass",), "tag": ("bulk",)})
    assert not both.holds(NOW, {"verdict": ("answer",), "tag": ()})
    assert not both.holds(NOW, {})


def test_an_option_without_values_is_none() -> None:
    assert question({"tag": [], "rule": ()}, now=NOW) == Question()


def test_the_same_value_twice_is_once() -> None:
    span = Span("tag", "bulk", same=True)
    assert question({"tag": ["bulk", "bulk"]}, now=NOW).filters == (Filter("tag", (span,)),)
