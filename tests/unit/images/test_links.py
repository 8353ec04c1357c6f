"""Promises of `ofa_hf.images.links`: linked images are fetched once, and what is no image never enters the cache."""

import http.server
import threading

import pytest

from ofa_hf.data import load_table, report_of
from ofa_hf.data.sources import TableForm, has_its_images, load_source
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.images.links import LinkedFile, LinkedImages


@pytest.fixture
def server(jpeg):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            kind = "text/html" if "page" in self.path else "image/jpeg"
            self.send_response(404 if "gone" in self.path else 200)
            self.send_header("Content-Type", kind)
            if "packed" in self.path:
                self.send_header("Content-Encoding", "gzip")
            body = b" <html>wait</html>" if "markup" in self.path else jpeg(len(self.path))
            self.send_header("Content-Length", str(len(body) + 9 * ("cut" in self.path)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_linked_images_are_fetched_once_also_by_the_next_run(server, tmp_path):
    address, asked = server
    names = [f"{address}/a.jpg", f"{address}/红 b.jpg?x=1", f"{address}/a.jpg", "local.jpg"]
    for _ in range(2):
        links = LinkedImages(tmp_path)
        links.fetch(names)
        assert links.count == 2
    assert sorted(asked) == ["/%E7%BA%A2%20b.jpg?x=1", "/a.jpg"]
    assert links.path(names[1]).endswith(".jpg")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone", "HTTP 404"),
        ("page", "text/html"),
        ("cut", "bytes arrived"),
        ("markup", "sent a text"),
        ("packed", "gzip"),
    ],
)
def test_what_is_no_image_is_not_kept_and_is_tried_again(server, tmp_path, name, reason):
    address, asked = server
    for _ in range(2):
        links = LinkedImages(tmp_path, timeout=5)
        links.fetch([f"{address}/{name}.jpg"])
        assert links.path(f"{address}/{name}.jpg") is None
        assert reason in links.explain(f"{address}/{name}.jpg")
    assert len(asked) == 2


def test_an_image_that_is_answered_comes_from_the_same_cache_and_is_fetched_when_it_is_read(server, tmp_path):
    address, asked = server
    for _ in range(2):
        assert load_image(LinkedFile(f"{address}/a.jpg", tmp_path)).mode == "RGB"
    assert asked == ["/a.jpg"]
    with pytest.raises(ImageError, match="gone.jpg cannot be fetched: HTTP 404"):
        load_image(LinkedFile(f"{address}/gone.jpg", tmp_path))
    assert LinkedFile(f"{address}/a.jpg", tmp_path) == LinkedFile(f"{address}/a.jpg", tmp_path)


def test_an_image_of_endless_size_is_refused(server, tmp_path):
    links = LinkedImages(tmp_path, limit=100)
    links.fetch([f"{server[0]}/a.jpg"])
    assert "more than 100 bytes" in links.explain(f"{server[0]}/a.jpg")


def test_a_table_may_mix_links_and_files(server, tmp_path, jpeg):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg(2))
    table = tmp_path / "t.csv"
    table.write_text(f"url,caption\n{server[0]}/a.jpg,甲\nb.jpg,乙\n{server[0]}/gone.jpg,丙\n", encoding="utf-8")
    rows = load_table(table, tmp_path / "photos", num_proc=0, cache_dir=tmp_path / "cache")
    assert rows["targets"][:] == [["甲"], ["乙"]]
    assert report_of(rows).problems == {"targets without image": 1}


def test_a_table_of_links_or_complete_paths_needs_no_folder(server, tmp_path, jpeg):
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    for first in (f"{server[0]}/a.jpg", str(tmp_path / "b.jpg")):
        table = tmp_path / "t.csv"
        table.write_text(f"url,caption\n{first},甲\nelsewhere.jpg,乙\n", encoding="utf-8")
        form = TableForm(cache_dir=str(tmp_path / "cache"))
        assert has_its_images(table, form)
        rows = load_source(table, form=form, num_proc=0)
        assert rows["targets"][:] == [["甲"]]
        assert report_of(rows).problems == {"targets without image": 1}


def test_a_server_that_sends_byte_after_byte_is_given_up(tmp_path, monkeypatch):
    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "loop" in self.path:
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            stop = threading.Event()
            for _ in range(100):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                stop.wait(0.05)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        links = LinkedImages(tmp_path, timeout=0.1)
        links.fetch([f"{address}/slow.jpg", f"{address}/loop.jpg", "http://127.0.0.1:1/closed.jpg"])
        running.shutdown()
    assert links.count == 0
    assert "bytes arrived in 0 seconds" in links.explain(f"{address}/slow.jpg")
    assert "infinite loop" in links.explain(f"{address}/loop.jpg")
    assert "Connection refused; run" in links.explain("http://127.0.0.1:1/closed.jpg")
    assert all("\n" not in reason and "Errno" not in reason for reason in links.failures.values())
