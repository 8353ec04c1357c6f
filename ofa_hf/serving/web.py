"""The page: an image or a text in, answers or drawn images with their scores out, for each task of a model.

Its words are Chinese and English.

This file is the whole page, and it imports nothing of this package: `ofa-hf demo --web` serves it on this machine, and
`python -m hub_upload space` uploads it as a Space's `app.py`, with `page.json` and `example_*.jpg` next to it.
"""

import base64
import functools
import io
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from html import escape
from math import exp
from pathlib import Path
from typing import Any, NamedTuple


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which would report itself

import gradio as gr
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, Pipeline, pipeline
from transformers.utils import logging


logger = logging.get_logger(__name__)

SETTINGS_FILE = "page.json"  # {"models": ["owner/name", …]}
EXAMPLE_FILES = "example_*.jpg"
MAX_MEGABYTES = 20  # of an image file
MAX_CAPTIONS, MAX_BEAMS, MAX_TOKENS, MIN_TOKENS = 5, 10, 160, 4
DEFAULT_CAPTIONS, DEFAULT_TOKENS = 3, 30
MAX_PROMPT_CHARACTERS, MAX_TEXT_CHARACTERS = 200, 4000
MAX_LABELS = 200
MAX_SEED = 2**31 - 1
SECONDS_BETWEEN_SIGNS = 0.5  # of progress
SHOWN_SIDE = 1000  # pixels of an image with boxes
BOX_COLORS = ("#e11d48", "#2563eb", "#16a34a", "#d97706", "#9333ea", "#0891b2")
MAX_WAITING = 32  # visitors; the next one is asked to come back later
SECONDS_KEPT = 3600  # of visitors' images

WORDS = {
    "zh": {
        "title": "# OFA 看图作答\n放上一张图片，模型描述它、在图中定位，或回答问题。",
        "image": "图片",
        "drop": "把图片拖到这里、粘贴\n或点按选择",
        "examples": "示例",
        "ask": "作答",
        "draw_title": "# OFA 看文画图\n写一句话，模型把它画成图片。",
        "num_captions": "个数",
        "model": "模型",
        "task": "任务",
        "text": "文字",
        "text_info": "填入提示的问题、短语或文章；多个短语各占一行",
        "seed": "随机种子",
        "seed_info": "同一个种子画出同样的图片；留空则每次不同",
        "labels": "候选答案",
        "labels_info": "用逗号或换行分隔；留空则由模型自由作答，或用任务自带的答案",
        "settings": "更多设置",
        "prompt": "问题",
        "prompt_info": "留空则用模型训练时的问题",
        "num_beams": "束宽",
        "num_beams_info": "越大越细致，也越慢；至少与答案个数相同",
        "max_length": "长度上限",
        "max_length_info": "词元数；一个汉字约一个词元",
        "hint": "负的分数是每个词元的平均对数概率：越接近 0 越有把握；百分数是概率。",
        "no_image": "还没有图片",
        "no_image_advice": "请先放上一张图片，或点选一个示例。",
        "no_text": "还没有文字",
        "no_text_advice": "请填写“文字”一栏。",
        "no_labels": "还没有候选答案",
        "no_labels_advice": "请填写“候选答案”一栏。",
        "drawing": "正在画",
        "drawn_with": "随机种子：{seed}。图片由模型生成，最好的在前；点图片可以保存。",
        "nothing_found": "没有找到",
        "large_image": "图片太大",
        "large_image_advice": "文件有 {megabytes:.1f} MB，最多 {most} MB。请先把图片缩小。",
        "long_words": "文字太长：共 {length} 个词，最多 {limit} 个。请缩短文字。",
        "long_tokens": "文字太长：连同提示共 {length} 个词元，最多 {limit} 个。请缩短文字。",
        "bad_input": "无法作答",
        "bad_model": "这个模型无法载入",
        "failed": "没有成功，原因已写入服务器日志",
    },
    "en": {
        "title": "# OFA about images\nAdd an image: the model describes it, finds things or answers questions.",
        "image": "Image",
        "drop": "Drop or paste an image here\nor tap to choose one",
        "examples": "Examples",
        "ask": "Answer",
        "draw_title": "# OFA draws\nWrite a sentence, and the model draws it.",
        "num_captions": "How many",
        "model": "Model",
        "task": "Task",
        "text": "Text",
        "text_info": "What the prompt asks about: a question, a phrase, an article; several phrases one a line",
        "seed": "Seed",
        "seed_info": "The same seed draws the same images; empty: other ones each time",
        "labels": "Answers to choose from",
        "labels_info": "Divided by commas or lines; empty: the model answers freely, or by the task's own list",
        "settings": "More settings",
        "prompt": "Question",
        "prompt_info": "Leave empty for the one the model was trained with",
        "num_beams": "Beams",
        "num_beams_info": "More search longer and slower; at least one per answer",
        "max_length": "Maximum length",
        "max_length_info": "In tokens; a Chinese character is about one",
        "hint": "A negative score is the mean log-probability per token: the closer to 0, the surer. Percentages are "
        "probabilities.",
        "no_image": "There is no image yet",
        "no_image_advice": "Add an image first, or choose an example.",
        "no_text": "There is no text yet",
        "no_text_advice": "Fill in the field Text.",
        "no_labels": "There are no answers to choose from yet",
        "no_labels_advice": "Fill in the field below the text.",
        "drawing": "Drawing",
        "drawn_with": "Seed: {seed}. A model made these images, the best one first; click one to save it.",
        "nothing_found": "Nothing found",
        "large_image": "The image is too large",
        "large_image_advice": "The file has {megabytes:.1f} MB, the most is {most} MB. Make the image smaller.",
        "long_words": "The text is too long: {length} words, of at most {limit}. Shorten it.",
        "long_tokens": "The text is too long: {length} tokens with its prompt, of at most {limit}. Shorten it.",
        "bad_input": "This cannot be answered",
        "bad_model": "This model cannot be loaded",
        "failed": "Something went wrong; see the server log",
    },
}

