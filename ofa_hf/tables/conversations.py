"""Conversations about an image, as chat models are trained on, as a question and its answer."""

from collections.abc import Iterable
from typing import Any


TURNS = ("conversations", "messages")
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
PLACE = "<image>"  # where a text has the image
COLUMNS = frozenset({"question", "answer"})  # that a conversation becomes


def as_question(row: dict[str, Any]) -> dict[str, Any] | str:
    """A row whose conversation, if it has one, became `question` and `answer`; or why it cannot.

    Turns are `{"from": "human", "value": "…"}` or `{"role": "user", "content": "…"}`; a content may be a list of
    parts, of which one may be the image.
    """
    name = next((name for name in TURNS if isinstance(row.get(name), list)), None)
    if name is None or COLUMNS & row.keys():
        return row
    asked, answered, images = [], [], []
    for turn in filter(_is_turn, row[name]):
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        parts = content if isinstance(content, list) else [{"text": content}]
        parts = [part for part in parts if isinstance(part, dict)]
        images += [part["image"] for part in parts if isinstance(part.get("image"), str)]
        text = " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        if role in ASKS or role in ANSWERS:
            (asked if role in ASKS else answered).append(text.replace(PLACE, " ").strip())
    if len(answered) != 1 or len(images) > 1:
        return f"{name} has {len(answered)} answers and {len(images)} images; make a row of each question and answer"
    return {**({"image": images[0]} if images else {}), **row, "question": " ".join(asked), "answer": answered[0]}


def are_conversations(columns: Iterable[str]) -> bool:
    """Whether rows with these columns were conversations."""
    return set(columns) >= COLUMNS and not set(TURNS).isdisjoint(columns)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict)
