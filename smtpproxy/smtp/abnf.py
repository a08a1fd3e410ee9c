r"""The productions SMTP's grammars are made of, as pieces of regular expressions over octets.

Each piece stands under the name of its production and the section that defines it. Rules of this file:

- A piece has no capturing group, no flag and no anchor: whoever puts pieces together says `fullmatch`, never `$`
  (which also matches before a last LF).
- A piece can be followed by anything: alternatives are wrapped in `(?:…)`.
- A run of one class is possessive (`++`, `*+`) wherever the next octet decides, so that hostile input can't make the
  matcher try the same octets twice. A group is not: Python 3.11.2 takes `a.` for `a(?:\.(?:b++|c)+)*+`.
- Octets above 127 stand only where RFC 6531 §3.3 puts them, and then only as well-formed UTF-8.
"""

# ALPHA, DIGIT, HEXDIG                                                                            RFC 5234 §B.1
ALPHA = rb"[A-Za-z]"
DIGIT = rb"[0-9]"
HEXDIG = rb"[0-9A-Fa-f]"

# WSP: SP or HT                                                                                   RFC 5234 §B.1
BLANK = rb"[ \t]"

# UTF8-2, UTF8-3, UTF8-4: no overlong forms, no surrogates, nothing above U+10FFFF                    RFC 3629 §4
UTF8_TAIL = rb"[\x80-\xbf]"
UTF8_2 = rb"[\xc2-\xdf]" + UTF8_TAIL
UTF8_3 = (
    rb"(?:\xe0[\xa0-\xbf]" + UTF8_TAIL
    + rb"|[\xe1-\xec\xee\xef]" + UTF8_TAIL + rb"{2}"
    + rb"|\xed[\x80-\x9f]" + UTF8_TAIL + rb")"
)  # fmt: skip
UTF8_4 = (
    rb"(?:\xf0[\x90-\xbf]" + UTF8_TAIL + rb"{2}"
    + rb"|[\xf1-\xf3]" + UTF8_TAIL + rb"{3}"
    + rb"|\xf4[\x80-\x8f]" + UTF8_TAIL + rb"{2})"
)  # fmt: skip

# UTF8-non-ascii                                                                                  RFC 6532 §3.1
UTF8_NON_ASCII = rb"(?:" + UTF8_2 + rb"|" + UTF8_3 + rb"|" + UTF8_4 + rb")"

# textstring, without HT: one or more printable characters and SP                                 RFC 5321 §4.2
TEXT = rb"(?:[ -~]++|" + UTF8_NON_ASCII + rb")+"

# --- mailboxes ------------------------------------------------------------------------------------------------------

# atext, with UTF8-non-ascii                                                          RFC 5322 §3.2.3, RFC 6531 §3.3
ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
ATOM = rb"(?:" + ATEXT + rb"++|" + UTF8_NON_ASCII + rb")+"

# Dot-string                                                                                    RFC 5321 §4.1.2
DOT_STRING = ATOM + rb"(?:\." + ATOM + rb")*"

# qtextSMTP, quoted-pairSMTP, Quoted-string                                            RFC 5321 §4.1.2, RFC 6531 §3.3
QUOTED_STRING = rb'"(?:[ !#-\[\]-~]++|\\[ -~]|' + UTF8_NON_ASCII + rb')*"'

# Local-part                                                                                    RFC 5321 §4.1.2
LOCAL_PART = rb"(?:" + DOT_STRING + rb"|" + QUOTED_STRING + rb")"

# Let-dig, Ldh-str, sub-domain, Domain: letters and digits, between them a dot or hyphens       RFC 5321 §4.1.2
DOMAIN_ASCII = rb"[A-Za-z0-9]++(?:(?:\.|-++)[A-Za-z0-9]++)*"

# Domain with U-labels                                                                            RFC 6531 §3.3
LET_DIGS = rb"(?:[A-Za-z0-9]++|" + UTF8_NON_ASCII + rb")+"
DOMAIN = LET_DIGS + rb"(?:(?:\.|-++)" + LET_DIGS + rb")*"

# Snum, IPv4-address-literal                                                                    RFC 5321 §4.1.3
SNUM = rb"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]{1,2})"
IPV4 = SNUM + rb"(?:\." + SNUM + rb"){3}"

