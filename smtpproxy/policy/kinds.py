"""What a file is by its octets, as a media type; "" where they show nothing.

A table of first octets, and a few looks further in. It says what a file could be run or opened as, not that
it is sound.
"""

import re
from typing import Final

EXECUTABLE: Final = frozenset(
    {"application/x-dosexec", "application/x-executable", "application/x-mach-binary", "application/x-ms-shortcut",
     "application/x-msi", "text/x-shellscript", "application/java-vm"}
)  # fmt: skip
# Files that hold others whose names are not read here.
CLOSED: Final = frozenset(
    {"application/vnd.rar", "application/x-7z-compressed", "application/vnd.ms-cab-compressed", "application/x-ace",
     "application/x-iso9660-image", "application/x-arj", "application/x-lzh", "application/zstd", "application/x-vhd",
     "application/vnd.ms-tnef", "application/mac-binhex40", "application/x-compress", "application/x-apple-diskimage",
     "application/x-xar", "application/x-cpio", "application/x-rpm", "application/vnd.debian.binary-package",
     "application/x-lz4", "application/x-udf-image", "application/x-yenc"}
)  # fmt: skip
ZIP: Final = "application/zip"
TAR: Final = "application/x-tar"
GZIP: Final = "application/gzip"
BZIP2: Final = "application/x-bzip2"
XZ: Final = "application/x-xz"
PDF: Final = "application/pdf"
MAIL: Final = "message/rfc822"
OLE: Final = "application/x-ole-storage"
_MZ: Final = "application/x-dosexec"

# offset · octets · type; the first that fits
_MAGIC: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x7fELF", "application/x-executable"),
    *(
        (0, bytes.fromhex(magic), "application/x-mach-binary")
        for magic in ("feedface", "feedfacf", "cefaedfe", "cffaedfe")
    ),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"PK\x07\x08", ZIP),
    (0, bytes.fromhex("d0cf11e0a1b11ae1"), OLE),
    (0, b"{\\rt", "application/rtf"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"\x1f\x8b", GZIP),
    (0, b"\x1f\x9d", "application/x-compress"),
    (0, b"BZh", BZIP2),
    (0, b"\xfd7zXZ\x00", XZ),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"\x04\x22\x4d\x18", "application/x-lz4"),
    (0, b"MSCF", "application/vnd.ms-cab-compressed"),
    (0, bytes.fromhex("4c0000000114020000000000c0000000"), "application/x-ms-shortcut"),
    (0, b"ITSF", "application/vnd.ms-htmlhelp"),
    (0, b"\x60\xea", "application/x-arj"),
    (7, b"**ACE**", "application/x-ace"),
    (2, b"-lh", "application/x-lzh"),
    (0, b"\x78\x9f\x3e\x22", "application/vnd.ms-tnef"),
    (0, b"conectix", "application/x-vhd"),
    (0, b"vhdxfile", "application/x-vhd"),
    (0, b"xar!", "application/x-xar"),
    (0, b"070701", "application/x-cpio"),
    (0, b"\xed\xab\xee\xdb", "application/x-rpm"),
    (0, b"!<arch>\ndebian", "application/vnd.debian.binary-package"),
    (0, bytes.fromhex("e4525c7b8cd8a74daeb15378d02996d3"), "application/onenote"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftyp", "video/mp4"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"OggS", "audio/ogg"),
    (0, b"\0asm", "application/wasm"),
    (257, b"ustar", TAR),
    (32769, b"CD001", "application/x-iso9660-image"),
    (32769, b"BEA01", "application/x-udf-image"),
)
_MAIL_BEGINS: Final = (
    rb"(?:From [^\r\n]{1,200}\r?\n)?(?:(?:received|return-path|delivered-to|date|from|to|subject|message-id|"
    rb"mime-version|x-[a-z-]{1,40}|dkim-signature|content-type)"
    rb":[^\r\n]{0,998}\r?\n(?:[ \t][^\r\n]{0,998}\r?\n){0,20}){3}"
)
# octets, in any case, that a text begins with behind blanks and a byte order mark
_TEXTS: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (rb"#!", "text/x-shellscript"),
        (rb"<(?:!doctype html|html|head|body|script|iframe|meta|table|div)\b", "text/html"),
        (rb"(?:<\?xml[^>]{0,200}>\s{0,99}+)?(?:<!--[^>]{0,200}-->\s{0,99}+)?<svg\b", "image/svg+xml"),
        (rb"<\?xml", "text/xml"),
        (rb"@echo off", "application/x-bat"),
        (rb"\[InternetShortcut\]", "application/x-mswinurl"),
        (rb"BEGIN:VCALENDAR", "text/calendar"),
        (rb"BEGIN:VCARD", "text/vcard"),
        (rb"-----BEGIN PGP", "application/pgp"),
        (rb"\(This file must be converted with BinHex", "application/mac-binhex40"),
        (rb"=ybegin ", "application/x-yenc"),
        (_MAIL_BEGINS, MAIL),
    )
)  # fmt: skip
_BLANK: Final = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_BINARY: Final = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]").search
_OLE_NAMES: Final = (
    ("WordDocument", "application/msword"),
    ("Workbook", "application/vnd.ms-excel"),
    ("Book", "application/vnd.ms-excel"),
    ("PowerPoint Document", "application/vnd.ms-powerpoint"),
    ("__substg1.0_", "application/vnd.ms-outlook"),
    ("VisioDocument", "application/vnd.visio"),
)
_MSI: Final = bytes.fromhex("84100c0000000000c000000000000046")  # the class of an installer's root storage


def detect(data: bytes) -> str:
    """The media type these octets show; "" if none."""
    head = data[:4096]
    for offset, magic, kind in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return ole(data) if kind == OLE else kind
    if head[:2] == b"MZ" and (_BINARY(head) or len(head) > 64):
        return _MZ
    if head[:4] == b"\xca\xfe\xba\xbe":
        return "application/x-mach-binary" if data[4:7] == b"\0\0\0" and data[7] < 40 else "application/java-vm"
    if b"%PDF-" in head[:1024]:
        return PDF
    if head[:2] == b"0\x82" and b"\x2a\x86\x48\x86\xf7\x0d\x01\x07" in head[:64]:
        return "application/pkcs7-mime"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16: what a script host reads
        head = head[2:].replace(b"\0", b"")
    elif _BINARY(head):
        return ""
    begins = _BLANK.match(head)
    at = begins.end() if begins else 0
    for pattern, kind in _TEXTS:
        if pattern.match(head, at):
            return kind
    return "text/plain" if head else ""


def ole(data: bytes) -> str:
    """What kind of compound file this is, by the names of its streams."""
    if _MSI in data[: 1 << 20]:
        return "application/x-msi"
    for name, kind in _OLE_NAMES:
        if name.encode("utf-16-le") in data:
            return kind
    return OLE


def ole_encrypted(data: bytes) -> bool:
    """A compound file that is an envelope around an encrypted document."""
    return "EncryptedPackage".encode("utf-16-le") in data


def ole_macros(data: bytes) -> bool:
    """A compound file with macros."""
    return "_VBA_PROJECT".encode("utf-16-le") in data or "Macros".encode("utf-16-le") in data
