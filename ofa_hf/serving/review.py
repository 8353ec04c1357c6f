"""A local page to accept, edit or reject captions with the keyboard.

It is available only on this machine: the address contains a secret, and requests must have the secret and this host.
"""

import io
import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ofa_hf.checking.review import Review
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image


HOST = "127.0.0.1"
LONGEST_SIDE = 1000  # pixels of an image on the page
MAX_BODY = 100_000  # bytes of a decision
POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class ReviewServer(ThreadingHTTPServer):
    """Serves a review until it is shut down.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, review: Review, port: int = 0):
        self.review, self.secret, self.lock = review, secrets.token_urlsafe(16), threading.Lock()
        self.page = files("ofa_hf.serving").joinpath("review.html").read_text(encoding="utf-8")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(f"Port {port} cannot be used: {error.strerror}. Name another one with --port.") from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.secret}/"


class Handler(BaseHTTPRequestHandler):
    """`GET /` the page, `state?number=` an item, `image?number=` its image; `POST decide` a decision."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = self._asked()
        if path is None:
            return
        number = query.get("number", "0")
        if path == "":
            self._send("text/html; charset=utf-8", self.server.page.encode())
        elif path == "state" and number.lstrip("-").isdecimal():
            with self.server.lock:
                number = self.server.review.next_open(0) if query.get("open") else int(number)
                self._json(self.server.review.state(number))
        elif path == "image" and number.isdecimal():
            self._image(int(number))
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        path, _ = self._asked()
        if path is None:
            return None
        length = self.headers.get("Content-Length", "")
        if path != "decide" or not length.isdecimal() or int(length) > MAX_BODY:
            return self._refuse(HTTPStatus.BAD_REQUEST)
        try:
            asked = json.loads(self.rfile.read(int(length)))
            with self.server.lock:
                review = self.server.review
                review.decide(asked["number"], asked["decision"], asked.get("caption"))
                goes_on = asked.get("next", True)
                self._json(review.state(review.next_open(asked["number"]) if goes_on else asked["number"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except OSError as error:
            self._json({"error": f"not saved: {error.strerror}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _asked(self) -> tuple[str | None, dict[str, str]]:
        """Path after the secret, and query; None if the request does not come from the page."""
        parts = urlsplit(self.path)
        _, secret, *rest = f"{parts.path}//".split("/")[:3]
        is_own_host = self.headers.get("Host", "") == f"{HOST}:{self.server.server_port}"
        if not is_own_host or not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None, {}
        return rest[0], {name: values[-1] for name, values in parse_qs(parts.query).items()}

    def _image(self, number: int) -> None:
        review = self.server.review
        path = review.path(number) if number < len(review.items) else None
        try:
            if path is None:
                return self._refuse(HTTPStatus.NOT_FOUND)
            image = load_image(Path(path))
        except ImageError:
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        self._send("image/jpeg", buffer.getvalue())

    def _json(self, values: dict, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send("application/json", json.dumps(values).encode(), status)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send("text/plain; charset=utf-8", status.phrase.encode(), status)

    def _send(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Do not log requests."""
