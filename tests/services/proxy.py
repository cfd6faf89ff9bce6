"""A proxy before a tracking server, with scripted faults: errors, silence, and connections that end before the answer comes."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from typing import Any, Literal

Fault = Literal["none", "error", "silence"]
_SILENCE_SECONDS = 30.0


class FaultProxy:
    """Forwards to the server at `port`, but for what `fault` says.

    `error`: everything is answered with 500, and the server sees none of it. `silence`: each request waits for 30 s, or until that fault
    is over, before it goes on. `drop(path)`: the next request to such a path is done by the server, and its answer lost. `answered` counts
    the answers to requests that came while there was no fault.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._fault: Fault = "none"
        self._over = threading.Event()
        self.to_be_dropped: list[str] = []
        self.answered = 0
        self.faults = 0
        proxy = self

        class Forwarding(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _do

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forwarding)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def begin(self, fault: Fault) -> None:
        self._fault = fault
        self._over.clear()
        self.answered = self.faults = 0

    def end(self) -> None:
        """The fault is over; who was kept waiting is let on."""
        self._fault = "none"
        self._over.set()

    def drop(self, path: str) -> None:
        """Lose the answer to the next request whose path ends so."""
        self.to_be_dropped.append(path)

    def close(self) -> None:
        self.end()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if faulty := self._fault != "none":
            self.faults += 1
        if self._fault == "error":
            self._answer(request, 500, {"Content-Type": "text/plain"}, b"scripted")
            return
        if self._fault == "silence":
            self._over.wait(_SILENCE_SECONDS)
        try:
            status, headers, content = self._forwarded(request, body)
        except OSError:
            status, headers, content = 502, {}, b"no server"
        path = request.path.partition("?")[0]
        lost = next((each for each in self.to_be_dropped if path.endswith(each)), None)
        if lost and status < 300:
            self.to_be_dropped.remove(lost)
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(request, status, headers, content)
        self.answered += not faulty

    def _forwarded(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=120)
        try:
            sent = {name: value for name, value in request.headers.items() if name.lower() not in ("connection", "transfer-encoding")}
            connection.request(request.command, request.path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    @staticmethod
    def _answer(request: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            request.wfile.write(content)
        except OSError:
            request.close_connection = True  # who asked has gone
