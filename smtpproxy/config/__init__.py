"""The configuration: `tables` and `tls` have every setting, `values` the kinds of values; `load` reads and checks."""

from smtpproxy.config.audit import AuditConfig
from smtpproxy.config.inline import GatewayConfig, InterceptConfig, MatchConfig, ProcessConfig
from smtpproxy.config.load import COMMAND_LINE, ConfigError, Override, load_config
from smtpproxy.config.metrics import MetricsConfig
from smtpproxy.config.paths import NamedFile, exposed, files, missing
from smtpproxy.config.tables import (
    TABLES,
    Config,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    PatienceConfig,
    QuarantineConfig,
    Variant,
    keys_of,
)
from smtpproxy.config.tls import AllTLSConfig, CAConfig, CertificateConfig, DNSConfig, TLSConfig
from smtpproxy.config.values import Endpoint, Mistake, Network, is_address, parse_endpoint, parse_network

__all__ = [
    "COMMAND_LINE",
    "TABLES",
    "AllTLSConfig",
    "AuditConfig",
    "CAConfig",
    "CertificateConfig",
    "Config",
    "ConfigError",
    "DNSConfig",
    "Endpoint",
    "GatewayConfig",
    "InterceptConfig",
    "LimitsConfig",
    "ListenerConfig",
    "LogConfig",
    "MatchConfig",
    "MetricsConfig",
    "Mistake",
    "NamedFile",
    "Network",
    "Override",
    "PatienceConfig",
    "ProcessConfig",
    "QuarantineConfig",
    "TLSConfig",
    "Variant",
    "exposed",
    "files",
    "is_address",
    "keys_of",
    "load_config",
    "missing",
    "parse_endpoint",
    "parse_network",
]
