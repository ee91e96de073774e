"""A proxy between client and S3 server that does what networks and servers do: refuse, slow down, hang up."""

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
Fault = Callable[[str, str], str | None]  # method, path -> "503 SlowDown", "slow", "hang up", "cut" or None


@dataclass
class Proxy:
    """Where it listens, and what it does to the requests to come."""

    url: str = ""
    fault: Fault | None = None
    faults: list[str] = field(default_factory=list)  # what was done so far: "PUT /bucket/key 503 SlowDown"
    trailers: list[str] = field(default_factory=list)  # paths of uploads whose checksum comes after the body

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that goes through this proxy."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ENDPOINT_URL_S3": self.url}

    def for_seconds(self, seconds: float, fault: str) -> None:
        """The same fault for every request of some seconds, from the first request on."""
        first: list[float] = []

        def choose(method: str, path: str) -> str | None:
            first.append(time.monotonic())
            return fault if time.monotonic() - first[0] < seconds else None

        self.fault = choose

    def once(self, fault: str, method: str, part: str) -> None:
        """A fault for the first request of a method with `part` in its path."""
        done: list[bool] = []

        def choose(seen_method: str, path: str) -> str | None:
            if done or seen_method != method or part not in path:
                return None
            done.append(True)
            return fault

        self.fault = choose


@contextmanager
def proxy(upstream: str, certificate: Path | None = None) -> Iterator[Proxy]:
    """A running proxy to `upstream`, http://host:port; it speaks https with a certificate and key (one PEM file)."""
    state = Proxy()
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the client went away
                self.close_connection = True

        def relay(self) -> None:
            fault = state.fault(self.command, self.path) if state.fault else None
            length = int(self.headers.get("Content-Length", 0))
            if "x-amz-trailer" in self.headers:
                state.trailers.append(self.path)
            if fault:
                state.faults.append(f"{self.command} {self.path} {fault}")
            if fault == "hang up":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            if fault == "slow":
                time.sleep(2)
            body = self.rfile.read(length)
            if fault and fault[0].isdigit():
                status, code = fault.split()
                answer = b"" if self.command == "HEAD" or code == "OK" else ERROR.format(code=code).encode()
                self.send_response(int(status))
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                return
            connection = HTTPConnection(host, timeout=60)
            path = self.path.removeprefix(upstream)  # a client that takes us for its proxy names the whole address
            connection.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # signed: as they came
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            if response.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            connection.close()
            if fault == "cut":  # in the middle of the answer
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)

        def do_CONNECT(self) -> None:
            """As a client's proxy for https: bytes pass both ways, unread."""
            state.faults.append(f"CONNECT {self.path}")
            name, _, port = self.path.rpartition(":")
            with socket.create_connection((name, int(port))) as server:
                self.send_response_only(200)
                self.end_headers()
                ends = {self.connection: server, server: self.connection}
                while ends:
                    for readable in select.select(list(ends), [], [])[0]:
                        if data := readable.recv(65536):
                            ends[readable].sendall(data)
                        else:
                            ends = {}
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
