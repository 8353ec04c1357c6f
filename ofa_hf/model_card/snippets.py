"""Code that asks a model for the answers of a task, for cards and pages: one form per pipeline."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ofa_hf.tasks_ofa import BOX_SLOT, Task


IMAGE = "photo.jpg"
BOX = [40, 30, 200, 240]  # in pixels of the image
LABELS = {"zh": ["红色裙子", "白色杯子"], "en": ["a red dress", "a white cup"]}
EXAMPLES = {  # what fills a slot; other slots get the first label
    "zh": {"question": "这是什么颜色的?", "article": "今天，本市第一条无人驾驶公交线路开通，市民可免费试乘一个月。"},
    "en": {
        "question": "What color is it?",
        "hypothesis": "A woman wears a red dress.",
        "article": "the city opened its first driverless bus line on monday . rides are free for a month .",
    },
}


def example_values(task: Task, language: str) -> dict[str, Any]:
    """Something to fill each slot of a task's prompt with."""
    known = {BOX_SLOT: BOX, **EXAMPLES[language]}
    return {name: known.get(name, LABELS[language][0]) for name in task.fields}


def code(value: Any) -> str:
    """A value as Python text, which for these is also JSON."""
    return json.dumps(value, ensure_ascii=False)


def ask_about_image(task: Task, values: Mapping[str, Any], language: str) -> str:
    given = {"image": IMAGE} if task.needs_image else {}
    asked = code({**given, "text": values}) if values else code(IMAGE)
    return f'pipe({asked})[0]["{"box" if task.answer == "boxes" else "generated_text"}"]'


def ask_question(task: Task, values: Mapping[str, Any], language: str) -> str:
    choices = f", candidate_answers={code(LABELS[language])}" if task.answer == "choice" and not task.choices else ""
    return f"pipe(image={code(IMAGE)}, question={code(next(iter(values.values())))}{choices})"


def locate(task: Task, values: Mapping[str, Any], language: str) -> str:
    return f"pipe({code(IMAGE)}, candidate_labels={code(LABELS[language])}, threshold=0.1)"


def classify(task: Task, values: Mapping[str, Any], language: str) -> str:
    return f"pipe({code(IMAGE)}, candidate_labels={code(LABELS[language])})"


def summarize(task: Task, values: Mapping[str, Any], language: str) -> str:
    return f'pipe({code(next(iter(values.values())))})[0]["summary_text"]'


def classify_text(task: Task, values: Mapping[str, Any], language: str) -> str:
    return f"pipe({code(values)})"


CALLS: dict[str, Callable[[Task, Mapping[str, Any], str], str]] = {
    "image-to-text": ask_about_image,
    "visual-question-answering": ask_question,
    "zero-shot-object-detection": locate,
    "zero-shot-image-classification": classify,
    "summarization": summarize,
    "text-classification": classify_text,
}


def snippet(task: Task, language: str, model: str) -> str:
    """Python lines that load a model by its Hub id or folder and print answers of one of its tasks."""
    call = CALLS[task.pipeline](task, example_values(task, language), language)
    return (
        "from transformers import pipeline\n\n"
        f"pipe = pipeline({code(task.pipeline)}, model={code(model)}, trust_remote_code=True)\n"
        f"print({call})"
    )
