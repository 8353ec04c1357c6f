"""The page in a real browser: as a Space, where this package is not installed, and as `ofa-hf demo --web`."""

import base64
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import tiny_shop
from drawing_checkpoint import make_drawing_folder
from loopback_hub import LoopbackHub, use_in_this_process
from PIL import Image

from hub_upload.__main__ import main
from ofa_hf import OFAProcessor
from ofa_hf.models import load_model, load_pipeline
from ofa_hf.pipeline_ofa import OFATextToImagePipeline
from ofa_hf.serving import space


pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
)
STRANGER = "import sys, runpy; sys.modules['ofa_hf'] = sys.modules['hub_upload'] = None; sys.argv = ['app.py']\n"
STRANGER += "runpy.run_path('app.py', run_name='__main__')"
PASTE = """base64 => {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
}"""
BEYOND = """[...document.querySelectorAll("#head *, button, img, input, #result *")].filter(one => {
    const {left, right, width} = one.getBoundingClientRect();
    return width > 1 && (left < 0 || right > innerWidth);  // of one pixel: words for screen readers
}).map(one => one.outerHTML.slice(0, 100))"""
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs gradio")
    folder = tiny_shop.write_model(tmp_path_factory.mktemp("model") / "tiny")
    own = OFAProcessor.from_pretrained(folder)
    tasks = {"caption": {}, "grounding": {}, "vqa": {}}
    OFAProcessor(own.image_processor, own.tokenizer, tasks, max_prompt_tokens=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    pytest.importorskip("diffusers", reason="drawing needs diffusers")
    return make_drawing_folder(tmp_path_factory.mktemp("drawer"))


@pytest.fixture(scope="module")
def address(model, drawer, tmp_path_factory):
    """Of a Space made by `hub_upload space`, running as the Hub would run it, with models from the loopback Hub."""
    folder, port = tmp_path_factory.mktemp("space"), free_port()
    with LoopbackHub() as hub:
        for name, kept in (("shop/tiny", model), ("shop/drawer", drawer)):
            files = [path for path in kept.rglob("*") if path.is_file()]
            hub.make(name, {path.relative_to(kept).as_posix(): path.read_bytes() for path in files})
        with pytest.MonkeyPatch.context() as monkeypatch:
            use_in_this_process(hub, monkeypatch)
            monkeypatch.setattr(space, "requirements", list)  # no Space has transformers 4, but its page runs
            words = [
                "space",
                "shop/tiny",
                "shop/drawer",
                "--repo-id",
                "shop/page",
                "--work",
                folder / "work",
                "--upload",
            ]
            assert main(list(map(str, words))) == 0
        for name, content in hub.files("spaces/shop/page").items():
            (folder / name).write_bytes(content)
        environment = hub.environment(folder / "home", token=None)
        environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "uploads")}
        command, log = [sys.executable, "-c", STRANGER], folder / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), process, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a visitor with a browser of these properties; it may talk to its own server only."""
    contexts, elsewhere = [], []

    def open_page(query: str = "", **properties):
        contexts.append(browser.new_context(**properties))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: remember(request.url))
        page.goto(address + query)
        page.wait_for_function("document.documentElement.lang === '{}'".format("en" if "en" in query else "zh"))
        return page

    def remember(url: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            elsewhere.append(url)

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere, "the page asked other servers"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.new("RGB", (90, 60), "#2244cc").save(path)
    return path


@pytest.fixture(scope="module")
def expected(model, photo):
    """What the pipeline says: captions, and scores as the page writes them."""
    rows = load_pipeline(str(model))(str(photo), num_return_sequences=3, num_beams=3, return_scores=True)
    return [(row["generated_text"] or "—", f"{row['score']:.2f}") for row in rows]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(ready, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.2)


def upload(page, path: Path) -> None:
    page.set_input_files("#image input[type=file]", path)


def shown(page) -> list[tuple[str, str]]:
    page.wait_for_selector("#result li")
    return list(
        zip(page.locator("#result .caption").all_inner_texts(), page.locator("#result .score").all_inner_texts())
    )


def test_an_uploaded_image_gets_the_captions_and_scores_of_the_pipeline(visit, photo, expected):
    page = visit()
    upload(page, photo)
    assert shown(page) == expected


def test_a_pasted_image_and_an_example_get_captions(visit, photo, expected):
    page = visit()
    page.evaluate(PASTE, base64.b64encode(photo.read_bytes()).decode())
    assert shown(page) == expected
    page.click("#image .icon-button-wrapper button")
    page.wait_for_selector("#result .empty")
    page.click("#examples button >> nth=2")
    assert len(shown(page)) == 3


def test_a_bad_file_is_explained_in_the_visitors_language(visit, tmp_path):
    bad = tmp_path / "<b>bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff this is no image")
    page = visit()
    upload(page, bad)
    page.wait_for_selector("#result .error")
    told = page.inner_text("#result")
    assert "无法作答" in told
    assert "<b>bad.jpg" in told
    page.click("text=English")
    page.wait_for_function("document.querySelector('#ask').innerText === 'Answer'")
    page.click("#ask")
    page.wait_for_selector("#result >> text=This cannot be answered")


def choose(page, task: str) -> None:
    page.click("#task input")
    page.click(f"[role=option] >> text={task}")


def test_each_task_has_its_fields_and_boxes_are_drawn_on_the_image(visit, photo):
    page = visit("?lang=en")
    assert not page.is_visible("#text")
    choose(page, "grounding")
    page.wait_for_selector("#text textarea")
    page.fill("#text textarea", "红色\n蓝色的方块")
    upload(page, photo)
    page.wait_for_selector("#result svg rect", state="attached")
    assert page.locator("#result svg rect").count() == 2
    assert page.evaluate("document.querySelector('#result svg[role=img]').getBoundingClientRect().width") > 100
    assert {text for text, _ in shown(page)} == {"红色", "蓝色的方块"}
    choose(page, "vqa")
    page.wait_for_selector("#labels textarea, #labels input")
    page.fill("#text textarea", "什么颜色")
    page.fill("#labels textarea, #labels input", "红色, 蓝色")
    page.click("#ask")
    page.wait_for_selector("#result >> text=%")
    page.wait_for_function("!document.querySelector('#result rect')")
    assert {text for text, _ in shown(page)} == {"红色", "蓝色"}
    page.fill("#text textarea", "")
    page.click("#ask")
    page.wait_for_selector("#result >> text=There is no text yet")


def test_a_text_is_drawn_as_the_pipeline_draws_it_and_the_seed_is_told(visit, drawer):
    page = visit("?lang=en")
    page.click("#model input")
    page.click("[role=option] >> text=shop/drawer")
    page.wait_for_selector("#seed input")
    assert not page.is_visible("#image")
    page.fill("#text textarea", "red hat")
    page.fill("#seed input", "7")
    page.click("#ask")
    page.wait_for_selector("#result figure >> nth=2")
    assert "Seed: 7." in page.inner_text("#result")
    model, processor = load_model(drawer, device="cpu")
    images = OFATextToImagePipeline(model=model, processor=processor)("red hat", num_images=3, seed=7)
    scores = [f"{one['score']:.2f}" for one in images]
    assert page.locator("#result figcaption").all_inner_texts() == scores
    assert page.evaluate("[...document.querySelectorAll('#result figure img')].every(img => img.naturalWidth === 64)")
    page.fill("#text textarea", "hat " * 65)
    page.click("#ask")
    page.wait_for_selector("#result .error >> text=65 words")


@pytest.mark.parametrize("query", ["", "?lang=en"])
def test_nothing_has_to_be_scrolled_sideways_on_a_phone(visit, photo, query):
    page = visit(query, **PHONE)
    upload(page, photo)
    shown(page)
    page.click("button.label-wrap")  # more settings
    page.wait_for_selector("input[type=range] >> nth=2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    beyond = page.evaluate(BEYOND)
    assert not beyond, "cut off at the left or the right"


def test_demo_web_serves_any_model_folder_until_ctrl_c_and_keeps_nothing(model, tmp_path):
    (tmp_path / "temp").mkdir()
    environment = {**tiny_shop.environment(tmp_path / "home"), "TMPDIR": str(tmp_path / "temp")}
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, "-m", "ofa_hf", "demo", "--web", "--model", str(model), "--port", str(free_port())]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Page " in log.read_text(encoding="utf-8"), process, log)
        assert answers(re.search(r"Page +(\S+)", log.read_text(encoding="utf-8"))[1])
        assert list((tmp_path / "temp").glob("ofa_hf_web_*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, log.read_text(encoding="utf-8")
        assert not list((tmp_path / "temp").glob("ofa_hf_web_*"))
    finally:
        process.kill()
        process.wait()
