"""The page: an image in, captions with their scores out, in Chinese and in English.

This file is the whole page, and it imports nothing of this package: `ofa-hf demo --web` serves it on this machine, and
`python -m hub_upload space` uploads it as a Space's `app.py`, with `page.json` and `example_*.jpg` next to it.
"""

import functools
import io
import json
import os
from collections.abc import Callable, Collection, Sequence
from html import escape
from math import exp
from pathlib import Path
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which would report itself

import gradio as gr
import torch
from transformers import Pipeline, pipeline
from transformers.utils import logging


logger = logging.get_logger(__name__)

SETTINGS_FILE = "page.json"  # {"models": ["owner/name", …]}
EXAMPLE_FILES = "example_*.jpg"
MAX_MEGABYTES = 20  # of an image file
MAX_CAPTIONS, MAX_BEAMS, MAX_TOKENS, MIN_TOKENS = 5, 10, 160, 4
DEFAULT_CAPTIONS, DEFAULT_TOKENS = 3, 30
MAX_PROMPT_CHARACTERS = 200
MAX_WAITING = 32  # visitors; the next one is asked to come back later
SECONDS_KEPT = 3600  # of visitors' images

WORDS = {
    "zh": {
        "title": "# OFA 看图说话\n放上一张图片，模型用中文描述它。",
        "image": "图片",
        "drop": "把图片拖到这里、粘贴\n或点按选择",
        "examples": "示例",
        "ask": "生成描述",
        "num_captions": "描述条数",
        "model": "模型",
        "settings": "更多设置",
        "prompt": "问题",
        "prompt_info": "留空则用模型训练时的问题",
        "num_beams": "束宽",
        "num_beams_info": "越大越细致，也越慢；至少与描述条数相同",
        "max_length": "长度上限",
        "max_length_info": "词元数；一个汉字约一个词元",
        "hint": "分数是每个词元的平均对数概率：越接近 0，模型越有把握。",
        "no_image": "还没有图片",
        "no_image_advice": "请先放上一张图片，或点选一个示例。",
        "large_image": "图片太大",
        "large_image_advice": "文件有 {megabytes:.1f} MB，最多 {most} MB。请先把图片缩小。",
        "bad_image": "这张图片无法使用",
        "bad_model": "这个模型无法载入",
        "failed": "没有成功，原因已写入服务器日志",
    },
    "en": {
        "title": "# OFA image captioning\nAdd an image, and the model describes it in Chinese.",
        "image": "Image",
        "drop": "Drop or paste an image here\nor tap to choose one",
        "examples": "Examples",
        "ask": "Caption",
        "num_captions": "Number of captions",
        "model": "Model",
        "settings": "More settings",
        "prompt": "Question",
        "prompt_info": "Leave empty for the one the model was trained with",
        "num_beams": "Beams",
        "num_beams_info": "More search longer and slower; at least one per caption",
        "max_length": "Maximum length",
        "max_length_info": "In tokens; a Chinese character is about one",
        "hint": "The score is the mean log-probability per token: the closer to 0, the more confident the model.",
        "no_image": "There is no image yet",
        "no_image_advice": "Add an image first, or choose an example.",
        "large_image": "The image is too large",
        "large_image_advice": "The file has {megabytes:.1f} MB, the most is {most} MB. Make the image smaller.",
        "bad_image": "This image cannot be used",
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
#result .empty { color: var(--body-text-color-subdued); text-align: center; padding: 2rem 0; }
#result .error { border-left: 4px solid var(--error-icon-color, #dc2626); padding: .25rem 0 .25rem .9rem; }
#result .error p { margin: .25rem 0 0; overflow-wrap: anywhere; }
#hint p { color: var(--body-text-color-subdued); font-size: .85rem; }
"""
EMPTY = '<p class="empty">描述会出现在这里<br>Captions appear here</p>'
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


# --------------------------------------------------------------------------------------------------- captions


def load_from_hub(model: str) -> Pipeline:
    """Load a model with its own code, as on a machine without this package."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return pipeline("image-to-text", model=model, trust_remote_code=True, device=device)


def loader(models: Collection[str], load: Callable[[str], Pipeline]) -> Callable[[str], Pipeline]:
    """Load each of these models once and no other: loading runs a model's code, so visitors cannot choose freely."""

    @functools.cache
    def load_once(model: str) -> Pipeline:
        if model not in models:
            raise ValueError(f"{model!r} is no model of this page. It has {', '.join(models)}. Choose one of them.")
        return load(model)

    return load_once


class NamedImage(io.BytesIO):
    """An image file's bytes under the name its owner gave it, which error messages use."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def describe(
    captioner: Pipeline,
    path: str | Path,
    name: str,
    num_captions: float,
    num_beams: float,
    max_length: float,
    prompt: str | None,
) -> list[dict]:
    """Caption an image file; numbers are limited to what the page allows.

    Args:
        name: of the file, for messages.
        num_beams: one for each caption if it is less.
        prompt: empty for the model's own.

    Returns:
        `{"generated_text", "score"}`, best first.

    Raises:
        ValueError: the image cannot be read; the message is for the visitor.
    """
    num_captions = within(num_captions, 1, MAX_CAPTIONS)
    return captioner(
        NamedImage(Path(path).read_bytes(), name),
        prompt=(prompt or "").strip()[:MAX_PROMPT_CHARACTERS] or None,
        num_return_sequences=num_captions,
        num_beams=within(num_beams, num_captions, MAX_BEAMS),
        max_length=within(max_length, MIN_TOKENS, limits(captioner)["most_tokens"]),
        return_scores=True,
    )


def within(number: float, least: int, most: int) -> int:
    return int(min(max(number, least), most))


def limits(captioner: Pipeline) -> dict[str, Any]:
    """A model's settings within what the page allows: `num_beams`, `max_length`, `most_tokens`, `prompt`."""
    settings = captioner.model.generation_config
    most_tokens = min(MAX_TOKENS, captioner.model.config.max_position_embeddings)
    return {
        "num_beams": within(settings.num_beams or 1, 1, MAX_BEAMS),
        "max_length": within(settings.max_length or DEFAULT_TOKENS, MIN_TOKENS, most_tokens),
        "most_tokens": most_tokens,
        "prompt": captioner.processor.prompt_for(),
    }


def captions_html(captions: Sequence[dict]) -> str:
    """Captions as a list; the length of the bar is the mean probability of a token."""
    return f"<ol>{''.join(map(caption_html, captions))}</ol>"


def caption_html(caption: dict) -> str:
    score = caption["score"]
    return (
        f'<li><div class="line"><span class="caption" lang="zh">{escape(caption["generated_text"]) or "—"}</span>'
        f'<span class="score">{score:.2f}</span></div>'
        f'<div class="bar" style="width: {exp(min(score, 0.0)):.1%}"></div></li>'
    )


def error_html(head: str, text: str = "") -> str:
    """What went wrong and what to do, shown in place of captions."""
    return f'<div class="error" role="alert"><strong>{escape(head)}</strong><p>{escape(text)}</p></div>'


def answer(load: Callable[[str], Pipeline], image: dict | None, model: str, language: str, *settings: Any) -> str:
    """What the page shows for an image and its settings: captions, or an error message.

    Args:
        load: model name → pipeline.
        image: Gradio's description of the uploaded file, with `path` and `orig_name`; None if there is none.
        settings: of `describe`, in its order.
    """
    words = WORDS["en" if language == "en" else "zh"]
    path = (image or {}).get("path") or ""
    if not os.path.isfile(path):  # none was added, or it expired
        return error_html(words["no_image"], words["no_image_advice"])
    megabytes = os.path.getsize(path) / 1e6
    if megabytes > MAX_MEGABYTES:
        advice = words["large_image_advice"].format(megabytes=megabytes, most=MAX_MEGABYTES)
        return error_html(words["large_image"], advice)
    try:
        captioner = load(model)
    except Exception as error:
        return broken_model(model, error, words)
    try:
        return captions_html(describe(captioner, path, image.get("orig_name") or "", *settings))
    except ValueError as error:  # ImageError is one; its text is for the visitor
        return error_html(words["bad_image"], str(error))
    except Exception:  # out of memory or a bug: a visitor can fix neither
        logger.exception("an image was not captioned")
        return error_html(words["failed"])


def broken_model(model: str, error: Exception, words: dict[str, str]) -> str:
    logger.error(f"{model} cannot be loaded: {error}")
    return error_html(words["bad_model"], f"{model} ({type(error).__name__})")


# ------------------------------------------------------------------------------------------------------- page

# Parts whose values `answer` takes, in its order.
ASKED = ("image", "model", "language", "num_captions", "num_beams", "max_length", "prompt")


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
    first = limits(load(models[0]))
    with gr.Blocks(analytics_enabled=False, title="OFA 看图说话", delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        parts = head()
        with gr.Row():
            with gr.Column():
                parts |= question(examples)
            with gr.Column():
                parts |= reply() | settings(models, first)
        react(page, parts, load)
    return page


# Parts of the page by name. Those named in `WORDS` are translated.


def head() -> dict[str, Any]:
    with gr.Row(elem_id="head"):
        title = gr.Markdown(FIRST_WORDS["title"])
        language = gr.Radio(
            [("中文", "zh"), ("English", "en")],
            value="zh",
            label="语言 Language",
            show_label=False,
            container=False,
            elem_id="language",
        )
    return {"title": title, "language": language}


def question(examples: Sequence[str | Path]) -> dict[str, Any]:
    image = gr.Image(
        type="filepath",
        sources=["upload"],
        buttons=[],
        label=FIRST_WORDS["image"],
        placeholder=FIRST_WORDS["drop"],
        height="min(20rem, 45vh)",
        elem_id="image",
    )
    shown = gr.Examples(
        list(map(str, examples)),
        image,
        label=FIRST_WORDS["examples"],
        elem_id="examples",
        api_visibility="private",
    )
    ask = gr.Button(FIRST_WORDS["ask"], variant="primary", elem_id="ask")
    return {"image": image, "shown": shown, "examples": shown.dataset, "ask": ask}


def reply() -> dict[str, Any]:
    result = gr.HTML(EMPTY, container=True, elem_id="result")
    return {"result": result, "hint": gr.Markdown(FIRST_WORDS["hint"], elem_id="hint")}


def settings(models: Sequence[str], first: dict[str, Any]) -> dict[str, Any]:
    parts = {
        "num_captions": slider("num_captions", 1, MAX_CAPTIONS, DEFAULT_CAPTIONS),
        "model": gr.Dropdown(list(models), value=models[0], label=FIRST_WORDS["model"], visible=len(models) > 1),
    }
    with gr.Accordion(FIRST_WORDS["settings"], open=False) as parts["settings"]:
        parts["prompt"] = gr.Textbox(
            label=FIRST_WORDS["prompt"],
            info=FIRST_WORDS["prompt_info"],
            placeholder=first["prompt"],
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
        "fn": functools.partial(answer, load),
        "inputs": [parts[name] for name in ASKED],
        "outputs": parts["result"],
        "preprocess": False,  # the file as uploaded: the model's own reader decodes it and reports errors
        **with_model,
    }
    gr.on([parts["image"].upload, parts["ask"].click, parts["prompt"].submit], **asking)
    parts["shown"].load_input_event.then(**asking)
    parts["image"].clear(lambda: EMPTY, None, parts["result"], **at_once)

    model, language = parts["model"], parts["language"]
    changed = [parts[name] for name in ("prompt", "num_beams", "max_length", "result")]
    model.input(functools.partial(choose, load), [model, language], changed, **with_model)
    named = [name for name in parts if name in FIRST_WORDS]
    translated = [parts[name] for name in named]
    language.change(functools.partial(translate, named), language, translated, js=TELL_LANGUAGE, **at_once)
    page.load(None, None, language, js=ASKED_LANGUAGE)


def choose(load: Callable[[str], Pipeline], model: str, language: str) -> list:
    """Load the chosen model and show its settings: updates of prompt, beams, length and result."""
    try:
        its = limits(load(model))
    except Exception as error:
        return [gr.skip(), gr.skip(), gr.skip(), broken_model(model, error, WORDS[language])]
    length = gr.update(maximum=its["most_tokens"], value=its["max_length"])
    return [gr.update(placeholder=its["prompt"]), gr.update(value=its["num_beams"]), length, EMPTY]


def translate(names: Sequence[str], language: str) -> list:
    """The page's texts in a language: an update for each named part."""
    return [update_of(name, WORDS[language]) for name in names]


def update_of(name: str, words: dict[str, str]) -> Any:
    if name in ("title", "hint", "ask"):
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
