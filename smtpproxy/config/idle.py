"""Settings that have no effect: valid, and hardly meant. Each is a warning at the place where it is said.

What is said and not used at the moment keeps nothing from starting, so that one setting can be changed for a try; but
whoever says it believes that it holds, and is told that it does not. What can't be meant at all is an error (`tls`).
"""

from collections.abc import Iterator

from smtpproxy.config.tables import Config
from smtpproxy.config.tls import CAConfig, DNSConfig, TLSConfig
from smtpproxy.config.values import Mistake, is_address
from smtpproxy.session.postures import ClientTLS, ServerTLS


def idle(config: Config) -> Iterator[Mistake]:
    """Every setting that is said and has no effect."""
    for index, listener in enumerate(config.listeners):
        for name, why in _of_listener(listener.tls).items():
            if getattr(listener.tls, name) != TLSConfig.model_fields[name].default:
                yield _warning(("listener", index, "tls", name), why)
    if config.listeners:
        yield from _of_ca(config)
        if config.dns != DNSConfig() and not any(one.tls.verify in ("dane", "mta-sts") for one in config.listeners):
            place = "servers" if config.dns.servers else "trusted"
            yield _warning(("dns", place), 'no listener has verify = "dane" or "mta-sts"')


def _warning(place: tuple[str | int, ...], why: str) -> Mistake:
    return Mistake(place, f"has no effect: {why}", severity="warning")


def _of_listener(tls: TLSConfig) -> dict[str, str]:
    """Settings of a listener that would have no effect with the others of it, and why."""
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
    if not tls.says_hello:
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
    made = {index: one for index, one in enumerate(config.listeners) if one.tls.makes_certificates}
    if not made:
        yield _warning(("ca", "directory"), "every listener has certificates, or needs none")
    for index, listener in made.items():
        tls = listener.tls
        named = not is_address(listener.server_name)
        if not (named or tls.roots or tls.server is ServerTLS.NEVER):
            yield Mistake(
                ("listener", index, "tls", "server_name") if tls.server_name else ("listener", index, "server"),
                f"{listener.server_name} is an address, which hardly any certificate is for: then the server is not "
                "verified, and what clients are shown is self-signed in spite of the CA",
                "its name in server_name of [listener.tls]",
                "warning",
            )
