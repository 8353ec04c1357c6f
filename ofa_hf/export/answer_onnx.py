"""Answer a task about images with the ONNX files next to this script: by a text, a box, or a choice from a list.

    pip install numpy onnxruntime pillow tokenizers
    python answer.py photo.jpg --task grounding --text "红色裙子"
    python answer.py photo.jpg --task vqa --text "这是什么颜色的?" --choices 红色 蓝色

tasks.json says what can be asked; without --task it is the model's default task.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ofa_hf.export.caption_onnx import Captioner, Settings, Steps, beam_search, greedy, log_softmax, read_image


SLOT = re.compile(r"\{(\w+)\}")
PLACES, SPAN = 1000, 512  # places along a side, and pixels that they span for every model size
SIDES = ("xmin", "ymin", "xmax", "ymax")
CHOICES_AT_ONCE = 64
MAX_WORDS = {"phrase": 80, "question": 80}


def clean(text: str, kind: str) -> str:
    """A text cleaned as in training: a \"phrase\", a \"question\", or any other unchanged."""
    if kind not in MAX_WORDS:
        return text
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    text = text.replace("<person>", "person") if kind == "phrase" else text
    text = " ".join(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")[: MAX_WORDS[kind]])
    return text if kind == "phrase" or text.endswith("?") else f"{text}?"


class Answerer(Captioner):
    """Image file and text → answer.

    Arguments are those of `Captioner`.
    """

    def __init__(self, folder: Path, **overrides):
        super().__init__(folder, **overrides)
        facts = json.loads((Path(folder) / "tasks.json").read_text(encoding="utf-8"))
        self.tasks, self.default = facts["tasks"], facts["default"]

    def __call__(
        self, source, task: str | None = None, text: str | None = None, choices: tuple[str, ...] = ()
    ) -> dict:
        """`{"answer", "score", "tokens"}` for one image file, or `{"answers": {answer: probability}}` for a list.

        Raises:
            ValueError: no such task, or a text is missing or not used by the prompt.
        """
        name = self.default if task is None else task
        if name not in self.tasks:
            raise ValueError(f"There is no task {name!r}. Accepted: {', '.join(self.tasks)}.")
        row = self.tasks[name]
        settings = self.image_settings | row["image"]
        with Image.open(source) as image:
            size = ImageOps.exif_transpose(image).size
        ids = self.question(row, text, size, settings["size"])
        start = tuple(ids[: -1 if row["starts_with"] == "question" else None]) if row["starts_with"] else (0,)
        steps = self.model.encode(read_image(source, settings), ids)
        choices = tuple(choices) or tuple(row["choices"])
        if row["answer"] == "choice" and not choices:
            raise ValueError(f"The task {name!r} chooses from a list. Pass --choices.")
        if choices:
            return {"answers": self.choose(steps, start, choices)}
        found = self.search(steps, start, row)
        answer = self.text_of([0, *found["tokens"][len(start) :]])
        return {"answer": self.box_of(found["tokens"], size, settings["size"]) if is_box(row) else answer, **found}

    def question(self, row: dict, text: str | None, size: tuple[int, int], model_size: dict) -> list[int]:
        """Tokens of the prompt, its slot filled."""
        (slot,) = SLOT.findall(row["prompt"]) or (None,)
        if (slot is None) != (text is None):
            raise ValueError(f"The prompt {row['prompt']!r} takes {'no text' if slot is None else 'a text: --text'}.")
        if slot == "box":
            scale = [model_size["width"] / size[0], model_size["height"] / size[1]] * 2
            box = np.array([float(side) for side in text.split(",")], dtype=np.float32) * np.float32(scale)
            places = np.rint(box / np.float32(SPAN) * np.float32(PLACES - 1)).astype(int).clip(0, PLACES - 1)
            ids = self.tokenizer.encode(row["prompt"].removesuffix("{box}")).ids
            return [*ids[:-1], *(self.first_place + int(place) for place in places), ids[-1]]
        filled = SLOT.sub(lambda _: clean(text, row["cleaning"]), row["prompt"])
        return self.tokenizer.encode(filled).ids

    @property
    def first_place(self) -> int:
        return self.tokenizer.token_to_id("<bin_0>")

    def search(self, steps: Steps, start: tuple[int, ...], row: dict) -> dict:
        values = self.generation | row["generation"] | self.overrides
        settings = Settings.of(values)
        if values.get("max_new_tokens"):  # positions that a question before the answer does not use
            more = len(start) - 1
            settings = replace(settings, max_length=settings.max_length + more, min_length=settings.min_length + more)
        if is_box(row):
            settings = replace(settings, first_place=self.first_place)
        tokens, score = (greedy if settings.num_beams == 1 else beam_search)(steps, settings, start)
        return {"score": round(score, 6), "tokens": tokens}

    def box_of(self, tokens: list[int], size: tuple[int, int], model_size: dict) -> dict | None:
        """The box of the first four tokens, in pixels of the image file."""
        places = [token - self.first_place for token in tokens[1:5]]
        if len(places) < 4 or not all(0 <= place < PLACES for place in places):
            return None
        scale = np.float32([model_size["width"] / size[0], model_size["height"] / size[1]] * 2)
        box = np.float32(places) / np.float32(PLACES - 1) * np.float32(SPAN) / scale
        return dict(zip(SIDES, box.tolist()))

    def choose(self, steps: Steps, start: tuple[int, ...], choices: tuple[str, ...]) -> dict[str, float]:
        """Probability of each answer of the list, normalized over the list, best first."""
        rows = [[*self.tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids, 2] for text in choices]
        following: dict[tuple, set] = {}
        for row in rows:
            for length, token in enumerate(row):
                following.setdefault(tuple(row[:length]), set()).add(token)
        totals: list[float] = []
        for first in range(0, len(rows), CHOICES_AT_ONCE):
            part = rows[first : first + CHOICES_AT_ONCE]
            totals += score_rows(Steps(steps.model, steps.image), start, part, following)
        found = dict(zip(choices, np.exp(totals).tolist(), strict=True))
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def is_box(row: dict) -> bool:
    return row["answer"] == "boxes"


def score_rows(
    steps: Steps, start: tuple[int, ...], rows: list[list[int]], following: dict[tuple, set]
) -> list[float]:
    """Sums of the log-probabilities of each row's tokens among those that can follow."""
    scores, totals = steps(np.tile(np.array(start, dtype=np.int64), (len(rows), 1))), [0.0] * len(rows)
    for length in range(max(map(len, rows))):
        for index, row in enumerate(rows):
            if length < len(row):
                allowed = sorted(following[tuple(row[:length])])
                totals[index] += float(log_softmax(scores[index, allowed])[allowed.index(row[length])])
        last = np.array([row[length] if length < len(row) else 1 for row in rows], dtype=np.int64)
        if length + 1 < max(map(len, rows)):
            scores = steps(last)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a task about images with onnxruntime.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--task", help="default: the model's own; tasks.json lists them")
    parser.add_argument("--text", help="question, phrase, or box as xmin,ymin,xmax,ymax: what fills the prompt")
    parser.add_argument("--choices", nargs="+", default=(), metavar="ANSWER", help="answers to choose from")
    parser.add_argument("--num-beams", type=int, metavar="N", help="1 = greedy; default: the model's own")
    args = parser.parse_args()
    answerer = Answerer(Path(__file__).parent, **({"num_beams": args.num_beams} if args.num_beams else {}))
    for image in args.images:
        found = answerer(image, args.task, args.text, args.choices)
        print(json.dumps({"file": image, **found}, ensure_ascii=False), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
