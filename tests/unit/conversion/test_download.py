"""A download is complete or it is not there; a broken one goes on where it stopped."""

import contextlib
import http.server
import threading

import pytest

from ofa_hf.conversion.download import download_file, download_repository
from ofa_hf.errors import UserError


BODY = bytes(range(256)) * 5000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `BODY` at /file.pt; the class attributes say how badly."""

    break_after = None  # bytes of one answer
    ranges, statuses, etag, requests, announce = True, [], '"one"', [], True
    body = BODY

    def do_GET(self):
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.requests.append(wanted)
        if cls.statuses:
            self.send_error(cls.statuses.pop(0))
            return
        if not self.path.endswith("/file.pt"):
            self.send_error(404)
            return
        begin = 0
        if wanted and cls.ranges and self.headers.get("If-Range") == cls.etag:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(cls.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(cls.body) - 1}/{len(cls.body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", cls.etag)
        if cls.announce:
            self.send_header("Content-Length", str(len(cls.body) - begin))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that has seen enough hangs up
            self.wfile.write(cls.body[begin:][: cls.break_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"statuses": [], "requests": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{httpd.server_port}/checkpoints/file.pt"
    yield handler
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fetch(server, folder):
    return download_file(server.url, folder, pause=0.001)


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(server, tmp_path)
    assert path.read_bytes() == BODY
    assert fetch(server, tmp_path) == path
    assert len(server.requests) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")) == ["file.pt"]


def test_a_broken_connection_goes_on_where_it_stopped(server, tmp_path):
    server.break_after = len(BODY) // 3
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests[0] is None
    assert all(request.startswith("bytes=") for request in server.requests[1:])
    assert len(server.requests) > 2


def test_an_interrupted_run_is_continued_by_the_next(server, tmp_path):
    (tmp_path / "file.pt.part").write_bytes(BODY[:1000])
    (tmp_path / "file.pt.part.version").write_text(server.etag)
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests == ["bytes=1000-"]


def test_a_part_of_another_version_is_thrown_away(server, tmp_path):
    (tmp_path / "file.pt.part").write_bytes(b"old" * 1000)
    (tmp_path / "file.pt.part.version").write_text('"zero"')
    assert fetch(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("length", [len(BODY), len(BODY) + 5])
def test_a_part_as_long_as_the_file_or_longer_starts_over(server, tmp_path, length):
    (tmp_path / "file.pt.part").write_bytes(b"x" * length)
    (tmp_path / "file.pt.part.version").write_text(server.etag)
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.pt.part").write_bytes(BODY[:1000])
    (tmp_path / "file.pt.part.version").write_text(server.etag)
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429, 500]
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_connection_that_never_delivers_is_given_up_and_nothing_is_left_that_looks_complete(server, tmp_path):
    server.break_after = 0
    with pytest.raises(UserError, match="broke 5 times"):
        fetch(server, tmp_path)
    assert not (tmp_path / "file.pt").exists()


def test_a_missing_file_is_refused_at_once(server, tmp_path):
    server.url = server.url.replace("file.pt", "other.pt")
    with pytest.raises(UserError, match="404"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_a_file_of_unknown_size_is_refused(server, tmp_path):
    server.announce = False
    with pytest.raises(UserError, match="how large"):
        fetch(server, tmp_path)


def test_two_processes_worth_of_threads_download_once(server, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file.pt").read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_repository_that_cannot_be_reached_is_one_clear_line():
    with pytest.raises(UserError, match=r"someone/nothing cannot be downloaded") as error:
        download_repository("someone/nothing")
    assert "\n" not in str(error.value)
