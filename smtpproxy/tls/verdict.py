"""What a look at a server's certificate came to."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """Whether the server is who it should be. `result` is a result type of RFC 8460 §4.3, "" where it is verified."""

    verified: bool
    result: str = ""
    why: str = ""


# RFC 8460 §4.3: what a failure is called, so that a TLS report can be made from the record.
HOST_MISMATCH = "certificate-host-mismatch"
EXPIRED = "certificate-expired"
NOT_TRUSTED = "certificate-not-trusted"
FAILED = "validation-failure"
TLSA_INVALID = "tlsa-invalid"
DNSSEC_INVALID = "dnssec-invalid"
DANE_REQUIRED = "dane-required"
STS_FETCH = "sts-policy-fetch-error"
STS_INVALID = "sts-policy-invalid"
STS_WEBPKI = "sts-webpki-invalid"
