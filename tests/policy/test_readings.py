"""What readers may differ about."""

import io

import pytest

from smtpproxy.policy.readings import ambiguous, astray


@pytest.mark.parametrize(
    ("octets", "is_so"),
    [(b"", False), (b"a\r\nb\r\n", False), (b"a\nb", True), (b"a\rb", True), (b"a\0b", True), (b"\r\r\n", True)],
)
def test_an_octet_stands_alone(octets: bytes, is_so: bool) -> None:
    assert astray(octets) is is_so


@pytest.mark.parametrize("size", [0, 262_143, 262_144, 262_145])
@pytest.mark.parametrize(
    ("end", "is_so"), [(b"\r\n", False), (b"\n", True), (b"\r", True), (b"\r\n\r", True), (b"\r\nx\r\n", False)]
)
def test_in_a_body_of_whatever_length(size: int, end: bytes, is_so: bool) -> None:
    file = io.BytesIO(b"A: b\r\n\r\n" + b"x" * size + end)
    assert ambiguous(file, 8, binary=False) is is_so
    assert file.tell() == 0
    assert not ambiguous(file, 8, binary=True)


def test_in_a_header_section_it_is_one_whatever_the_body_may_be() -> None:
    assert ambiguous(io.BytesIO(b"A: b\n\nC: d\r\n\r\n"), 14, binary=True)