FIRST_WORDS = WORDS["zh"]

STYLE = """
.gradio-container { width: 100%; max-width: 64rem !important; margin: 0 auto !important; }
#head { align-items: start; } #head h1 { margin: 0 0 .35rem; }
#language { flex: none; width: auto; min-width: 0; overflow: visible; }
#language .wrap { flex-wrap: nowrap; } #language label { white-space: nowrap; padding: .4rem .7rem; }
#examples > .gallery { display: grid; grid-template-columns: repeat(6, 1fr); gap: .5rem; }
#examples .container { width: 100%; height: auto; aspect-ratio: 1; }
#examples img { width: 100%; height: 100%; object-fit: cover; }
@media (max-width: 40rem) { #head { flex-direction: column-reverse; gap: .5rem; } #language { align-self: end; } }
#result ol { list-style: none; margin: 0; padding: 0; }
#result li { margin: 0; padding: .6rem 0; border-bottom: 1px solid var(--border-color-primary); }
#result li:last-child { border-bottom: 0; }
#result .line { display: flex; gap: 1rem; justify-content: space-between; align-items: baseline; }
#result .caption { font-size: 1.15rem; font-weight: 600; line-height: 1.5; overflow-wrap: anywhere; }
#result .score { font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
#result .bar { height: 4px; margin-top: .35rem; border-radius: 2px; background: var(--color-accent); opacity: .75; }
#result svg { display: block; width: 100%; height: auto; max-height: 70vh; }
#result .drawn { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .75rem; margin: 0; }
#result .drawn img { display: block; width: 100%; height: auto; border-radius: 4px; margin: 0; }
#result .drawn figure { margin: 0; } #result .drawn figcaption { text-align: end; }
#result .note { color: var(--body-text-color-subdued); font-size: .85rem; margin: .75rem 0 0; }
#result .track { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
#result .track div { height: 100%; background: var(--color-accent); }
#result rect { fill: none; stroke-width: 3px; vector-effect: non-scaling-stroke; }
#result .empty { color: var(--body-text-color-subdued); text-align: center; padding: 2rem 0; }
#result .error { border-left: 4px solid var(--error-icon-color, #dc2626); padding: .25rem 0 .25rem .9rem; }
#result .error p { margin: .25rem 0 0; overflow-wrap: anywhere; }
#hint p { color: var(--body-text-color-subdued); font-size: .85rem; }
"""
EMPTY = '<p class="empty">答案会出现在这里<br>Answers appear here</p>'
# Ctrl-V anywhere on the page chooses an image; images that browsers cannot show, such as TIFF, leave no broken icon.
SCRIPT = """() => {
    document.addEventListener("paste", event => {
        const file = [...event.clipboardData.files].find(file => file.type.startsWith("image/"));
        const input = document.querySelector("#image input[type=file]");
        if (!file || !input) return;
        const chosen = new DataTransfer();
        chosen.items.add(file);
        input.files = chosen.files;
        input.dispatchEvent(new Event("change", {bubbles: true}));
    });
    for (const [event, opacity] of [["error", 0], ["load", 1]])
        document.addEventListener(event, ({target}) => {
            if (target.matches?.("#image img")) target.style.opacity = opacity;
        }, true);
}"""
TELL_LANGUAGE = "(language) => { document.documentElement.lang = language; return language }"  # to screen readers
ASKED_LANGUAGE = f"() => ({TELL_LANGUAGE})(new URLSearchParams(location.search).get('lang') === 'en' ? 'en' : 'zh')"


