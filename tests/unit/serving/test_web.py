"""The page's own words and functions; in a browser: `end_to_end/test_web.py`."""

import ast
import base64
import io
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_shop
from PIL import Image

from ofa_hf import OFAImageProcessor, OFAImageToTextPipeline, OFAProcessor
from ofa_hf.models import load_pipeline
from ofa_hf.serving.serve import load_for_page
from ofa_hf.tasks_ofa import TASKS


web = pytest.importorskip("ofa_hf.serving.web", reason="the page needs gradio", exc_type=ImportError)

SETTINGS = ("", "", 3, 4, 12, "", None)  # text, labels, answers, beams, tokens, question, seed


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return load_pipeline(str(tiny_shop.write_model(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (40, 30), "#cc2222").save(tmp_path / "photo.png")
    return {"path": str(tmp_path / "photo.png"), "orig_name": "photo.png"}


class Recorder:
    """Stands for a pipeline and remembers what it was asked."""

    pipeline_name = "image-to-text"

    def __init__(self, error: Exception | None = None):
        settings = SimpleNamespace(num_beams=None, max_length=None, max_new_tokens=None)
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=32), generation_config=settings)
        self.processor = SimpleNamespace(
            tasks={"caption": {}}, default_task="caption", language="zh", find_task=lambda name=None: TASKS["caption"]
        )
        self.error = error

    def __call__(self, image, **asked) -> list[dict]:
        if self.error:
            raise self.error
        self.asked = asked
        return [{"generated_text": "红<b>色", "score": -0.5}]


def answer(captioner, image, *settings, language="zh", task=None) -> str:
    return web.answer(lambda model: captioner, image, "tiny", language, task, *(settings or SETTINGS))


