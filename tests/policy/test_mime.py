"""Attachments: what any common reader shows is found, by name and by what it is; and what costs too much is refused."""

import bz2
import email
import email.message
import email.policy
import gzip
import io
import lzma
import random
import tarfile
import time
import zipfile
from base64 import b64encode, encodebytes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.policy.mime import Attachment, Bounds, Content, MimeLimit, attachments

EXE = b"MZ\x90\0\x03\0\0\0" + b"\0" * 100
DOS = "application/x-dosexec"
ZIP = "application/zip"


def mail(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(lines).encode() + body


def zipped(**files: bytes) -> bytes:
    """`a__b` is a/b, `a_b` is a.b."""
    return packed({name.replace("__", "/").replace("_", "."): octets for name, octets in files.items()})


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, octets in files.items():
            file.writestr(name, octets)
    return out.getvalue()


def tarred(files: dict[str, bytes], format_: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as file:
        for name, octets in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(octets)
            file.addfile(info, io.BytesIO(octets))
    return out.getvalue()


def attached(octets: bytes, name: str = "x.bin", type_: str = "application/octet-stream") -> bytes:
    head = f'Content-Type: {type_}\r\nContent-Disposition: attachment; filename="{name}"\r\n'
    return head.encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + encodebytes(octets).replace(b"\n", b"\r\n")


def paths(octets: bytes) -> list[tuple[str, str]]:
    return [(one.path, one.detected) for one in attachments(octets)]


# ---------------------------------------------------------------------------------------------------------------- facts


def test_a_mail_with_an_attachment() -> None:
    message = email.message.EmailMessage(policy=email.policy.SMTP)
    message["Subject"] = "x"
    message.set_content("hello")
    message.add_alternative("<p>hello", subtype="html")
    message.add_attachment(EXE, maintype="application", subtype="pdf", filename="Rechnung März.pdf.EXE")
    octets = message.as_bytes()
    file = io.BytesIO(octets)
    content = Content(file, len(octets), "d1")
    assert (content.size, content.digest) == (len(octets), "d1")
    assert content.header.get("Subject") == ["x"]
    assert content.attachments == [
        Attachment("Rechnung März.pdf.EXE", "application/pdf", DOS, len(EXE), "Rechnung März.pdf.EXE")
    ]
    one = content.attachments[0]
    assert (one.extension, one.extensions, one.nested, one.depth) == ("exe", ("pdf", "exe"), False, 0)
    assert content.attachments is content.attachments, "looked into once"
    assert file.tell() == 0


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a", ""), ("a.", ""), ("a.EXE", "exe"), ("a.exe. . ", "exe"), ("a.pdf.exe", "exe"), ("cod\u202efdp.exe", "exe"),
     ("a.e\u200bxe", "exe"), (r"C:\x.y\a", ""), ("x.y/a.js", "js"), ("a.exe::$DATA", "exe"), (".profile", "profile"),
     ("a.pdf" + " " * 100 + ".scr", "scr"), ("a .exe", "exe"), ("a. exe", "exe")],
)  # fmt: skip
def test_extensions(name: str, extension: str) -> None:
    assert Attachment(name, "", "", 0, name).extension == extension