def theme() -> gr.Theme:
    """Gradio's default theme in another color, with fonts of the visitor's machine."""
    fonts = ["system-ui", "-apple-system", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    look = gr.themes.Default(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "monospace"])
    return look.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


# ---------------------------------------------------------------------------------------------------- answers


def load_from_hub(model: str) -> Pipeline:
    """Load a model with its own code, as on a machine without this package."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = getattr(AutoConfig.from_pretrained(model, trust_remote_code=True), "custom_pipelines", None)
    return pipeline(next(iter(known or ["image-to-text"])), model=model, trust_remote_code=True, device=device)


def loader(models: Collection[str], load: Callable[[str], Pipeline]) -> Callable[[str], Pipeline]:
    """Load each of these models once and no other: loading runs a model's code, so visitors cannot choose freely."""

    @functools.cache
    def load_once(model: str) -> Pipeline:
        if model not in models:
            raise ValueError(f"{model!r} is no model of this page. It has {', '.join(models)}. Choose one of them.")
        return load(model)

    return load_once


def pipeline_for(loaded: Pipeline, name: str) -> Pipeline:
    """The pipeline of this name for a model that is loaded: its class stands in the file of the loaded one's."""
    if name == loaded.pipeline_name:
        return loaded
    code = sys.modules[type(loaded).__module__]
    kinds = [kind for kind in vars(code).values() if getattr(kind, "pipeline_name", None) == name]
    return kinds[0](model=loaded.model, processor=loaded.processor, device=loaded.device)


