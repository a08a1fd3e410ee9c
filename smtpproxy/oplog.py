"""The operational log: what the proxy says about itself, on standard error, for whoever runs it.

It is not the audit: it says that a listener opened or a disk is full, never what a session said. One line an event,
for people or as JSON. Configured once, by the command line.
"""

import logging
import sys
from typing import Any

import msgspec
import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


# Without local variables: what a session holds is nobody's business here.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _json(value: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()


def configure(level: str = "info", style: str = "text") -> None:
    """Have structlog write to standard error.

    Args:
        level: debug, info, warning or error; less is not said.
        style: "text" (in colour on a terminal) or "json".
    """
    renderer: list[Any]
    if style == "json":
        renderer = [_tracebacks, structlog.processors.JSONRenderer(serializer=_json)]
    else:
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