# disposition and type as written · names found
NAMES: dict[str, tuple[str, str, list[str]]] = {
    "plain": ('attachment; filename="a.exe"', "x/y", ["a.exe"]),
    "no quotes": ("attachment; filename=a.exe", "x/y", ["a.exe"]),
    "no quotes, blanks": ("attachment; filename=a b.exe", "x/y", ["a b.exe", "a"]),
    "a quote that does not end": ('attachment; filename="a.exe; x=y', "x/y", ["a.exe; x=y", "a.exe"]),
    "in the type": ("attachment", 'x/y; name="a.exe"', ["a.exe"]),
    "both, the same": ('attachment; filename="a.exe"', 'x/y; name="a.exe"', ["a.exe"]),
    "both": ('attachment; filename="a.pdf"', 'x/y; name="a.exe"', ["a.pdf", "a.exe"]),
    "twice": ('attachment; filename="a.pdf"; filename="a.exe"', "x/y", ["a.exe", "a.pdf"]),
    "RFC 2231": ("attachment; filename*=utf-8''%C3%A4.exe", "x/y", ["ä.exe"]),
    "RFC 2231, a charset nobody has": ("attachment; filename*=x-none''a%2Eexe", "x/y", ["a.exe"]),
    "RFC 2231, in pieces": ('attachment; filename*1*=%2Ee; filename*0="a"; filename*2="xe"', "x/y", ["a.exe"]),
    "RFC 2231, coded pieces": ("attachment; filename*0*=iso-8859-1'de'%E4; filename*1=.exe", "x/y", ["ä.exe"]),
    "RFC 2231 and the old form": ("attachment; filename=a.pdf; filename*=utf-8''a.exe", "x/y", ["a.exe", "a.pdf"]),
    "RFC 2047": ('attachment; filename="=?utf-8?b?w6QuZXhl?="', "x/y", ["ä.exe"]),
    "RFC 2047, no quotes": ("attachment; filename==?utf-8?q?=C3=A4.exe?=", "x/y", ["ä.exe"]),
    "raw UTF-8": ('attachment; filename="ä.exe"', "x/y", ["ä.exe"]),
    "percent, not as it should be": ('attachment; filename="a%2Eexe"', "x/y", ["a%2Eexe", "a.exe"]),
    "a comment": ("attachment; (x) filename(y)=a.exe", "x/y", ["a.exe"]),
    "no semicolon": ("attachment filename=a.exe", "x/y", ["a.exe"]),
    "blanks around =": ('attachment; filename = "a.exe"', "x/y", ["a.exe"]),
    "quoted pairs": (r'attachment; filename="a\.exe"', "x/y", [r"a\.exe", "a.exe"]),
    "a colon before the type": ("inline", "; name=a.exe", ["a.exe"]),
    "a control character": ("attachment; filename*=''a%00.exe", "x/y", ["a .exe"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(case: str) -> None:
    disposition, type_, names = NAMES[case]
    octets = mail(f"Content-Type: {type_}", f"Content-Disposition: {disposition}", "", "x")
    assert sorted(one.name for one in attachments(octets)) == sorted(names)


def part(*lines: str, body: str = "x") -> str:
    return "\r\n".join((*lines, "", body))


B64 = encodebytes(EXE).decode().replace("\n", "\r\n")
EXE_PART = part('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: base64", body=B64)
MULTI = "Content-Type: multipart/mixed; boundary=b"

# Mails that readers understand differently; in each somebody finds a.exe, and it is a program.
EVASIONS: dict[str, bytes] = {
    "as it should be": mail(MULTI, "", "--b", EXE_PART, "--b--", ""),
    "LF": mail(MULTI, "", "--b", EXE_PART, "--b--", "").replace(b"\r\n", b"\n"),
    "no end": mail(MULTI, "", "--b", EXE_PART),
    "behind the end": mail(MULTI, "", "--b--", EXE_PART),
    "behind the end, again": mail(MULTI, "", "--b", part(), "--b--", "x", "--b", EXE_PART),
    "a boundary with more behind it": mail(MULTI, "", "--b", part(), "--bx", EXE_PART),
    "blanks behind a boundary": mail(MULTI, "", "--b \t", EXE_PART, "--b--", ""),
    "two boundaries": mail(MULTI + "; boundary=c", "", "--b", part(), "--c", EXE_PART),
    "two boundaries, the other": mail(MULTI + "; boundary=c", "", "--b", EXE_PART, "--c", part()),
    "two types": mail("Content-Type: text/plain", MULTI, "", "--b", EXE_PART),
    "two types, the other": mail(MULTI, "Content-Type: text/plain", "", "--b", EXE_PART),
    "no boundary said": mail("Content-Type: multipart/mixed", "", "--b", EXE_PART, "--b--", ""),
    "another boundary said": mail("Content-Type: multipart/mixed; boundary=x", "", "--b", EXE_PART, "--b--", ""),
    "no semicolon": mail("Content-Type: multipart/mixed boundary=b", "", "--b", EXE_PART),
    "a quoted boundary": mail('Content-Type: multipart/mixed; boundary="b"', "", "--b", EXE_PART),
    "a boundary in an encoded word": mail("Content-Type: multipart/mixed; boundary==?us-ascii?q?b?=", "", "--b",
                                          EXE_PART),
    "uuencode with characters it has not": mail("", "begin 644 a.exe", "M35J0  ,    " + "x" * 30, '"aaaaaaaa', "end"),
    "many parameters before": mail("Content-Type: x/y; " + "a=b; " * 300 + "name=a.exe", "", "", body=EXE),
    "a boundary of RFC 2231": mail("Content-Type: multipart/mixed; boundary*=''b", "", "--b", EXE_PART),
    "a boundary of pieces": mail("Content-Type: multipart/mixed; boundary*0=b; boundary*1=b", "", "--bb", EXE_PART),
    "a comment in the type": mail("Content-Type: (x) multipart/mixed; boundary=b(y)", "", "--b", EXE_PART),
    "capitals": mail("CONTENT-TYPE: MULTIPART/MIXED; BOUNDARY=b", "", "--b", EXE_PART),
    "a folded type": mail("Content-Type:", " multipart/mixed;", "\tboundary=b", "", "--b", EXE_PART),
    "a blank before the colon": mail("Content-Type : multipart/mixed; boundary=b", "", "--b", EXE_PART),
    "a type that is none": mail("Content-Type: multipart; boundary=b", "", "--b", EXE_PART),
    "a text with a boundary": mail("Content-Type: text/plain; boundary=b", "", "--b", EXE_PART),
    "no empty line": mail(MULTI, "--b", EXE_PART),
    "a line that is none in the header": mail("junk", MULTI, "", "--b", EXE_PART),
    "a line of blanks in the header": mail(MULTI, " ", "--b", EXE_PART),
    "a multipart in base64": mail(MULTI, "Content-Transfer-Encoding: base64", "",
                                  body=b"\r\n" + b64encode(mail("--b", EXE_PART))),
    "within a multipart": mail(MULTI, "", "--b",
                               part("Content-Type: multipart/x; boundary=c", body="--c\r\n" + EXE_PART)),
    "the same boundary within": mail(MULTI, "", "--b", part(MULTI, body="--b\r\n" + EXE_PART)),
    "a boundary with an end of the other": mail(MULTI, "", "--b",
                                                part("Content-Type: multipart/x; boundary=bc",
                                                     body="--bc\r\n" + EXE_PART)),
    "base64, misspelt": mail('Content-Type: x/y; name="a.exe"', 'Content-Transfer-Encoding: "base64";', "", B64),
    "two encodings": mail('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: 7bit",
                          "Content-Transfer-Encoding: base64", "", B64),
    "base64 with what is none": mail('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: base64", "",
                                     "-!-".join(B64)),
    "base64 padded in the middle": mail('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: base64", "",
                                        b64encode(EXE[:1]).decode() + b64encode(EXE[1:]).decode()),
    "base64 without its padding": mail('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: base64", "",
                                       b64encode(EXE).decode().rstrip("=")),
    "quoted-printable": mail('Content-Type: x/y; name="a.exe"', "Content-Transfer-Encoding: Quoted-Printable", "",
                             "MZ=90=00=03=00=\r\n=00=00" + "=00" * 90),
    "binary": mail('Content-Type: x/y; name="a.exe"', "", "", body=EXE),
    "uuencode": mail("Subject: x", "", "hello", "begin 644 a.exe", "M35J0  ,    " + "    " * 12, "`", "end", ""),
    "uuencode, no end": mail("", "begin 644 a.exe", "M35J0  ,    " + "    " * 12 + "x"),
    "uuencode of base64": mail("", "", "begin-base64 644 a.exe", B64 + "====", ""),
    "the name in the type only": mail(MULTI, "", "--b", EXE_PART, "--b--", ""),
    "a body by its type": mail("Content-Type: text/plain; name=a.exe", "Content-Transfer-Encoding: base64", "", B64),
}  # fmt: skip


@pytest.mark.parametrize("case", EVASIONS)
def test_evasions(case: str) -> None:
    found = attachments(EVASIONS[case])
    assert [one for one in found if one.name == "a.exe" and one.detected == DOS], found
    assert all(one.extension == "exe" for one in found)


def test_a_program_without_a_name() -> None:
    """A body that is none is an attachment."""
    assert paths(mail("Content-Type: text/plain", "", "", body=EXE)) == [("text/plain", DOS)]
    assert paths(mail("", "hello")) == []
    assert paths(mail("Content-Type: text/html", "", "<html>")) == []
    assert paths(mail("Content-Type: text/plain", "Content-Disposition: attachment", "", "x")) == [
        ("text/plain", "text/plain")
    ]
    assert paths(mail("Content-Type: image/png", "", "x")) == [("image/png", "text/plain")]


def test_a_mail_within_a_mail() -> None:
    inner = attached(EXE, "a.exe").decode()
    octets = mail(MULTI, "", "--b", part('Content-Type: message/rfc822; name="in.eml"', body=inner), "--b--", "")
    found = attachments(octets)
    assert [(one.path, one.depth, one.nested) for one in found] == [("in.eml", 0, False), ("in.eml>a.exe", 1, True)]
    assert found[0].type == found[0].detected == "message/rfc822"
    assert paths(mail("Content-Type: multipart/digest; boundary=b", "", "--b", "", inner)) == [
        ("message/rfc822", "message/rfc822"),
        ("message/rfc822>a.exe", DOS),
    ]
    file = mail("From: a", "To: b", "Subject: c", inner)
    assert paths(attached(file, "in.eml")) == [("in.eml", "message/rfc822"), ("in.eml>a.exe", DOS)]
    assert paths(mail("Content-Type: message/partial; id=x", "", "x")) == [("message/partial", "text/plain")]
    assert attachments(mail("Content-Type: message/partial; id=x", "", "x"))[0].unreadable


# ------------------------------------------------------------------------------------------------------------- archives

ARCHIVES: dict[str, tuple[bytes, str]] = {
    "zip": (zipped(a_exe=EXE), "x.bin>a.exe"),
    "zip, stored": (zipped(a_exe=EXE).replace(b"PK\x05\x06", b"PK\x05\x07"), "x.bin>a.exe"),
    "zip, no list": (zipped(a_exe=EXE).partition(b"PK\x01\x02")[0], "x.bin>a.exe"),
    "zip, behind something": (b"\x89PNG\r\n\x1a\n" + zipped(a_exe=EXE), "x.bin>a.exe"),
    "zip, behind another": (zipped(a_txt=b"x") + zipped(a_exe=EXE), "x.bin>a.exe"),
    "zip, before another": (zipped(a_exe=EXE) + zipped(a_txt=b"x"), "x.bin>a.exe"),
    "zip, two names": (zipped(a_exe=EXE).replace(b"a.exe", b"a.txt", 1), "x.bin>a.exe"),
    "zip, two names, the other": (zipped(a_txt=EXE).replace(b"a.txt", b"a.exe", 1), "x.bin>a.exe"),
    "zip in zip": (zipped(b_zip=zipped(a_exe=EXE)), "x.bin>b.zip>a.exe"),
    "tar": (tarred({"a.exe": EXE}), "x.bin>a.exe"),
    "tar, a long name": (tarred({"d/" * 80 + "a.exe": EXE}), "x.bin>" + "d/" * 80 + "a.exe"),
    "tar, a long name by pax": (
        tarred({"d/" * 150 + "a.exe": EXE}, tarfile.PAX_FORMAT),
        "x.bin>" + "d/" * 150 + "a.exe",
    ),
    "tar, a long name by ustar": (
        tarred({"d/" * 60 + "a.exe": EXE}, tarfile.USTAR_FORMAT),
        "x.bin>" + "d/" * 60 + "a.exe",
    ),
    "tar.gz": (gzip.compress(tarred({"a.exe": EXE})), "x.bin>x.bin>a.exe"),
    "gz": (gzip.compress(EXE), "x.bin>x.bin"),
    "bz2": (bz2.compress(EXE), "x.bin>x.bin"),
    "xz": (lzma.compress(EXE), "x.bin>x.bin"),
    "two gz": (gzip.compress(EXE[:10]) + gzip.compress(EXE[10:]), "x.bin>x.bin"),
    "gz in gz": (gzip.compress(gzip.compress(EXE)), "x.bin>x.bin>x.bin"),
    "program in a document": (
        packed({"[Content_Types].xml": b"", "word/document.xml": b"", "a.exe": EXE}),
        "x.bin>a.exe",
    ),
    "program in a document, as a picture": (
        packed({"[Content_Types].xml": b"", "word/document.xml": b"", "word/a.png": EXE}),
        "x.bin>word/a.png",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(case: str) -> None:
    octets, path = ARCHIVES[case]
    assert (path, DOS) in paths(attached(octets))


def test_a_zip64() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, file.open("a.exe", "w", force_zip64=True) as member:
        member.write(EXE)
    assert paths(attached(out.getvalue()))[1:] == [("x.bin>a.exe", DOS)]


def test_the_name_of_what_was_packed() -> None:
    assert paths(attached(gzip.compress(tarred({"a.exe": EXE})), "a.tgz"))[1:] == [
        ("a.tgz>a.tar", "application/x-tar"),
        ("a.tgz>a.tar>a.exe", DOS),
    ]
    assert paths(attached(bz2.compress(EXE), "a.exe.bz2"))[1:] == [("a.exe.bz2>a.exe", DOS)]
    out = io.BytesIO()
    with gzip.GzipFile("b.exe", "wb", fileobj=out) as file:
        file.write(EXE)
    assert paths(attached(out.getvalue(), "a.gz"))[1:] == [("a.gz>b.exe", DOS)]


def test_an_encrypted_zip() -> None:
    octets = bytearray(zipped(a_exe=EXE))
    octets[6] |= 1
    octets[octets.index(b"PK\x01\x02") + 8] |= 1
    whole, inside = attachments(attached(bytes(octets), "a.zip"))
    assert (whole.encrypted, inside.encrypted, inside.path, inside.size) == (True, True, "a.zip>a.exe", len(EXE))


OFFICE = "application/vnd.openxmlformats-officedocument."
DOCUMENTS: dict[str, tuple[dict[str, bytes], str, bool]] = {
    "docx": ({"word/document.xml": b"x"}, OFFICE + "wordprocessingml.document", False),
    "xlsx": ({"xl/workbook.xml": b"x"}, OFFICE + "spreadsheetml.sheet", False),
    "pptx": ({"ppt/presentation.xml": b"x"}, OFFICE + "presentationml.presentation", False),
    "docm": ({"word/document.xml": b"x", "word/vbaProject.bin": b"x"},
             "application/vnd.ms-word.document.macroenabled.12", True),
}  # fmt: skip


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents(case: str) -> None:
    """What they are made of is no attachment."""
    files, detected, macros = DOCUMENTS[case]
    (one,) = attachments(attached(packed({"[Content_Types].xml": b"", **files})))
    assert (one.detected, one.macros) == (detected, macros)


def test_other_zips() -> None:
    assert paths(attached(packed({"META-INF/MANIFEST.MF": b"x", "a.class": b"\xca\xfe\xba\xbe\0\0\0\x3d"}))) == [
        ("x.bin", "application/java-archive")
    ]
    assert (
        paths(attached(packed({"mimetype": b"x", "content.xml": b"x"})))[0][1] == "application/vnd.oasis.opendocument"
    )
    assert paths(attached(packed({"AndroidManifest.xml": b"x"})))[0][1] == "application/vnd.android.package-archive"


OLE = bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 500
MAGICS = [
    (EXE, DOS), (b"\x7fELF\2", "application/x-executable"), (b"\xcf\xfa\xed\xfe", "application/x-mach-binary"),
    (b"\xca\xfe\xba\xbe\0\0\0\2", "application/x-mach-binary"), (b"\xca\xfe\xba\xbe\0\0\0\x34", "application/java-vm"),
    (b"Rar!\x1a\x07\1", "application/vnd.rar"), (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"\0" * 32769 + b"CD001", "application/x-iso9660-image"), (b"x\n%PDF-1.4", "application/pdf"),
    (b"{\\rtf1", "application/rtf"), (OLE, "application/x-ole-storage"), (OLE + "WordDocument".encode("utf-16-le"),
    "application/msword"), (OLE + bytes.fromhex("84100c0000000000c000000000000046"), "application/x-msi"),
    (b"\xef\xbb\xbf <HTML>", "text/html"), (b"\xff\xfe<\0h\0t\0m\0l\0>\0", "text/html"), (b"<?xml", "text/xml"),
    (b'<svg onload="x">', "image/svg+xml"), (b"#!/bin/sh", "text/x-shellscript"), (b"MZ is a text", "text/plain"),
    (b"\0\1\2", ""), (b"", ""), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff\xe0", "image/jpeg"),
    (b"GIF89a", "image/gif"), (b"MSCF", "application/vnd.ms-cab-compressed"), (b"\x78\x9f\x3e\x22",
    "application/vnd.ms-tnef"), (b"0\x82\1\1\6\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\3", "application/pkcs7-mime"),
]  # fmt: skip


@pytest.mark.parametrize(("octets", "detected"), MAGICS)
def test_what_a_file_is(octets: bytes, detected: str) -> None:
    assert paths(attached(octets)) == [("x.bin", detected)]


def test_what_else_is_known_of_a_file() -> None:
    def one(octets: bytes) -> Attachment:
        return attachments(attached(octets))[0]

    assert one(OLE + "EncryptedPackage".encode("utf-16-le")).encrypted
    assert one(OLE + "_VBA_PROJECT".encode("utf-16-le")).macros
    assert one(b"%PDF-1.4 /Encrypt 1 0 R").encrypted
    assert one(b"Rar!\x1a\x07\1").unreadable
    assert one(gzip.compress(EXE)[:12]).unreadable
    assert not one(EXE).unreadable


# --------------------------------------------------------------------------------------------------------------- bounds


def nested(levels: int) -> bytes:
    return b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level) for level in range(levels)
    )


def bomb(size: int) -> bytes:
    return gzip.compress(b"\0" * size)


def quine(levels: int) -> bytes:
    octets = EXE
    for _ in range(levels):
        octets = zipped(a_zip=octets)
    return octets


LIMITS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "multiparts in multiparts": ("depth", lambda: nested(10_000)),
    "mails in mails": ("depth", lambda: b"Content-Type: message/rfc822\r\n\r\n" * 10_000),
    "zips in zips": ("depth", lambda: attached(quine(30))),
    "parts": ("parts", lambda: mail(MULTI, "", body=b"\r\n--b\r\n\r\nx" * 5_000)),
    "delimiters that are none": ("parts", lambda: mail(MULTI, "", body=b"\r\n--bx" * 100_000)),
    "uuencoded files": ("parts", lambda: b"\r\n" + b"begin 644 a\nend\n" * 2_000),
    "a header section": ("header", lambda: b"A: b\r\n" * 100_000),
    "readings": ("readings", lambda: b"Content-Type: x/y\r\n" * 20 + b"\r\n"),
    "boundaries": (
        "readings",
        lambda: MULTI.encode() + b"".join(b"; boundary=b%d" % n for n in range(99)) + b"\r\n\r\n",
    ),
    "members": ("members", lambda: attached(packed({f"{n}": b"" for n in range(10_001)}))),
    "members of a tar": ("members", lambda: attached(tarred({f"{n}": b"" for n in range(10_001)}))),
    "a bomb": ("ratio", lambda: attached(bomb(100_000_000))),
    "a bomb in a zip": ("ratio", lambda: attached(zipped(a_gz=bomb(100_000_000)))),
    "a zip that says so": ("ratio", lambda: attached(zipped(a_txt=b"\0" * 100_000_000))),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits(case: str) -> None:
    reason, make = LIMITS[case]
    octets = make()
    began = time.process_time()
    with pytest.raises(MimeLimit, match=reason) as raised:
        attachments(octets)
    assert raised.value.reason == reason
    assert time.process_time() - began < 10


def test_limits_of_a_content() -> None:
    octets = b"A: b\r\n" * 100
    with pytest.raises(MimeLimit, match="content"):
        _ = Content(io.BytesIO(octets), len(octets), "", Bounds(content=100)).attachments
    with pytest.raises(MimeLimit, match="header"):
        _ = Content(io.BytesIO(octets), len(octets), "", Bounds(header=100)).header
    with pytest.raises(MimeLimit, match="unpacked"):
        attachments(attached(gzip.compress(random.Random(1).randbytes(5000))), Bounds(unpacked=9000))
    with pytest.raises(MimeLimit, match="work"):
        attachments(attached(EXE), Bounds(work=0, slack=100))


@pytest.mark.parametrize(
    "piece",
    [
        b"--b",
        b"\r\n--b",
        b"\r\n",
        b"=",
        b"AAA=",
        b"begin 644 a\n",
        b"PK\3\4",
        b"(",
        b'"',
        b"\\",
        b";",
        b"\t;",
        b"x=",
        b";a*0=",
        b"=?",
    ],
)
@pytest.mark.parametrize(
    "head", [MULTI, "Content-Transfer-Encoding: base64", "A: b", "Content-Type: x/y; name=", "X: "]
)
def test_a_mail_of_one_thing_takes_bounded_time(head: str, piece: bytes) -> None:
    """A mebibyte, as a body and as a field."""
    many = piece * (1_048_576 // len(piece))
    for octets in (head.encode() + b"\r\n\r\n" + many, head.encode() + many[:250_000] + b"\r\n\r\n", attached(many)):
        began = time.process_time()
        with suppress(MimeLimit):
            attachments(octets)
        assert time.process_time() - began < 8


# ---------------------------------------------------------------------------------------------------------- by the many

PIECES = [
    b"\r\n", b"\r\n\r\n", b"\n", b"--b", b"--b--", b"Content-Type: ", b"multipart/mixed; boundary=b", b"message/rfc822",
    b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n", b"; name=",
    b'"a.exe"',
    b"Content-Disposition: attachment; filename*0*=''%41", b"TVqQ", b"=", b"begin 644 a\n", b"end\n",
    b"PK\3\4", b" ", b"x",
    b"\0", zipped(a_exe=EXE), b64encode(zipped(a_exe=EXE)), gzip.compress(EXE), tarred({"a": b""}),
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=30).map(b"".join))
def test_any_octets(octets: bytes) -> None:
    """Nothing is raised but MimeLimit, and what is given can be handed on."""
    for one in attachments(octets):
        (one.name + one.path + one.type + one.detected + one.extension).encode()
        assert one.size >= 0


@given(st.sampled_from([octets for octets, _ in ARCHIVES.values()]), st.data())
def test_broken_archives(octets: bytes, data: st.DataObject) -> None:
    broken = bytearray(octets)
    for _ in range(data.draw(st.integers(1, 5))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MimeLimit):
        assert attachments(attached(bytes(broken[: data.draw(st.integers(0, len(broken)))])))


FILES = st.lists(
    st.tuples(
        st.from_regex(r"\A[a-zäöü€][a-zäöü€ ]{0,20}[a-z]\.[a-z]{1,4}\Z"),
        st.binary(max_size=300).filter(lambda octets: octets[:2] not in (b"PK", b"\x1f\x8b", b"BZ")),
        st.sampled_from(["base64", "quoted-printable", "8bit"]),
    ),
    max_size=5,
)


def _theirs(message: Any) -> list[tuple[str, int]]:
    named = [one for one in message.walk() if one.get_filename() is not None]
    return [(one.get_filename(), len(one.get_payload(decode=True))) for one in named]


@given(FILES, st.booleans(), st.booleans())
def test_well_formed_mails_are_read_as_python_reads_them(
    files: list[tuple[str, bytes, str]], html: bool, within: bool
) -> None:
    message = email.message.EmailMessage(policy=email.policy.SMTP)
    message["Subject"] = "ä"
    message.set_content("hello\n--\nme")
    if html:
        message.add_alternative("<p>hello", subtype="html")
    for name, octets, coding in files:
        if coding == "8bit":
            message.add_attachment("x" * len(octets) + "ä\n", filename=name, cte=coding, charset="utf-8")
        else:
            message.add_attachment(octets, "application", "x-own", filename=name, cte=coding)
    if within:
        outer = email.message.EmailMessage(policy=email.policy.SMTP)
        outer.set_content("see")
        outer.add_attachment(message)
        message = outer
    octets = message.as_bytes()
    oracle = email.message_from_bytes(octets, policy=email.policy.SMTP)
    ours = [(one.name, one.size) for one in attachments(octets) if one.type != "message/rfc822"]
    assert sorted(ours) == sorted(_theirs(oracle))


@given(st.dictionaries(st.from_regex(r"\A[a-zä]{1,8}\.[a-z]{1,3}\Z"), st.binary(max_size=200), max_size=6))
def test_archives_are_read_as_python_reads_them(files: dict[str, bytes]) -> None:
    wanted = sorted((f"x.bin>{name}", len(octets)) for name, octets in files.items())
    for octets in (packed(files), tarred(files)):
        found = [(one.path, one.size) for one in attachments(attached(octets)) if one.depth == 1]
        if files:
            assert sorted(found) == wanted
