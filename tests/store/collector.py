"""An OpenTelemetry collector for tests: OTLP over HTTP, on the loopback, that answers as a test wants it."""

import gzip
import http.server
import ssl
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DEADLINE = 20.0


class Collector:
    """What came, decoded; `answers` are given first, one each: status, body, headers."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.logs: list[Any] = []
        self.spans: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []
        self.resources: list[Any] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = DEADLINE

            def do_POST(self) -> None:
                octets = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    octets = gzip.decompress(octets)
                status, body, headers = collector.take(self.path, dict(self.headers), octets)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def take(self, path: str, headers: dict[str, str], octets: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Keep a request, and say what the answer is."""
        with self._changed:
            self.paths.append(path)
            self.headers.append(headers)
            answer = self.answers.pop(0) if self.answers else (200, b"", {})
            if answer[0] == 200:
                if path == "/v1/logs":
                    for one in ExportLogsServiceRequest.FromString(octets).resource_logs:
                        self.resources.append(one.resource)
                        self.logs += [record for scope in one.scope_logs for record in scope.log_records]
                else:
                    for traced in ExportTraceServiceRequest.FromString(octets).resource_spans:
                        self.resources.append(traced.resource)
                        self.spans += [span for scope in traced.scope_spans for span in scope.spans]
            self._changed.notify_all()
        return answer

    def wait(self, what: Callable[[], object]) -> None:
        """Until it is so."""
        with self._changed:
            assert self._changed.wait_for(what, DEADLINE)

    def close(self) -> None:
        """Nobody is answered any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE)


def refusing(records: int) -> tuple[int, bytes, dict[str, str]]:
    """Partial success: so many were refused."""
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = records
    return 200, answer.SerializeToString(), {"Content-Type": "application/x-protobuf"}


def facts(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
