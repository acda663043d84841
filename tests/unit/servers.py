"""A real HTTP server that notifications are sent to, and what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Answers each request with the next of its codes, then with the last one again."""

    codes: list[int]
    location: str = ""  # of a redirect
    drip: float = 0.0  # seconds between two bytes of the answer
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextmanager
def serving(*codes: int, location: str = "", drip: float = 0.0) -> Iterator[Server]:
    server = Server(list(codes or (200,)), location, drip)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            query = {name: value[0] for name, value in parse_qs(parts.query).items()}
            server.requests.append(Request(parts.path, query, dict(self.headers), body))
            code = server.codes.pop(0) if len(server.codes) > 1 else server.codes[0]
            for byte in b"HTTP/1.0 200 OK\r\nSlow: " + b"a" * 9999 if server.drip else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(server.drip)
            if not server.drip:
                self.send_response(code)
                if server.location:
                    self.send_header("Location", server.location)
                self.end_headers()

        def handle(self) -> None:
            with suppress(OSError):  # the other side gave up
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
