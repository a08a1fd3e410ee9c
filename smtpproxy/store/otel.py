"""The record to an OpenTelemetry collector, by OTLP over HTTP: a log record for each record, and spans if wanted.

It is the SDK's exporters that send, called by the follower's own thread: none of the SDK's threads and queues is used,
so what an export comes to is known at once, and is what the follower goes on by. Three answers of a collector that the
SDK takes for success are none here: a redirect, which it does not follow; an answer that is no OTLP (a captive portal,
a wrong address); and records that were refused, which are counted and said (`audit-skipped`), because they are not to
be sent again (OTLP, "Partial Success").

A log record has the time of its record, its severity, the line as its body, and attributes (wording.py). With traces it
names trace and span too, before either is there: the ids are made of names (spans.py).

Only who wants OpenTelemetry imports this module: it is an extra.
"""

import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import requests
from google.protobuf.message import DecodeError
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from requests.adapters import HTTPAdapter

from smtpproxy import __version__
from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.store.indexing import Index, Line
from smtpproxy.store.reading import SQLiteReader
from smtpproxy.store.sinks import Batch, SinkDownError
from smtpproxy.store.spans import Span, Tracer, span_id, trace_id
from smtpproxy.store.wording import OURS, Severity, Value, attributes, severity

LOGS: Final = "/v1/logs"
TRACES: Final = "/v1/traces"
_SCOPE: Final = InstrumentationScope("smtpproxy.audit", __version__)
_SEVERITIES: Final = {  # the data model's appendix on syslog
    Severity.ERROR: (SeverityNumber.ERROR, "ERROR"),
    Severity.WARNING: (SeverityNumber.WARN, "WARN"),
    Severity.NOTICE: (SeverityNumber.INFO2, "INFO2"),
    Severity.INFORMATIONAL: (SeverityNumber.INFO, "INFO"),
}
_facts: Final = msgspec.json.Decoder(dict[str, Any]).decode
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Collector(NamedTuple):
    """Where it goes, and what goes there.

    Attributes:
        endpoint: http://… or https://…, without what stands for logs and traces.
        origin: what checkpoints call this gateway's log; with it it is told from others.
        hostname: of this machine.
        headers: for each request.
        context: TLS, with what the collector is verified by; for https.
        timeout: seconds for a request.
        personal: lines are sent as they are; else as their entries, without what is about persons.
        logs: a log record for each record, and each checkpoint.
        traces: spans are sent.
    """

    endpoint: str
    origin: str
    hostname: str
    headers: Mapping[str, str] = {}
    context: ssl.SSLContext | None = None
    timeout: float = 10.0
    compress: bool = True
    personal: bool = True
    logs: bool = True
    traces: bool = False


class OTelSink:
    """Sends the record to a collector.

    Args:
        directory: of the store, for what spans are made of.
    """

    def __init__(self, name: str, collector: Collector, directory: Path) -> None:
        self.name: Final = name
        self._collector = collector
        self._directory = directory
        self._resource = Resource(
            {
                "service.name": "smtpproxy",
                "service.version": __version__,
                "service.instance.id": collector.origin,
                "host.name": collector.hostname,
            }
        )
        self._tracer = Tracer(collector.origin, personal=collector.personal)
        self._spans: list[ReadableSpan] = []  # of records before `_traced`, not sent yet
        self._logged = self._traced = 0  # records before these need not be done again
        self._links: _Links | None = None

    def send(self, batch: Batch) -> int:
        """Send lines. When this returns the collector has them, but for as many as it refused.

        Raises:
            SinkDownError: it is not known whether it has them.
        """
        links = self._connected()
        refused = 0
        first = batch[0][0]
        logs = [self._log(number, line) for number, line in batch if number >= self._logged or first > self._logged]
        if logs and self._collector.logs:
            refused = links.export_logs(logs)
        self._logged = batch[-1][0] + 1
        if links.reader is not None:
            self._trace(batch, links.reader)
            if self._spans:
                links.export_spans(self._spans)
                self._spans = []
        return refused

    def note(self, size: int, note: str) -> None:
        """Send a checkpoint.

        Raises:
            SinkDownError: it is not known whether it has arrived.
        """
        if not self._collector.logs:
            return
        number, text = _SEVERITIES[Severity.NOTICE]
        record = LogRecord(
            severity_number=number,
            severity_text=text,
            body=note,
            attributes={OURS + "size": size},
            event_name=OURS + "audit_checkpoint",
        )
        self._connected().export_logs([self._readable(record)])

    def close(self) -> None:
        """Let go of the connections; what comes next connects anew."""
        links, self._links = self._links, None
        if links is not None:
            links.close()

    def _connected(self) -> "_Links":
        if self._links is None:
            self._links = _Links(self._collector, self._directory)
        return self._links

    # -------------------------------------------------------------------------------------------------------- logs

    def _log(self, number: int, line: bytes) -> ReadableLogRecord:
        read = Index.read(line) or Line(kind="audit-cut")
        text = line if self._collector.personal else entry_of(line)
        grade, name = _SEVERITIES[severity(read)]
        record = LogRecord(
            timestamp=round(read.at.timestamp() * 1_000_000) * 1_000 if read.at is not None else None,
            severity_number=grade,
            severity_text=name,
            body=text.decode(errors="replace"),
            attributes={**_attributes(text), OURS + "record": number, OURS + "leaf": leaf_of(line).hex()},
            event_name=OURS + read.kind.replace("-", "_"),
        )
        if self._collector.traces and read.session:
            origin = self._collector.origin
            record.trace_id = trace_id(origin, read.session)
            record.span_id = span_id(origin, read.session, read.tx)
            record.trace_flags = _SAMPLED
        return self._readable(record)

    def _readable(self, record: LogRecord) -> ReadableLogRecord:
        return ReadableLogRecord(record, self._resource, _SCOPE)

    # -------------------------------------------------------------------------------------------------------- spans

    def _trace(self, batch: Batch, reader: SQLiteReader) -> None:
        """Make the spans that these records end, each once."""
        if batch[0][0] > self._traced:
            self._spans = []  # it goes on elsewhere
        for number, line in batch:
            if number >= self._traced:
                self._spans += [self._span(span) for span in self._tracer.take(number, line, reader)]
                self._traced = number + 1

    def _span(self, span: Span) -> ReadableSpan:
        parent = SpanContext(span.trace, span.parent, False, _SAMPLED) if span.parent else None
        return ReadableSpan(
            name=span.name,
            context=SpanContext(span.trace, span.id, False, _SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, span.trouble) if span.trouble else Status(StatusCode.UNSET),
            start_time=span.begin,
            end_time=span.end,
            instrumentation_scope=_SCOPE,
        )