class NamedImage(io.BytesIO):
    """An image file's bytes under the name its owner gave it, which error messages use."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class Wish(NamedTuple):
    """What a visitor asks for, within what the page allows."""

    image: NamedImage | None
    task: Any  # a row of the model's processor
    text: str
    labels: list[str]
    number: int
    beams: int
    length: int
    prompt: str | None
    seed: int
    on_step: Callable[[int, int], object] | None  # of a drawing, see `Progress`

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    @property
    def values(self) -> dict[str, Any]:
        """What fills the slots of the prompt: the whole text, or a line each."""
        fields = self.task.fields
        values = dict(zip(fields, self.lines if len(fields) > 1 else [self.text], strict=False))
        if "box" in values:
            values["box"] = [part.strip() for part in values["box"].replace("，", ",").split(",")]
        return values


# One function per pipeline: a wish → the pipeline's answers.


def ask_about_image(pipe: Pipeline, wish: Wish) -> list[dict]:
    return pipe(
        {"image": wish.image, "text": wish.values} if wish.values else wish.image,
        task=wish.task.name,
        **({} if wish.values else {"prompt": wish.prompt}),
        num_return_sequences=wish.number,
        num_beams=wish.beams,
        max_length=wish.length,
        return_scores=True,
    )


def ask_question(pipe: Pipeline, wish: Wish) -> list[dict]:
    settings = {"candidate_answers": wish.labels} if wish.labels else {"max_new_tokens": wish.length}
    return pipe(image=wish.image, question=wish.text, task=wish.task.name, top_k=wish.number, **settings)


def locate(pipe: Pipeline, wish: Wish) -> list[dict]:
    return pipe(wish.image, candidate_labels=wish.lines, task=wish.task.name)


def classify(pipe: Pipeline, wish: Wish) -> list[dict]:
    return pipe(wish.image, candidate_labels=wish.labels, task=wish.task.name, top_k=wish.number)


def summarize(pipe: Pipeline, wish: Wish) -> list[dict]:
    return pipe(wish.text, task=wish.task.name, num_beams=wish.beams, max_length=wish.length)


def classify_text(pipe: Pipeline, wish: Wish) -> list[dict]:
    return pipe(wish.values, task=wish.task.name, candidate_labels=wish.labels or None)


def draw(pipe: Pipeline, wish: Wish) -> list[dict]:
    images = pipe(
        wish.text, task=wish.task.name, num_images=wish.number, seed=wish.seed, num_beams=1, on_step=wish.on_step
    )
    return [{**image, "seed": wish.seed} for image in images]


ASK = {
    "image-to-text": ask_about_image,
    "visual-question-answering": ask_question,
    "zero-shot-object-detection": locate,
    "zero-shot-image-classification": classify,
    "summarization": summarize,
    "text-classification": classify_text,
    "text-to-image": draw,
}


def within(number: float, least: int, most: int) -> int:
    return int(min(max(number, least), most))


def limits(loaded: Pipeline) -> dict[str, Any]:
    """A model's settings within what the page allows: `num_beams`, `max_length`, `most_tokens`, `tasks`."""
    settings, processor = loaded.model.generation_config, loaded.processor
    most_tokens = min(MAX_TOKENS, loaded.model.config.max_position_embeddings)
    length = settings.max_new_tokens or settings.max_length or DEFAULT_TOKENS
    return {
        "num_beams": within(settings.num_beams or 1, 1, MAX_BEAMS),
        "max_length": within(length, MIN_TOKENS, most_tokens),
        "most_tokens": most_tokens,
        "tasks": [name for name in processor.tasks if processor.find_task(name).pipeline in ASK],
        "task": processor.default_task,
    }


def answers_html(answers: Sequence[dict], image: NamedImage | None, words: dict[str, str]) -> str:
    """Answers as a list under the image with its boxes; a bar's length is a probability."""
    boxes = [answer["box"] for answer in answers if answer.get("box")]
    if not answers:
        return f'<p class="empty">{escape(words["nothing_found"])}</p>'
    if "image" in answers[0]:
        return images_html(answers, words)
    drawn = boxes_html(image, boxes) if boxes and image is not None else ""
    return f"{drawn}<ol>{''.join(answer_html(number, answer) for number, answer in enumerate(answers))}</ol>"


def images_html(answers: Sequence[dict], words: dict[str, str]) -> str:
    """Drawn images, the best one first, each with its score; a click saves it."""
    figures = []
    for number, answer in enumerate(answers, 1):
        answer["image"].save(file := io.BytesIO(), "PNG")
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        name = f"{answer['seed']}-{number}.png"
        figures.append(
            f'<figure><a href="{source}" download="{name}"><img src="{source}" alt="{number}"></a>'
            f'<figcaption class="score">{answer["score"]:.2f}</figcaption></figure>'
        )
    note = escape(words["drawn_with"].format(seed=answers[0]["seed"]))
    return f'<div class="drawn">{"".join(figures)}</div><p class="note">{note}</p>'


def progress_html(done: int, total: int, words: dict[str, str]) -> str:
    """How much is drawn, as a bar."""
    share = f"{done / total:.0%}"
    bar = f'<div class="track" role="progressbar"><div style="width: {share}"></div></div>'
    return f'<div class="line"><span>{escape(words["drawing"])}</span><span class="score">{share}</span></div>{bar}'


def answer_html(number: int, answer: dict) -> str:
    """An answer, its score as a log-probability (below 0) or a probability, and for a box a dot in its color."""
    names = ("generated_text", "answer", "label", "summary_text")
    text, score = next((answer[name] for name in names if name in answer), ""), answer.get("score")
    shown = "" if score is None else f"{score:.2f}" if score < 0 else f"{score:.1%}"
    width = 0.0 if score is None else exp(score) if score < 0 else score
    color = f' style="color: {BOX_COLORS[number % len(BOX_COLORS)]}"' if "box" in answer else ""
    box = "，".join(f"{side:.0f}" for side in answer["box"].values()) if answer.get("box") else ""
    return (
        f'<li><div class="line"><span class="caption"{color}>{escape(text or box) or "—"}</span>'
        f'<span class="score">{shown}</span></div>'
        f'<div class="bar" style="width: {min(width, 1.0):.1%}"></div></li>'
    )


