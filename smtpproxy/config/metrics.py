"""The table `[metrics]`: where Prometheus finds what the proxy counts."""

import ipaddress
from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from smtpproxy.config.values import Endpoint, Mistake, Table, is_address, parse_endpoint, setting, wrong, wrong_together
from smtpproxy.policy.toml import shown


def _listen(value: object) -> Endpoint | None:
    expected = 'e.g. "127.0.0.1:9625", "[::1]:9625"; "" for none'
    if not isinstance(value, str):
        raise wrong(f"{shown(value)} is not a string", expected)
    if not value:
        return None
    try:
        endpoint = parse_endpoint(value, port=9625)
    except ValueError as error:
        raise wrong(str(error), expected) from None
    if not is_address(endpoint.host):
        raise wrong(f"{shown(endpoint.host)} is not an address", expected)
    return endpoint


class MetricsConfig(Table):
    """`[metrics]`: what the proxy counts, for Prometheus. docs/metrics.md lists all of it."""

    listen: Annotated[Endpoint | None, BeforeValidator(_listen)] = setting(
        None,
        "an address of this machine that answers `GET /metrics`; port 0 is any free one. It takes the extra"
        " `smtpproxy[metrics]`. Empty: nothing is counted, and no port is open",
        "a port is open where somebody said so",
    )
    anywhere: bool = setting(
        False,
        "that address may be another than a loopback one. It is HTTP in clear and asks nobody who they are",
        "how much mail there is, and by which rules it is refused, is nobody else's business",
    )

    @model_validator(mode="after")
    def _stays_at_home(self) -> Self:
        if self.listen is not None and not self.anywhere and not ipaddress.ip_address(self.listen.host).is_loopback:
            wrong_together(
                [
                    Mistake(
                        ("listen",),
                        f"{self.listen.host} is not a loopback address, and what is told there is told in clear to"
                        " whoever asks",
                        'a loopback address, e.g. "127.0.0.1:9625"; or anywhere = true, and a firewall',
                    )
                ]
            )
        return self
