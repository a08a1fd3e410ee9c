"""Settings that have no effect: valid, and hardly meant. Each is a warning at the place where it is said.

What is said and not used at the moment keeps nothing from starting, so that one setting can be changed for a try; but
whoever says it believes that it holds, and is told that it does not. What can't be meant at all is an error (`tls`,
`together`). A listener's setting that a `[[match]]` block makes use of has an effect.
"""

from collections.abc import Iterator, Sequence

from smtpproxy.config.applying import never, twice
from smtpproxy.config.inline import InterceptConfig
from smtpproxy.config.tables import Config, ListenerConfig, QuarantineConfig, Variant
from smtpproxy.config.tls import CAConfig, DNSConfig, TLSConfig
from smtpproxy.config.values import Mistake, is_address
from smtpproxy.policy.toml import KeyPath, Severity, shown
from smtpproxy.session.postures import ClientTLS, ServerTLS


def idle(config: Config) -> Iterator[Mistake]:
    """Every setting that is said and has no effect."""
    for index, listener in enumerate(config.listeners):
        for key, why in _of_listener(listener):
            yield _warning(("listener", index, *key), why)
    yield from _of_unseen(config)
    yield from _of_tls(config)
    if not config.quarantine.directory:
        for name in ("size", "mails", "days"):
            if getattr(config.quarantine, name) != QuarantineConfig.model_fields[name].default:
                yield _warning(("quarantine", name), "it is about `directory`, which is not said: no mail is kept")
    for where, why in (*never(config), *twice(config)):
        yield Mistake(where, why, severity="warning")
    if config.listeners:
        yield from _of_ca(config)
        if config.dns != DNSConfig() and not any(
            one.entry.tls.verify in ("dane", "mta-sts") for one in config.variants()
        ):
            place = "servers" if config.dns.servers else "trusted"
            yield _warning(("dns", place), 'no listener has verify = "dane" or "mta-sts"')


def _warning(place: KeyPath, why: str) -> Mistake:
    return Mistake(place, f"has no effect: {why}", severity="warning")


def _of_listener(listener: ListenerConfig) -> Iterator[tuple[KeyPath, str]]:
    """Settings of how clients come to a listener and where they go."""
    forward = listener.mode == "forward"
    if forward and listener.intercept != InterceptConfig():
        yield ("intercept",), 'with mode = "forward" nothing is led here'
    if listener.reach and (forward or listener.server is not None):
        yield ("reach",), "everything goes to `server`"
    if "proxy_only" in listener.model_fields_set and not listener.proxy_from:
        yield ("proxy_only",), "it is about `proxy_from`, which is not said: nobody's PROXY header is taken"


def _of_unseen(config: Config) -> Iterator[Mistake]:
    """A PROXY header is put before what passes unseen; a command can't be."""
    for index, match in enumerate(config.matches):
        for one in config.listeners if match.unseen else ():
            if one.announce in ("xclient", "xforward") and (not match.listeners or one.name in match.listeners):
                message = (
                    f'the server is not told who these clients are: announce = "{one.announce}" of listener'
                    f" {shown(one.name)} takes a command, and in what passes unseen there is none of ours; but a client"
                    f" may say {one.announce.upper()} itself, and be whoever it likes to the server, which lets us"
                )
                other = match.server is not None and match.server != one.server
                worse = one.announce == "xclient" and not (one.keeps_client or other)
                severity: Severity = "error" if worse else "warning"
                yield Mistake(("match", index, "unseen"), message, "a PROXY header, if it expects one", severity)


# ------------------------------------------------------------------------------------------------------------- TLS


def _of_tls(config: Config) -> Iterator[Mistake]:
    """A listener's settings and those of blocks, where they have no effect on anything they apply to."""
    variants = list(config.variants())
    for index, listener in enumerate(config.listeners):
        here = [one for one in variants if one.listener == index]
        for name in TLSConfig.model_fields:
            inherit = [one for one in here if one.match is None or not _says(config, one.match, name)]
            yield from _idle_in(inherit, name, listener.tls, ("listener", index, "tls", name))
    for number, match in enumerate(config.matches):
        there = [one for one in variants if one.match == number]
        for name in TLSConfig.model_fields:
            if match.tls is not None and _says(config, number, name):
                yield from _idle_in(there, name, match.tls, ("match", number, "tls", name))


def _says(config: Config, match: int, name: str) -> bool:
    tls = config.matches[match].tls
    return tls is not None and name in tls.model_fields_set


def _idle_in(variants: Sequence[Variant], name: str, said: TLSConfig, place: KeyPath) -> Iterator[Mistake]:
    if getattr(said, name) == TLSConfig.model_fields[name].default:
        return
    reasons = [without_effect(one.entry.tls, says_hello=one.entry.says_hello).get(name) for one in variants]
    if reasons and reasons[0] and all(reasons):
        yield _warning(place, reasons[0])


def without_effect(tls: TLSConfig, *, says_hello: bool) -> dict[str, str]:
    """Settings of TLS that would have no effect beside the others, and why."""
    client = f'client = "{tls.client.value}"'
    blind = tls.client is ClientTLS.PASSTHROUGH
    found: dict[str, str] = {}
    if blind or tls.client is ClientTLS.REFUSE:
        found["certificates"] = f"with {client} no client is shown one"
    if blind:
        for name in ("server_name", "roots", "client_certificate", "legacy"):
            found[name] = f"with {client} TLS is the peers' own"
    elif tls.never_encrypted:
        never = "the server's link is never encrypted"
        found |= {"roots": never, "client_certificate": never}
        if tls.client is ClientTLS.REFUSE:  # else it is what the certificate for clients is made for
            found |= {"server_name": never, "legacy": "no link is ever encrypted"}
    elif tls.verify == "dane":
        found["roots"] = 'with verify = "dane" the TLSA records alone say who may vouch for the server'
    if tls.verify != "mta-sts":
        found["policy_domain"] = 'it is for verify = "mta-sts"'
    if not says_hello:
        found["hello"] = (
            "there is no EHLO of our own unless the server's link is encrypted before the client has spoken"
        )
    return found


def _of_ca(config: Config) -> Iterator[Mistake]:
    """A CA that signs nothing, or nothing for a listener."""
    if not config.ca.directory:
        for name in ("days", "rate", "burst"):
            if getattr(config.ca, name) != CAConfig.model_fields[name].default:
                yield _warning(("ca", name), "there is no CA, `directory` is not said")
        return
    made = [one for one in config.variants() if one.entry.tls.makes_certificates]
    if not made:
        yield _warning(("ca", "directory"), "every listener has certificates, or needs none")
    for index, match, entry in made:
        tls = entry.tls
        named = not entry.server_name or not is_address(entry.server_name)
        if not (named or tls.roots or tls.server is ServerTLS.NEVER):
            place: KeyPath = ("listener", index)
            if match is not None and (_says(config, match, "server_name") or config.matches[match].server is not None):
                place = ("match", match)
            yield Mistake(
                (*place, "tls", "server_name") if tls.server_name else (*place, "server"),
                f"{entry.server_name} is an address, which hardly any certificate is for: then the server is not "
                "verified, and what clients are shown is self-signed in spite of the CA",
                "its name in server_name" if match is not None else "its name in server_name of [listener.tls]",
                "warning",
            )