def boxes_html(image: NamedImage, boxes: Sequence[dict]) -> str:
    """An image with boxes in pixels drawn over it."""
    image.seek(0)
    with Image.open(image) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    width, height = upright.size
    upright.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    upright.save(shown := io.BytesIO(), "JPEG", quality=85)
    source = base64.b64encode(shown.getvalue()).decode()
    drawn = "".join(rect_html(number, *box.values()) for number, box in enumerate(boxes))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><image href="data:image/jpeg;base64,{source}" '
        f'width="{width}" height="{height}"/>{drawn}</svg>'
    )


def rect_html(number: int, xmin: float, ymin: float, xmax: float, ymax: float) -> str:
    """A box, which the model may write with its sides exchanged."""
    color, left, top = BOX_COLORS[number % len(BOX_COLORS)], min(xmin, xmax), min(ymin, ymax)
    size = f'width="{abs(xmax - xmin):.1f}" height="{abs(ymax - ymin):.1f}"'
    return f'<rect x="{left:.1f}" y="{top:.1f}" {size} stroke="{color}"/>'


def error_html(head: str, text: str = "") -> str:
    """What went wrong and what to do, shown in place of answers."""
    return f'<div class="error" role="alert"><strong>{escape(head)}</strong><p>{escape(text)}</p></div>'


def split_labels(text: str | None) -> list[str]:
    """Labels divided by commas or lines, each once."""
    labels = [label.strip() for label in re.split(r"[\n,，]", text or "")]
    return list(dict.fromkeys(filter(None, labels)))[:MAX_LABELS]


def seed_of(asked: Any) -> int:
    """The seed that was asked for; another one each time where none was."""
    return secrets.randbelow(MAX_SEED + 1) if asked in (None, "") else within(float(asked), 0, MAX_SEED)


def wish_of(loaded: Pipeline, image: NamedImage | None, task: Any, asked: Sequence[Any], on_step: Any = None) -> Wish:
    """What is asked, limited to what the page allows; `asked` are the values of `SETTINGS_ASKED`."""
    text, labels, number, beams, length, prompt, seed = asked
    number = within(number, 1, MAX_CAPTIONS)
    return Wish(
        image,
        task,
        (text or "").strip()[:MAX_TEXT_CHARACTERS],
        split_labels(labels),
        number,
        within(beams, number, MAX_BEAMS),
        within(length, MIN_TOKENS, limits(loaded)["most_tokens"]),
        (prompt or "").strip()[:MAX_PROMPT_CHARACTERS] or None,
        seed_of(seed),
        on_step,
    )


def missing_of(wish: Wish) -> str:
    """What a visitor has still to fill in, a key of `WORDS`."""
    if wish.task.fields and not wish.text:
        return "no_text"
    return "no_labels" if wish.task.answer == "choice" and not wish.task.choices and not wish.labels else ""


class Progress:
    """How far a drawing is.

    Args:
        done, total: steps.
        is_left: whether nobody waits any more, which ends the drawing.
    """

    def __init__(self):
        self.done, self.total, self.is_left = 0, 0, False

    def __call__(self, done: int, total: int) -> None:
        if self.is_left:
            raise VisitorLeft
        self.done, self.total = done, total


class VisitorLeft(Exception):
    """Ends what nobody waits for."""


def answer_in_steps(load: Callable[[str], Pipeline], turn: Any, *given) -> Iterator[str]:
    """What the page shows while a drawing goes on, and at last what `answer` returns.

    Args:
        turn: a lock; whoever left before may still keep the model busy for a step.
        given: further arguments of `answer`.
    """
    progress, found = Progress(), []

    def work() -> None:
        with turn:
            found.append(answer(load, *given, on_step=progress))

    thread, words, seen = threading.Thread(target=work, daemon=True), WORDS["en" if given[2] == "en" else "zh"], 0
    thread.start()
    try:
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_SIGNS)
            if thread.is_alive() and progress.done > seen:
                seen = progress.done
                yield progress_html(seen, progress.total, words)
    finally:
        progress.is_left = True
    yield found[0]


