"""The extension registry: every EHLO keyword the proxy knows by name.

`EXTENSIONS` maps the keyword in capitals to its row. The rows stand in two files, those of documents and those of
makers; this one only joins them. A keyword that isn't here is taken out of the EHLO reply, because an extension nobody
has described may change what the octets mean.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smtpproxy.smtp.registry.extensions_standard import STANDARD
from smtpproxy.smtp.registry.extensions_vendor import VENDOR
from smtpproxy.smtp.registry.rows import Extension

EXTENSIONS: Mapping[bytes, Extension] = MappingProxyType(
    {extension.keyword.encode("ascii"): extension for extension in (*STANDARD, *VENDOR)}
)
