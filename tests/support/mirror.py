"""A mirror on this machine, for tests of downloads."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DEAD_MIRROR = "http://127.0.0.1:9/"  # port 9 of this machine: nobody listens


class Server:
    """`answers`: path to (status, headers, body); what else is asked for is not found. `asked`: the paths, in order."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.answers = {f"/{name}": (200, {}, content) for name, content in files.items()}
        self.asked: list[str] = []
        self.silent = threading.Event()  # set: hold every answer back
        self.released = threading.Event()
        self.url = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if server.silent.is_set():
                    server.released.wait(10)
                    return
                status, headers, body = server.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """A mirror that holds these files, by name, while the context lasts; its address is `url`."""
    local = Server(files)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), local.handler())
    listening.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that hangs up is a test's doing
    local.url = f"http://127.0.0.1:{listening.server_address[1]}/"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield local
    finally:
        local.released.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