def _attributes(text: bytes) -> dict[str, Value]:
    try:
        return attributes(_facts(text))
    except msgspec.MsgspecError:
        return {}


class _Links:
    """The exporters, their connection, and the reader that spans are made with, as long as nothing goes wrong."""

    def __init__(self, collector: Collector, directory: Path) -> None:
        # What the SDK says of failures it says by Python's logging, to standard error where nobody has set that up, in
        # the middle of our log. The follower tells of them. It is the SDK that imported it: here it is not to be used.
        sys.modules["logging"].getLogger("opentelemetry").setLevel("CRITICAL")
        self._session = _Session(collector.context, collector.headers)
        base = collector.endpoint.rstrip("/")
        compression = Compression.Gzip if collector.compress else Compression.NoCompression
        how: dict[str, Any] = {
            "headers": dict(collector.headers),
            "timeout": collector.timeout,
            "compression": compression,
            "session": self._session,
        }
        self._logs = OTLPLogExporter(base + LOGS, **how)
        self._traces = OTLPSpanExporter(base + TRACES, **how) if collector.traces else None
        self.reader = SQLiteReader(directory) if collector.traces else None
        self._where = base

    def export_logs(self, records: list[ReadableLogRecord]) -> int:
        """How many were refused."""
        if self._logs.export(records) is not LogRecordExportResult.SUCCESS:
            raise SinkDownError(f"the collector {self._where}: {self._session.why}")
        found = self._answer(ExportLogsServiceResponse())
        return int(found.partial_success.rejected_log_records)

    def export_spans(self, spans: list[ReadableSpan]) -> None:
        if self._traces is None or self._traces.export(spans) is not SpanExportResult.SUCCESS:
            raise SinkDownError(f"the collector {self._where}: {self._session.why}")
        self._answer(ExportTraceServiceResponse())

    def _answer(self, kind: Any) -> Any:
        try:
            kind.ParseFromString(self._session.answer)
        except DecodeError:
            raise SinkDownError(f"the collector {self._where}: what it answers is no OTLP") from None
        return kind

    def close(self) -> None:
        self._session.close()
        if self.reader is not None:
            self.reader.close()


_CONTENT: Final = ("content-type", "content-encoding")


class _Session(requests.Session):
    """Keeps what came of the last request. It asks nothing of the environment: neither for a proxy nor for roots; and
    headers that the SDK has from there are not sent.

    Attributes:
        why: it came to nothing.
        answer: the body of what was answered.
    """

    def __init__(self, context: ssl.SSLContext | None, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.trust_env = False
        self._ours = {"user-agent": f"smtpproxy/{__version__}", **{key.lower(): headers[key] for key in headers}}
        self.why = "it was not asked"
        self.answer = b""
        if context is not None:
            self.mount("https://", _Adapter(context))

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.why, self.answer = "", b""
        given = {name.lower(): value for name, value in (kwargs.pop("headers", None) or {}).items()}
        kwargs["headers"] = {name: given[name] for name in _CONTENT if name in given} | self._ours
        try:
            found = super().request(*args, **kwargs)
        except requests.RequestException as error:
            self.why = _words(error)
            raise
        self.why = f"it answers {found.status_code} {found.reason}"
        if 300 <= found.status_code < 400:
            raise requests.exceptions.InvalidURL(self.why)  # nobody follows it, and the SDK would be content
        self.answer = found.content
        return found


class _Adapter(HTTPAdapter):
    """TLS by one context, and nothing that requests would add to it: its own roots above all."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, True, None)
        return host, {"ssl_context": self._context, "cert_reqs": "CERT_REQUIRED"}

    def cert_verify(self, *args: Any) -> None:
        pass


def _words(error: Exception) -> str:
    """What it comes down to: requests and urllib3 put one error into another, with addresses of objects."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