def answer(
    load: Callable[[str], Pipeline],
    image: dict | None,
    model: str,
    language: str,
    name: str,
    *asked,
    on_step: Callable[[int, int], object] | None = None,
) -> str:
    """What the page shows for an image and its settings: answers, or an error message.

    Args:
        load: model name → pipeline.
        image: Gradio's description of the uploaded file, with `path` and `orig_name`; None if there is none.
        name: of the task; None or a name that the model has not stands for its default task.
        asked: the values of `SETTINGS_ASKED`.
        on_step: called during a drawing, see `Progress`.
    """
    words = WORDS["en" if language == "en" else "zh"]
    try:
        loaded = load(model)
    except Exception as error:
        return broken_model(model, error, words)
    processor = loaded.processor
    task = processor.find_task(name if name in processor.tasks else None)
    path = (image or {}).get("path") or ""
    if task.needs_image and not os.path.isfile(path):  # none was added, or it expired
        return error_html(words["no_image"], words["no_image_advice"])
    megabytes = os.path.getsize(path) / 1e6 if task.needs_image else 0
    if megabytes > MAX_MEGABYTES:
        advice = words["large_image_advice"].format(megabytes=megabytes, most=MAX_MEGABYTES)
        return error_html(words["large_image"], advice)
    try:
        file = NamedImage(Path(path).read_bytes(), image.get("orig_name") or "") if task.needs_image else None
        wish = wish_of(loaded, file, task, asked, on_step)
        missing = missing_of(wish)
        if missing:
            return error_html(words[missing], words[f"{missing}_advice"])
        return answers_html(ASK[task.pipeline](pipeline_for(loaded, task.pipeline), wish), file, words)
    except ValueError as error:  # ImageError is one; its text is for the visitor
        return error_html(words["bad_input"], reason_of(error, words))
    except VisitorLeft:
        return ""
    except Exception:  # out of memory or a bug: a visitor can fix neither
        logger.exception("a visitor got no answer")
        return error_html(words["failed"])


def reason_of(error: ValueError, words: dict[str, str]) -> str:
    """Why a wish cannot be granted: in the visitor's language if it is known to be the length of the text."""
    reason = words.get(f"long_{getattr(error, 'unit', '')}")
    return str(error) if reason is None else reason.format(length=error.length, limit=error.limit)


def broken_model(model: str, error: Exception, words: dict[str, str]) -> str:
    logger.error(f"{model} cannot be loaded: {error}")
    return error_html(words["bad_model"], f"{model} ({type(error).__name__})")


# ------------------------------------------------------------------------------------------------------- page

# Parts whose values `answer` takes, in its order.
SETTINGS_ASKED = ("text", "labels", "num_captions", "num_beams", "max_length", "prompt", "seed")
ASKED = ("image", "model", "language", "task", *SETTINGS_ASKED)
# Parts that depend on the task, in the order of `choose_task`.
SHOWN_BY_TASK = (
    *("image", "examples", "text", "labels", "prompt"),
    *("seed", "draw_title", "title", "settings", "result"),
)


