"""An S3 server on this machine: moto's, one request after the other, so that conditional puts exclude each other as in
S3. A test can look at each request, before and after it was carried out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

Look = Callable[[dict[str, Any]], None]


def nothing(request: dict[str, Any]) -> None: ...


class LocalS3:
    """`before` and `after` are called with the WSGI environment of each request."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self.look_freely()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def look_freely(self) -> None:
        self.before: Look = nothing
        self.after: Look = nothing

    def stop(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        with self._one_at_a_time:
            try:
                self.before(environ)
            except RefusedRequestError as refused:
                start(refused.status, [("Content-Type", "application/xml")])
                return [] if environ["REQUEST_METHOD"] == "HEAD" else [refused.body]  # a body there breaks the answer
            body = list(self._moto(environ, start))
            self.after(environ)
        return body


class RefusedRequestError(Exception):
    """What the server answers instead of doing what it is asked."""

    def __init__(self, status: str, code: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