def test_the_page_is_one_file_that_imports_nothing_of_this_package():
    for node in ast.walk(ast.parse(Path(web.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or "."] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            assert not [name for name in names if name.startswith((".", "ofa_hf", "hub_upload"))], names
            assert not getattr(node, "level", 0)


def test_captions_and_scores_are_the_pipelines(captioner, photo):
    rows = captioner(photo["path"], num_return_sequences=3, num_beams=4, max_length=12, return_scores=True)
    assert answer(captioner, photo) == web.answers_html(rows, None, {})
    assert answer(captioner, photo).count("<li>") == 3


def test_captions_are_text_not_markup_and_their_bars_show_the_probability():
    html = web.answers_html([{"generated_text": "红<b>色", "score": -0.6931}], None, {})
    assert "红&lt;b&gt;色" in html
    assert ">-0.69<" in html
    assert "width: 50.0%" in html


@pytest.mark.parametrize(("language", "head"), [("zh", "无法作答"), ("en", "This cannot be answered")])
def test_a_bad_file_is_explained_by_name_and_without_a_traceback(captioner, tmp_path, language, head):
    (tmp_path / "upload").write_bytes(b"this is no image at all")
    image = {"path": str(tmp_path / "upload"), "orig_name": "<i>notes.jpg"}
    html = answer(captioner, image, language=language)
    assert head in html
    assert "&lt;i&gt;notes.jpg" in html
    assert str(tmp_path) not in html
    assert "Traceback" not in html


@pytest.mark.parametrize("image", [None, {"path": None}, {"path": "/no/such/file.png"}])
def test_without_an_image_the_page_asks_for_one(captioner, image):
    assert "还没有图片" in answer(captioner, image)


def test_a_file_that_is_too_large_is_not_even_read(photo, monkeypatch):
    monkeypatch.setattr(web, "MAX_MEGABYTES", 1e-5)
    html = answer(Recorder(AssertionError("read")), photo, language="en")
    assert "too large" in html


def test_a_fault_of_the_code_is_logged_and_its_words_stay_there(photo, caplog):
    web.logger.propagate, before = True, web.logger.propagate
    html = answer(Recorder(RuntimeError("secret of the house")), photo)
    web.logger.propagate = before
    assert "没有成功" in html
    assert "secret" not in html


@pytest.mark.parametrize(
    ("wishes", "given"),
    [
        (("", "", 3, 1, 12, " ", None), {"num_return_sequences": 3, "num_beams": 3, "max_length": 12, "prompt": None}),
        (
            ("", "", 99, 1e9, 1e9, "问" * 999, 1e12),
            {"num_return_sequences": 5, "num_beams": 10, "max_length": 32, "prompt": "问" * 200},
        ),
        (
            (None, None, -1, 0, 0, None, ""),
            {"num_return_sequences": 1, "num_beams": 1, "max_length": 4, "prompt": None},
        ),
    ],
)
def test_wishes_stay_within_what_page_and_model_can_do(photo, wishes, given):
    captioner = Recorder()
    answer(captioner, photo, *wishes)
    assert captioner.asked == {**given, "task": "caption", "return_scores": True}


def test_a_models_own_settings_are_the_pages(captioner):
    assert web.limits(captioner) == {
        "num_beams": 1,
        "max_length": 12,
        "most_tokens": 32,
        "tasks": ["caption"],
        "task": "caption",
    }
    assert web.limits(Recorder())["max_length"] == web.DEFAULT_TOKENS


def test_models_are_loaded_once_and_only_those_of_the_page(photo):
    loaded = []
    load = web.loader(["a", "b"], lambda model: loaded.append(model) or Recorder())
    for model in ("a", "b", "a", "b"):
        assert "红" in web.answer(load, photo, model, "zh", None, *SETTINGS)
    assert loaded == ["a", "b"]
    html = web.answer(load, photo, "somebody/else", "zh", None, *SETTINGS)
    assert "这个模型无法载入" in html
    assert loaded == ["a", "b"]


def test_choosing_a_model_brings_its_settings_and_a_broken_one_is_said_so():
    tasks, beams, length, *of_task, result = web.choose(lambda model: Recorder(), "b", "zh")
    prompt = of_task[web.SHOWN_BY_TASK.index("prompt")]
    assert (tasks["choices"], tasks["value"], tasks["visible"]) == (["caption"], "caption", False)
    assert (prompt["placeholder"], prompt["visible"], beams["value"]) == ("图片描述了什么内容?", True, 1)
    assert (length["maximum"], length["value"]) == (32, 30)
    assert result == web.EMPTY

    def broken(model):
        raise OSError("no such folder")

    assert "cannot be loaded" in web.choose(broken, "b", "en")[-1]


def test_both_languages_say_the_same_things():
    assert web.WORDS["zh"].keys() == web.WORDS["en"].keys()


def test_the_page_loads_its_first_model_alone_and_runs_one_at_a_time_for_nobody_but_its_visitors():
    loaded = []
    page = web.build_page(["a", "b"], lambda model: loaded.append(model) or Recorder())
    assert loaded == ["a"]
    events = page.fns.values()
    assert all(event.api_visibility == "private" for event in events if event.fn)
    with_model = [event for event in events if event.queue and getattr(event.fn, "func", None) is not None]
    assert len(with_model) == 4  # asking, asking after an example, choosing a model, choosing a task
    assert {(event.concurrency_id, event.concurrency_limit) for event in with_model} == {("model", 1)}
    assert not page.analytics_enabled


def test_switching_the_language_changes_every_word(monkeypatch):
    page = web.build_page(["a", "b"], lambda model: Recorder())
    switch = next(event for event in page.fns.values() if getattr(event.fn, "func", None) is web.translate)
    updates = switch.fn("en")
    assert len(updates) == len(switch.outputs)
    words = json.dumps(updates, ensure_ascii=False)
    used = {name for name in web.WORDS["en"] if json.dumps(web.WORDS["en"][name], ensure_ascii=False)[1:-1] in words}
    later = ("bad_model", "bad_input", "failed", "nothing_found", "drawing", "drawn_with")
    spoken_later = {name for name in web.WORDS["en"] if name in later or name.startswith(("no_", "large_", "long_"))}
    assert used == web.WORDS["en"].keys() - spoken_later


@pytest.fixture(scope="module")
def of_all_tasks(captioner):
    """A model of several tasks."""
    tasks = {name: {} for name, task in TASKS.items() if "zh" in task.prompts}
    tasks["region"] = {"prompt": "{box}"}
    tasks["rte"] = {"prompt": "{sentence1}是{sentence2}?", "choices": ["红色", "蓝"]}
    parts = OFAImageProcessor(size=64), captioner.processor.tokenizer
    tasks["color"] = {"prompt": "什么颜色?", "answer": "choice", "choices": ["红色", "蓝"]}
    tasks["kind"] = {"prompt": "什么?", "answer": "choice", "pipeline": "zero-shot-image-classification"}
    processor = OFAProcessor(*parts, tasks=tasks, max_prompt_tokens=16)
    return OFAImageToTextPipeline(model=captioner.model, processor=processor)


def test_boxes_are_drawn_over_the_image_in_its_own_pixels(of_all_tasks, photo):
    html = answer(of_all_tasks, photo, "红色\n蓝", "", 3, 4, 12, "", None, task="grounding")
    assert '<svg viewBox="0 0 40 30"' in html
    assert (html.count("<rect "), html.count("<li>")) == (2, 2)
    assert {"红色", "蓝"} <= set(re.findall(r">([^<]+)</span>", html))
    assert re.search(r'class="score">[\d.]+%<', html)


@pytest.mark.parametrize(
    ("task", "text", "labels", "shown"),
    [
        ("vqa", "什么颜色", "", 3),
        ("vqa", "什么颜色", "红色，蓝", 2),
        ("region", "1, 2，30,20", "", 3),
        ("color", "", "", 2),
        ("kind", "", "红色\n蓝\n红色", 2),
        ("ocr", "", "", 3),
        ("summarization", "图片描述了什么内容", "", 1),
        ("rte", "红色\n蓝", "", 2),
    ],
)
def test_every_kind_of_task_is_answered(of_all_tasks, photo, task, text, labels, shown):
    image = photo if TASKS.get(task, TASKS["caption"]).needs_image else None
    html = answer(of_all_tasks, image, text, labels, 3, 4, 6, "", None, task=task)
    assert html.count("<li>") == shown, html


@pytest.mark.parametrize(
    ("task", "text", "told"),
    [
        ("vqa", " ", "There is no text yet"),
        ("kind", "", "no answers to choose from"),
        ("region", "1,2,3", "is not four numbers"),
        ("region", "1,2,900,4", "does not fit an image of 40×30 pixels"),
    ],
)
def test_what_a_task_lacks_is_said(of_all_tasks, photo, task, text, told):
    assert told in answer(of_all_tasks, photo, text, "", 3, 4, 6, "", None, language="en", task=task)


def test_a_task_shows_the_fields_it_needs(of_all_tasks):
    def visible(task: str) -> list[bool]:
        updates = web.choose_task(lambda model: of_all_tasks, "tiny", task)
        parts = dict(zip(web.SHOWN_BY_TASK, updates, strict=True))
        assert parts["title"]["visible"] == parts["settings"]["visible"] != parts["seed"]["visible"]
        return [parts[name]["visible"] for name in ("image", "text", "labels", "prompt")]

    assert visible("caption") == [True, False, False, True]
    assert visible("grounding") == [True, True, False, False]
    assert visible("vqa") == [True, True, True, False]
    assert visible("summarization") == [False, True, False, False]
    assert visible("color") == [True, False, True, True]


# --------------------------------------------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def artist(drawer):
    return load_for_page(str(drawer))


def drawn(artist, text, number=2, seed=7, language="en"):
    """The signs of progress, and the page's last word."""
    asked = (None, "drawer", language, None, text, "", number, 1, 9, "", seed)
    *signs, last = web.answer_in_steps(lambda model: artist, threading.Lock(), *asked)
    return signs, last


def pixels_of(html: str) -> list[bytes]:
    files = [base64.b64decode(source) for source in re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)]
    return [Image.open(io.BytesIO(file)).tobytes() for file in files]


def test_a_text_is_drawn_best_image_first_with_its_seed(artist, monkeypatch):
    monkeypatch.setattr(web, "SECONDS_BETWEEN_SIGNS", 0.01)
    signs, html = drawn(artist, "red hat")
    images = web.pipeline_for(artist, "text-to-image")("red hat", num_images=2, seed=7)
    assert pixels_of(html) == [one["image"].tobytes() for one in images]
    assert re.findall(r'class="score">([^<]+)<', html) == [f"{one['score']:.2f}" for one in images]
    assert 'download="7-1.png"' in html
    assert "Seed: 7." in html
    assert all("Drawing" in sign and "%" in sign for sign in signs)
    assert signs, "66 steps and no sign of progress"


def test_without_a_seed_each_drawing_is_another_and_says_how_to_get_it_again(artist):
    html = drawn(artist, "red hat", number=1, seed=None)[1]
    again = int(re.search(r"Seed: (\d+)", html)[1])
    assert pixels_of(drawn(artist, "red hat", number=1, seed=again)[1]) == pixels_of(html)
    assert pixels_of(drawn(artist, "red hat", number=1, seed=None)[1]) != pixels_of(html)


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("en", " ", "There is no text yet"),
        ("en", "hat " * 65, "The text is too long: 65 words, of at most 64. Shorten it."),
        ("zh", "hat " * 65, "文字太长：共 65 个词，最多 64 个。请缩短文字。"),
        ("zh", "x" * 60, " 个词元，最多 60 个。请缩短文字。"),
    ],
)
def test_a_text_that_cannot_be_drawn_is_explained(artist, language, text, told):
    assert told in drawn(artist, text, language=language)[1]


def test_a_drawing_that_nobody_waits_for_ends(artist, monkeypatch):
    monkeypatch.setattr(web, "SECONDS_BETWEEN_SIGNS", 0.001)
    turn, seen = threading.Lock(), []
    real = web.Progress.__call__
    monkeypatch.setattr(web.Progress, "__call__", lambda own, *step: (seen.append(step), real(own, *step))[1])
    given = (None, "drawer", "en", None, "red hat", "", 1, 1, 9, "", 7)
    visit = web.answer_in_steps(lambda model: artist, turn, *given)
    next(visit)
    visit.close()
    with turn:  # free as soon as the work has ended
        assert len(seen) < 66


def test_a_page_of_a_model_that_draws_asks_for_a_text_and_a_seed(artist):
    page = web.build_page(["drawer"], lambda model: artist)
    shown = {part.elem_id: part.visible for part in page.blocks.values() if getattr(part, "elem_id", None)}
    assert (shown["text"], shown["seed"], shown["image"], shown["labels"]) == (True, True, False, False)
