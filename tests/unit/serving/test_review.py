"""Promises of `ofa_hf.serving.review`: the page works from this machine, and for nobody else."""

import json
import shutil
import threading
import urllib.error
import urllib.request

import pytest
from PIL import Image

from ofa_hf.checking.review import Review
from ofa_hf.errors import UserError
from ofa_hf.serving.review import ReviewServer


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGBA", (1500, 40), "red").save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.png,<b>红</b>\nb.png,蓝色\nbroken.jpg,坏\n", encoding="utf-8")
    with ReviewServer(Review(table, tmp_path / "photos")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(address: str, body: dict | None = None, host: str | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_page_its_images_and_decisions(server):
    assert b"Review captions" in ask(server.address)[1]
    state = json.loads(ask(f"{server.address}state?open=1")[1])
    assert (state["number"], state["item"]["caption"]) == (0, "<b>红</b>")
    status, image = ask(f"{server.address}image?number=0")
    assert (status, image[:3]) == (200, b"\xff\xd8\xff")
    assert ask(f"{server.address}image?number=2")[0] == 415
    assert ask(f"{server.address}image?number=9")[0] == 404
    state = json.loads(ask(f"{server.address}decide", {"number": 0, "decision": "accepted", "caption": "红色"})[1])
    assert (state["number"], state["accepted"]) == (1, 1)
    assert "红色" in server.review.output.read_text(encoding="utf-8-sig")
    assert ask(f"{server.address}decide", {"number": 0, "decision": "maybe"})[0] == 400
    assert ask(f"{server.address}decide", {"number": "x"})[0] == 400


def test_nobody_else_is_answered(server):
    decision = {"number": 0, "decision": "rejected"}
    root = f"http://127.0.0.1:{server.server_port}"
    for address in (root, f"{root}/", f"{root}/guess/state", f"{root}/guess/decide"):
        assert ask(address, decision if "decide" in address else None)[0] == 403
    assert ask(f"{server.address}state", host="evil.example")[0] == 403, "a name that leads here is not this host"
    assert ask(f"{server.address}../../etc/passwd")[0] in (403, 404)
    assert server.review.items[0].decision == "open"
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_said(server):
    with pytest.raises(UserError, match="--port"):
        ReviewServer(server.review, server.server_port)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_captions_are_decided_with_the_keyboard_alone(server):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(server.address)
        playwright.expect(page.locator("#caption")).to_have_value("<b>红</b>")
        page.keyboard.press("e")
        page.keyboard.press("Control+A")
        page.keyboard.insert_text("红色")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#caption")).to_have_value("蓝色")
        page.keyboard.press("x")
        playwright.expect(page.locator("#counts")).to_contain_text("rejected 1")
        browser.close()
    assert server.review.output.read_text(encoding="utf-8-sig").splitlines() == ["image,caption", "a.png,红色"]
    assert [item.decision for item in server.review.items] == ["accepted", "rejected", "open"]