def build_page(
    models: Sequence[str], load: Callable[[str], Pipeline] = load_from_hub, examples: Sequence[str | Path] = ()
) -> gr.Blocks:
    """Lay out the page and load the first model; the others are loaded when a visitor chooses them, each once.

    Args:
        models: folders or Hub ids, to choose from.
        load: model name → pipeline; its errors are those of this function for the first model.
        examples: image files.
    """
    load = loader(models, load)
    first = load(models[0])
    with gr.Blocks(analytics_enabled=False, title="OFA 看图作答", delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        parts = head(first)
        with gr.Row():
            with gr.Column():
                parts |= question(examples, first)
            with gr.Column():
                parts |= reply() | settings(models, first)
        react(page, parts, load)
    return page


# Parts of the page by name. Those named in `WORDS` are translated.


def head(first: Pipeline) -> dict[str, Any]:
    shown = shown_of_drawing(first.processor.find_task())
    with gr.Row(elem_id="head"):
        title = gr.Markdown(FIRST_WORDS["title"], visible=not shown["visible"])
        draw_title = gr.Markdown(FIRST_WORDS["draw_title"], **shown)
        language = gr.Radio(
            [("中文", "zh"), ("English", "en")],
            value="zh",
            label="语言 Language",
            show_label=False,
            container=False,
            elem_id="language",
        )
    return {"title": title, "draw_title": draw_title, "language": language}


def question(examples: Sequence[str | Path], first: Pipeline) -> dict[str, Any]:
    its, task = limits(first), first.processor.find_task()
    chosen = gr.Dropdown(
        its["tasks"], value=task.name, label=FIRST_WORDS["task"], visible=len(its["tasks"]) > 1, elem_id="task"
    )
    image = gr.Image(
        type="filepath",
        sources=["upload"],
        buttons=[],
        label=FIRST_WORDS["image"],
        placeholder=FIRST_WORDS["drop"],
        height="min(20rem, 45vh)",
        elem_id="image",
        visible=task.needs_image,
    )
    text = gr.Textbox(
        label=FIRST_WORDS["text"],
        info=FIRST_WORDS["text_info"],
        lines=2,
        max_length=MAX_TEXT_CHARACTERS,
        elem_id="text",
        **shown_of_text(first, task),
    )
    labels = gr.Textbox(
        label=FIRST_WORDS["labels"], info=FIRST_WORDS["labels_info"], elem_id="labels", **shown_of_labels(task)
    )
    shown = gr.Examples(
        list(map(str, examples)),
        image,
        label=FIRST_WORDS["examples"],
        elem_id="examples",
        api_visibility="private",
        visible=task.needs_image,
    )
    seed = gr.Number(
        label=FIRST_WORDS["seed"],
        info=FIRST_WORDS["seed_info"],
        value=None,
        minimum=0,
        maximum=MAX_SEED,
        precision=0,
        elem_id="seed",
        **shown_of_drawing(task),
    )
    ask = gr.Button(FIRST_WORDS["ask"], variant="primary", elem_id="ask")
    parts = {"task": chosen, "image": image, "text": text, "labels": labels, "seed": seed}
    return parts | {"shown": shown, "examples": shown.dataset, "ask": ask}


def shown_of_text(loaded: Pipeline, task: Any) -> dict[str, Any]:
    """The field of a text is there if the prompt has slots; it shows the prompt."""
    prompt = task.prompts[loaded.processor.language].strip()
    return {"visible": bool(task.fields), "placeholder": prompt if task.fields else ""}


def shown_of_drawing(task: Any) -> dict[str, Any]:
    """What belongs to drawing is there for tasks that answer with images."""
    return {"visible": task.answer == "image"}


def shown_of_labels(task: Any) -> dict[str, Any]:
    """The field of answers is there if a list decides, or may decide; it shows the task's own list."""
    can_choose = task.answer == "choice" or task.pipeline == "visual-question-answering"
    return {"visible": can_choose, "placeholder": ", ".join(task.choices)}


def reply() -> dict[str, Any]:
    result = gr.HTML(EMPTY, container=True, elem_id="result")
    return {"result": result, "hint": gr.Markdown(FIRST_WORDS["hint"], elem_id="hint")}


def settings(models: Sequence[str], loaded: Pipeline) -> dict[str, Any]:
    first, draws = limits(loaded), shown_of_drawing(loaded.processor.find_task())["visible"]
    parts = {
        "num_captions": slider("num_captions", 1, MAX_CAPTIONS, DEFAULT_CAPTIONS),
        "model": gr.Dropdown(
            list(models), value=models[0], label=FIRST_WORDS["model"], visible=len(models) > 1, elem_id="model"
        ),
    }
    with gr.Accordion(FIRST_WORDS["settings"], open=False, visible=not draws) as parts["settings"]:
        parts["prompt"] = gr.Textbox(
            label=FIRST_WORDS["prompt"],
            info=FIRST_WORDS["prompt_info"],
            max_length=MAX_PROMPT_CHARACTERS,
        )
        parts["num_beams"] = slider("num_beams", 1, MAX_BEAMS, first["num_beams"])
        parts["max_length"] = slider("max_length", MIN_TOKENS, first["most_tokens"], first["max_length"])
    return parts


def slider(name: str, least: int, most: int, value: int) -> gr.Slider:
    return gr.Slider(least, most, value, step=1, label=FIRST_WORDS[name], info=FIRST_WORDS.get(f"{name}_info"))


def react(page: gr.Blocks, parts: dict[str, Any], load: Callable[[str], Pipeline]) -> None:
    """Connect the visitor's actions; the model handles one at a time."""
    private: dict[str, Any] = {"api_visibility": "private"}
    with_model = {**private, "concurrency_id": "model", "concurrency_limit": 1}
    at_once = {**private, "queue": False, "show_progress": "hidden"}
    asking = {
        "fn": functools.partial(answer_in_steps, load, threading.Lock()),
        "inputs": [parts[name] for name in ASKED],
        "outputs": parts["result"],
        "preprocess": False,  # the file as uploaded: the model's own reader decodes it and reports errors
        **with_model,
    }
    gr.on([parts["image"].upload, parts["ask"].click, parts["prompt"].submit], **asking)
    parts["shown"].load_input_event.then(**asking)
    parts["image"].clear(lambda: EMPTY, None, parts["result"], **at_once)

    model, language, task = parts["model"], parts["language"], parts["task"]
    asked = [parts[name] for name in SHOWN_BY_TASK]
    changed = [*(parts[name] for name in ("task", "num_beams", "max_length")), *asked]
    model.input(functools.partial(choose, load), [model, language], changed, **with_model)
    task.input(functools.partial(choose_task, load), [model, task], asked, **with_model)
    named = [name for name in parts if name in FIRST_WORDS]
    translated = [parts[name] for name in named]
    language.change(functools.partial(translate, named), language, translated, js=TELL_LANGUAGE, **at_once)
    page.load(None, None, language, js=ASKED_LANGUAGE)


def choose(load: Callable[[str], Pipeline], model: str, language: str) -> list:
    """Load the chosen model and show its tasks and settings: updates of task, beams, length and `choose_task`'s."""
    try:
        its = limits(load(model))
    except Exception as error:
        return [gr.skip()] * (2 + len(SHOWN_BY_TASK)) + [broken_model(model, error, WORDS[language])]
    tasks = gr.update(choices=its["tasks"], value=its["task"], visible=len(its["tasks"]) > 1)
    length = gr.update(maximum=its["most_tokens"], value=its["max_length"])
    return [tasks, gr.update(value=its["num_beams"]), length, *choose_task(load, model, its["task"])]


def choose_task(load: Callable[[str], Pipeline], model: str, name: str) -> list:
    """Show what a task needs: updates of `SHOWN_BY_TASK`."""
    loaded = load(model)
    task = loaded.processor.find_task(name)
    has_image = gr.update(visible=task.needs_image)
    text, labels = gr.update(**shown_of_text(loaded, task)), gr.update(**shown_of_labels(task))
    own = task.pipeline == "image-to-text" and not task.fields
    prompt = gr.update(visible=own, placeholder=task.prompts[loaded.processor.language].strip())
    draws = shown_of_drawing(task)
    others = gr.update(visible=not draws["visible"])
    return [has_image, has_image, text, labels, prompt, gr.update(**draws), gr.update(**draws), others, others, EMPTY]


def translate(names: Sequence[str], language: str) -> list:
    """The page's texts in a language: an update for each named part."""
    return [update_of(name, WORDS[language]) for name in names]


def update_of(name: str, words: dict[str, str]) -> Any:
    if name in ("title", "draw_title", "hint", "ask"):
        return gr.update(value=words[name])
    if name == "image":
        return gr.update(label=words["image"], placeholder=words["drop"])
    info = {"info": words[f"{name}_info"]} if f"{name}_info" in words else {}
    return gr.update(label=words[name], **info)


def launch(page: gr.Blocks, **options) -> tuple:
    """Serve a page; `options` and result are those of Gradio's `launch`."""
    return page.queue(max_size=MAX_WAITING).launch(
        theme=theme(),
        css=STYLE,
        js=SCRIPT,
        max_file_size=f"{MAX_MEGABYTES}mb",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        **options,
    )


def main() -> None:
    """Serve the models named in `page.json` next to this file."""
    folder = Path(__file__).parent
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    launch(build_page(settings["models"], examples=sorted(folder.glob(EXAMPLE_FILES))))


if __name__ == "__main__":
    main()
