"""Who logs in: the user name, and never the password."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.smtp.identity import identity
from smtpproxy.smtp.values import Secret

MECHANISMS = [
    b"PLAIN",
    b"LOGIN",
    b"CRAM-MD5",
    b"DIGEST-MD5",
    b"XOAUTH2",
    b"OAUTHBEARER",
    b"SCRAM-SHA-1",
    b"SCRAM-SHA-256-PLUS",
]
DIGEST = b"0123456789abcdef0123456789abcdef"

# mechanism · what the client says first, before base64 · the name
NAMES: dict[str, tuple[bytes, bytes, str]] = {
    "PLAIN (RFC 4616 §4)": (b"PLAIN", b"\0tim\0tanstaaftanstaaf", "tim"),
    "PLAIN: on behalf of another; who logs in is the second (RFC 4616 §4)": (
        b"PLAIN",
        b"Ursel\0Kurt\0xipj3plmq",
        "Kurt",
    ),
    "PLAIN in small letters": (b"plain", b"\0tim\0x", "tim"),
    "PLAIN: an address": (b"PLAIN", b"\0tim@x.example\0x", "tim@x.example"),
    "PLAIN: UTF-8": (b"PLAIN", "\0jürgen\0x".encode(), "jürgen"),
    "PLAIN: no UTF-8 is written as it is, so that two names are not one": (b"PLAIN", b"\0j\xfcrgen\0x", r"j\xfcrgen"),
    "PLAIN: control characters break no line": (b"PLAIN", b"\0a\r\nb\x7f\xc2\x85\0x", r"a\x0d\x0ab\x7f\x85"),
    "PLAIN: one NUL; is the second the password?": (b"PLAIN", b"tim\0secret", ""),
    "PLAIN: an empty password; is the second the password?": (b"PLAIN", b"tim\0secret\0", ""),
    "PLAIN: three NULs": (b"PLAIN", b"tim\0secret\0\0x", ""),
    "PLAIN: no name": (b"PLAIN", b"tim\0\0secret", ""),
    "LOGIN": (b"LOGIN", b"tim", "tim"),
    "LOGIN: nothing": (b"LOGIN", b"", ""),
    "CRAM-MD5 (RFC 2195 §2)": (b"CRAM-MD5", b"tim b913a602c7eda7a495b4e6e7334d3890", "tim"),
    "CRAM-MD5: a blank in the name": (b"CRAM-MD5", b"tim tom " + DIGEST, "tim tom"),
    "CRAM-MD5: no digest": (b"CRAM-MD5", b"tim secret", ""),
    "DIGEST-MD5 (RFC 2831 §4)": (
        b"DIGEST-MD5",
        b'charset=utf-8,username="chris",realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",nc=00000001,'
        b'cnonce="OA6MHXh6VqTrRk",digest-uri="imap/elwood.innosoft.com",response=' + DIGEST + b",qop=auth",
        "chris",
    ),
    "DIGEST-MD5: quoted pairs, and a realm that looks like a name": (
        b"DIGEST-MD5",
        rb'realm="x,username=\"no\",", username="a\"b\\c"',
        r'a"b\c',
    ),
    "DIGEST-MD5: no name": (b"DIGEST-MD5", b'realm="x",response=' + DIGEST, ""),
    "XOAUTH2": (b"XOAUTH2", b"user=tim@x.example\1auth=Bearer ya29.secret\1\1", "tim@x.example"),
    "XOAUTH2: the token first": (b"XOAUTH2", b"auth=Bearer ya29.secret\1user=tim\1\1", ""),
    "OAUTHBEARER (RFC 7628 §3.1)": (
        b"OAUTHBEARER",
        b"n,a=user@example.com,\1host=server.example.com\1port=143\1auth=Bearer secret\1\1",
        "user@example.com",
    ),
    "OAUTHBEARER: a comma in the name": (b"OAUTHBEARER", b"n,a=a=2Cb=3Dc,\1auth=Bearer secret\1\1", "a,b=c"),
    "OAUTHBEARER: no name": (b"OAUTHBEARER", b"n,,\1auth=Bearer secret\1\1", ""),
    "SCRAM (RFC 5802 §5)": (b"SCRAM-SHA-1", b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL", "user"),
    "SCRAM: channel binding, on behalf of another": (b"SCRAM-SHA-256-PLUS", b"p=tls-exporter,a=boss,n=u=3D,r=x", "u="),
    "SCRAM: an extension before the name": (b"SCRAM-SHA-1", b"y,,m=x,n=u,r=x", "u"),
    "SCRAM: no name": (b"SCRAM-SHA-1", b"n,,n=,r=x", ""),
    "a mechanism nothing is known of": (b"GSSAPI", b"tim", ""),
    "SCRAM is no mechanism": (b"SCRAM", b"n,,n=user,r=x", ""),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(case: str) -> None:
    mechanism, said, name = NAMES[case]
    assert identity(mechanism, [Secret(b64encode(said))]) == name
    assert identity(mechanism, [b64encode(said), b64encode(b"another line")]) == name


@pytest.mark.parametrize("responses", [[], [b"="], [b"*"], [b"not base64!"], [b"abc"], [b"=", b64encode(b"secret")]])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_nothing_is_known(mechanism: bytes, responses: list[bytes]) -> None:
    """What LOGIN says after an empty name is the password."""
    assert identity(mechanism, responses) == ""


def test_the_second_line_of_login_is_never_told() -> None:
    assert identity(b"LOGIN", [Secret(b64encode(b"tim")), Secret(b64encode(b"secret"))]) == "tim"


def test_a_name_is_bounded() -> None:
    assert len(identity(b"LOGIN", [b64encode(b"a" * 9000)])) == 512


@given(st.sampled_from(MECHANISMS), st.lists(st.binary(max_size=60)))
def test_any_octets(mechanism: bytes, responses: list[bytes]) -> None:
    """What is no base64, and what is."""
    for said in (responses, [b64encode(response) for response in responses]):
        assert not {"\r", "\n", "\0"} & set(identity(mechanism, said))


PIECES = [b"\1", b",", b"=", b" ", b'"', b"n,", b"n=", b"a=", b"r=", b"user=", b"auth=Bearer ", b"username=", b"tim"]
SECRET = b"c0ffee0ddba11ad0c0ffee0ddba11ad0"


@given(st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join))
def test_no_secret_is_told(head: bytes) -> None:
    """Whatever a broken client says before it: where the password, the token or the digest stands is no name."""
    for mechanism, said in (
        (b"PLAIN", head + b"\0" + SECRET),
        (b"PLAIN", head + b"\0" + SECRET + b"\0"),
        (b"PLAIN", head + b"\0tim\0" + SECRET),
        (b"XOAUTH2", head + b"\1auth=Bearer " + SECRET + b"\1\1"),
        (b"OAUTHBEARER", head + b"\1auth=Bearer " + SECRET + b"\1\1"),
        (b"CRAM-MD5", head + b" " + SECRET),
        (b"DIGEST-MD5", head.replace(b"username", b"") + b",response=" + SECRET),
        (b"SCRAM-SHA-256", b"c=biws," + head + b",r=x,p=" + SECRET),
    ):
        assert SECRET.decode() not in identity(mechanism, [b64encode(said)])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("piece", [b"n,", b'a="', rb"\"", b"a=2C", b" 0", b"\0", b'a="",', b"=2"])
def test_a_long_line_takes_no_time(mechanism: bytes, piece: bytes) -> None:
    """More than a line of AUTH can hold; a pattern that goes back would take minutes."""
    for head in (b"", b"n,a=", b"n,,n=", b'username="', b"user="):
        identity(mechanism, [b64encode(head + piece * 30_000)])
