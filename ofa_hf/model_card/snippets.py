"""Code that asks a model for the answers of a task, for cards and pages: one form per pipeline."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ofa_hf.tasks_ofa import BOX_SLOT, Task


IMAGE, DRAWN = "photo.jpg", "drawn.png"
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


def example_values(task: Task, language: str, box: Sequence[float] = BOX) -> dict[str, Any]:
    """An example for each slot of a task's prompt; `box` must be inside the image."""
    known = {BOX_SLOT: list(box), **EXAMPLES[language]}
    return {name: known.get(name, LABELS[language][0]) for name in task.fields}


class Call(NamedTuple):
    """A call of a pipeline: its arguments, and the key of the answer to show."""

    given: tuple
    asked: dict[str, Any] = {}
    key: str = ""

    def text(self) -> str:
        """The call as Python."""
        asked = [f"{name}={code(value)}" for name, value in self.asked.items()]
        picked = f"[0][{code(self.key)}]" if self.key else ""
        return f"pipe({', '.join([*map(code, self.given), *asked])}){picked}"


def code(value: Any) -> str:
    """A value as Python source, which for these types equals JSON."""
    return json.dumps(value, ensure_ascii=False)


def ask_about_image(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    key = "box" if task.answer == "boxes" else "generated_text"
    if not values:
        return Call((image,), key=key)
    return Call(({**({"image": image} if task.needs_image else {}), "text": dict(values)},), key=key)


def ask_question(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    needs_list = task.answer == "choice" and not task.choices
    choices = {"candidate_answers": labels} if needs_list else {}
    return Call((), {"image": image, "question": next(iter(values.values())), **choices})


def locate(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    return Call((image,), {"candidate_labels": labels})


def classify(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    return Call((image,), {"candidate_labels": labels})


def summarize(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    return Call((next(iter(values.values())),), key="summary_text")


def classify_text(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    return Call((dict(values),))


def draw(task: Task, image: str, values: Mapping[str, Any], labels: list[str]) -> Call:
    return Call((next(iter(values.values())),), {"num_images": 4, "seed": 7}, key="image")


CALLS: dict[str, Callable[[Task, str, Mapping[str, Any], list[str]], Call]] = {
    "image-to-text": ask_about_image,
    "visual-question-answering": ask_question,
    "zero-shot-object-detection": locate,
    "zero-shot-image-classification": classify,
    "summarization": summarize,
    "text-classification": classify_text,
    "text-to-image": draw,
}


def call_for(task: Task, language: str, image: str = IMAGE) -> Call:
    """A call of the task's pipeline, with example texts."""
    return CALLS[task.pipeline](task, image, example_values(task, language), LABELS[language])


def snippet(task: Task, language: str, model: str) -> str:
    """Python lines that load a model by its name and print answers of one of its tasks or save an image."""
    call = call_for(task, language).text()
    shown = f"{call}.save({code(DRAWN)})" if task.answer == "image" else f"print({call})"
    return (
        "from transformers import pipeline\n\n"
        f"pipe = pipeline({code(task.pipeline)}, model={code(model)}, trust_remote_code=True)\n"
        f"{shown}"
    )