# IPv6-hex, IPv6-full, IPv6v4-full                                                              RFC 5321 §4.1.3
IPV6_HEX = rb"[0-9A-Fa-f]{1,4}"
IPV6_FULL = IPV6_HEX + rb"(?::" + IPV6_HEX + rb"){7}"
IPV6V4_FULL = IPV6_HEX + rb"(?::" + IPV6_HEX + rb"){5}:" + IPV4


def _groups(least: int, most: int) -> bytes:
    """From `least` to `most` groups of IPv6-hex with colons between them."""
    if most == 0:
        return b""
    some = IPV6_HEX + rb"(?::" + IPV6_HEX + rb"){%d,%d}" % (max(least - 1, 0), most - 1)
    return some if least else rb"(?:" + some + rb")?"


# IPv6-comp: "::" stands for two groups at least, so there are six at most beside it             RFC 5321 §4.1.3
IPV6_COMP = b"|".join(_groups(left, left) + b"::" + _groups(0, 6 - left) for left in range(7))

# IPv6v4-comp: four groups at most beside "::", and the IPv4 address                             RFC 5321 §4.1.3
IPV6V4_COMP = b"|".join(
    _groups(left, left) + b"::" + (rb"(?:" + _groups(1, 4 - left) + rb":)?" if left < 4 else b"") + IPV4
    for left in range(5)
)

# IPv6-address-literal                                                                          RFC 5321 §4.1.3
IPV6 = rb"[Ii][Pp][Vv]6:(?:" + b"|".join((IPV6V4_FULL, IPV6V4_COMP, IPV6_FULL, IPV6_COMP)) + rb")"

# General-address-literal: Standardized-tag ":" 1*dcontent, where the tag is not "IPv6"          RFC 5321 §4.1.3
GENERAL = rb"(?![Ii][Pp][Vv]6:)[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]++"

# address-literal                                                                               RFC 5321 §4.1.3
ADDRESS_LITERAL = rb"\[(?:" + IPV4 + rb"|" + IPV6 + rb"|" + GENERAL + rb")\]"

# At-domain, A-d-l: the source route before a mailbox                                          RFC 5321 §4.1.2
SOURCE_ROUTE = rb"@" + DOMAIN + rb"(?:,@" + DOMAIN + rb")*"

# --- parameters -----------------------------------------------------------------------------------------------------

# esmtp-keyword                                                                                 RFC 5321 §4.1.2
ESMTP_KEYWORD = rb"[A-Za-z0-9][A-Za-z0-9-]*+"

# esmtp-value, with UTF8-non-ascii                                                     RFC 5321 §4.1.2, RFC 6531 §3.3
ESMTP_VALUE = rb"(?:[!-<>-~]++|" + UTF8_NON_ASCII + rb")+"

# esmtp-param                                                                                   RFC 5321 §4.1.2
ESMTP_PARAM = ESMTP_KEYWORD + rb"(?:=" + ESMTP_VALUE + rb")?"

# xchar, hexchar, xtext (which may be empty)                                                        RFC 3461 §4
XTEXT = rb"(?:[!-*,-<>-~]++|\+[0-9A-F]{2})*"

# --- arguments of extensions ----------------------------------------------------------------------------------------

# base64, not empty                                                                                 RFC 4954 §8
BASE64 = (
    rb"(?:(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
    rb"|[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)"
)  # fmt: skip

# sasl-mech, in any case                                                            RFC 4422 §3.1, RFC 4954 §8
SASL_MECHANISM = rb"[A-Za-z0-9_-]{1,20}"

# chunk-size: no leading zero, 20 digits at most (RFC 1870 §4 has that bound for SIZE)                RFC 3030 §2
NUMBER = rb"(?:0|[1-9][0-9]{0,19})"

# ["@" / "#"] node: a domain and its sub-domains, or the name of a queue                           RFC 1985 §5
NODE = rb"(?:@?" + DOMAIN_ASCII + rb"|#[!-~]++)"

# domain *("," domain)                                                                          RFC 2645 §5.2.1
DOMAINS = DOMAIN_ASCII + rb"(?:," + DOMAIN_ASCII + rb")*"

# absolute-URI: scheme ":" and characters that may stand in a URI without a fragment                RFC 3986 §4.3
ABSOLUTE_URI = rb"[A-Za-z][A-Za-z0-9+.-]*+:(?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})+"
