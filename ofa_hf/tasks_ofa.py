"""The tasks of OFA, one row each. Processor, pipelines, data, training and scores read the row they need.

To add a task, add a row to `TASKS`. A checkpoint can also define its own tasks, in `processor_config.json`.

Source: prompts of OFA `data/mm_data/*_dataset.py`; generation settings of `run_scripts/`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


ANSWERS = ("text", "boxes", "choice", "image")  # kinds of answer
# Kind of answer → metric of a checkpoint's own task that names none.
USUAL_METRIC = {"text": "caption", "boxes": "box", "choice": "accuracy", "image": "clip"}
SLOT = re.compile(r"\{([^\W\d]\w*)\}")  # `{text}` or `{标题}` in a prompt
STARTS = ("", "question", "question and end")  # what the decoder's text starts with
IMAGENET_COLORS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MAX_DESCRIPTION = 64  # words of a text to draw
BOX_SLOT = "box"  # filled with four location tokens, at the end of a prompt


# ------------------------------------------------------------------------------- texts that fill a prompt


def first_words(text: str, number: int) -> str:
    """The first words of a text, separated by spaces; warns once if a text is cut."""
    words = text.split(" ")
    if len(words) > number:
        from transformers.utils import logging  # imports torch on version 4, which reading a table does not need

        logging.get_logger(__name__).warning_once(
            f"A text of more than {number} words was cut after the first {number}, as in the original training. "
            f"Shorten such texts to have all of them read."
        )
    return " ".join(words[:number])


def clean_phrase(text: str, max_words: int = 80) -> str:
    """A phrase as the original cleans it: lowercase, without hyphens, slashes and leading punctuation.

    Source: OFA `data/ofa_dataset.py`, `pre_caption`.
    """
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ").replace("<person>", "person")
    return first_words(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int = 80) -> str:
    """A question as the original cleans it, ending in a question mark.

    Source: OFA `data/ofa_dataset.py`, `pre_question`; `data/mm_data/vqa_gen_dataset.py`.
    """
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    text = first_words(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" "), max_words)
    return text if text.endswith("?") else f"{text}?"


def clean_article(text: str) -> str:
    """An article as the original cleans it. Source: OFA `data/nlg_data/summary_dataset.py`."""
    return clean_phrase(text.replace("<unk>", "unk"), max_words=512)


def clean_sentence(text: str) -> str:
    """A sentence of GLUE as the original cleans it: lowercase, single spaces, 512 words at most.

    Source: OFA `data/nlu_data/*_dataset.py`.
    """
    return first_words(" ".join(text.lower().split()), 512)


def clean_description(text: str) -> str:
    """A text to draw as the original cleans it: single spaces, 64 words at most.

    Source: OFA `data/mm_data/image_gen_dataset.py`, with the limit of `run_scripts/image_gen/`.
    """
    return first_words(" ".join(text.split()), MAX_DESCRIPTION)


def clean_objects(text: str) -> str:
    """Names of the objects in an image, 30 at most; in tables they are separated by `&&`.

    Source: OFA `data/mm_data/vqa_gen_dataset.py`, `add_object`.
    """
    return " ".join(text.strip().split("&&")[:30])


CLEANING = {  # how texts are cleaned before they fill a prompt
    "": str,
    "phrase": clean_phrase,
    "question": clean_question,
    "objects": clean_objects,
    "article": clean_article,
    "sentence": clean_sentence,
    "description": clean_description,
}


# ------------------------------------------------------------- what the original scripts make of an answer


def without_punctuation(text: str) -> str:
    """Without ASCII punctuation. Source: OFA `utils/eval_utils.py`, `eval_caption`."""
    return text.translate(str.maketrans("", "", PUNCTUATION)).strip()


def without_blanks(text: str) -> str:
    """Source: OFA `utils/eval_utils.py`, `eval_ocr`."""
    return text.replace(" ", "")


def as_in_gigaword(text: str) -> str:
    """A summary in the format of Gigaword: lowercase, tokens joined, `1` as `#`.

    Source: OFA `utils/eval_utils.py`, `eval_gigaword`.
    """
    return join_tokens(text.lower().strip()).replace("1", "#")


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"  # ASCII punctuation
TREEBANK = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "[UNK]": "UNK"}
TREEBANK |= {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
QUOTES = {'"': ("``", "''"), "'": ("`", "'")}  # opening, closing


def join_tokens(text: str) -> str:
    """Tokens separated by spaces → text in the style of the Penn Treebank: `3 , 000` → `3,000`, `n ' t` → `n't`.

    Source: `fix_tokenization` of OFA `utils/eval_utils.py`, with its oddities.
    """
    rest, done, is_open = text.split(), [], dict.fromkeys(QUOTES, False)
    after_hyphen = False
    while rest:
        token = rest[0]
        used, joined, apart = _joined(done, rest)
        if not used and token in QUOTES:
            apart, is_open[token], used = QUOTES[token][is_open[token]], not is_open[token], 1
        if not used and after_hyphen and token[0] not in PUNCTUATION:
            used, joined = 1, token
        if joined is not None:
            done[-1] += joined
        else:
            done.append(apart if used else token)
        after_hyphen = token == "-" and joined == "-"
        rest = rest[used or 1 :]
    return " ".join(done)


def _joined(done: list[str], rest: list[str]) -> tuple[int, str | None, str]:
    """How the next tokens are written: their number (0 for an ordinary token), what is appended to the last token, or
    what is written separately."""
    token, following, third = (*rest[:3], "", "")[:3]
    before = done[-1] if done else ""
    if token in TREEBANK:
        return 1, None, TREEBANK[token]
    if token == "'" and before.endswith("n") and following == "t":
        done[-1] = before[:-1]
        return 2, None, "n't"
    if token == "'" and following in ("s", "d", "ll"):
        return 2, None, f"'{following}"
    if token == following == third == ".":
        return 3, None, "..."
    if token == "," and _is_number(before) and _is_number(following):
        return 2, f",{following}", ""
    if token == "." and before.isdigit() and following.isdigit():
        return 2, f".{following}", ""
    if token == third == "." and _is_initial(before) and _is_initial(following):
        return 2, f".{following}.", ""
    if token == following == "-":
        return 2, None, "--"
    if token == "-" and before and before not in PUNCTUATION and following[:1] not in PUNCTUATION:
        return 1, "-", ""
    return 0, None, ""


def _is_number(token: str) -> bool:
    return token != "" and all(char.isdigit() or char == "," for char in token)


def _is_initial(token: str) -> bool:
    return len(token) == 1 and token.isupper()


OFFICIAL_TEXT = {
    "": str,
    "without punctuation": without_punctuation,
    "without blanks": without_blanks,
    "as in Gigaword": as_in_gigaword,
}


# --------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """A question and the kind of its answer.

    Args:
        name: the name that users pass: `task="caption"`.
        prompts: language → the question. A slot such as `{text}` is filled with the row's field of that name.
        answer: kind of answer, one of `ANSWERS`: a text, a box in pixels of the original image, the best answer of a
            list, or an image, whose side is the `"size"` of the image settings.
        choices: the list of answers, if it is part of the task.
        labels: other names of these answers in data, such as `entailment` for `yes`.
        target: name of the column of answers in a table; by default the task's own.
        starts_with: what the decoder's text starts with, one of `STARTS`; the last is the question with its `</s>`.
        ends: whether training also teaches the answer's `</s>`.
        blank_before: whether an English answer follows a space, as in `" yes"`.
        cleaning: how a text is cleaned before it fills a slot: a key of `CLEANING`, or one for each slot.
        longer_prompts: optional field of a row → language → the prompt that also has a slot for it.
        needs_image: a question without an image is refused.
        image: settings of the image processor, such as `{"size": 512}`, that differ from the checkpoint's.
        generation: keywords of `generate` that belong to the task for every checkpoint.
        official_text: how the original scripts format a generated text, a key of `OFFICIAL_TEXT`.
        metric: name of the score that compares answers with references.
        pipeline: name of the transformers pipeline that answers it.
    """

    name: str
    prompts: Mapping[str, str]
    answer: str = "text"
    choices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    starts_with: str = ""
    ends: bool = True
    blank_before: bool = True
    cleaning: str | Mapping[str, str] = ""
    longer_prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    needs_image: bool = True
    image: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    official_text: str = ""
    metric: str = "caption"
    pipeline: str = "image-to-text"

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ValueError(f"The task {self.name!r} has the answer {self.answer!r}. Accepted: {', '.join(ANSWERS)}.")
        if self.starts_with not in STARTS:
            accepted = ", ".join(map(repr, STARTS))
            raise ValueError(f"The task {self.name!r} starts with {self.starts_with!r}. Accepted: {accepted}.")
        cleanings = self.cleaning.values() if isinstance(self.cleaning, Mapping) else (self.cleaning,)
        for known, named, what in ((CLEANING, cleanings, "cleaning"), (OFFICIAL_TEXT, [self.official_text], "text")):
            for unknown in [name for name in named if name not in known]:
                accepted = ", ".join(map(repr, known))
                raise ValueError(f"The task {self.name!r} has the {what} {unknown!r}. Accepted: {accepted}.")
        if any("{box}" in prompt.removesuffix("{box}") for prompt in self.prompts.values()):
            raise ValueError(f"The prompts of the task {self.name!r} must end with {{box}}: {dict(self.prompts)}.")
        if len({slots(prompt) for prompt in self.prompts.values()}) > 1:
            raise ValueError(f"The prompts of the task {self.name!r} must have the same slots: {dict(self.prompts)}.")

    @property
    def target_column(self) -> str:
        """Name of the column of answers in a table."""
        return self.target or self.name

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the slots in the prompt, which are columns of the task's rows."""
        return next((slots(prompt) for prompt in self.prompts.values()), ())

    def prompt(self, language: str, **values: str) -> str:
        """Fill the prompt's slots with cleaned texts; values without a slot are ignored.

        Raises:
            ValueError: no prompt in that language, or a slot without a value.
        """
        if language not in self.prompts:
            raise ValueError(
                f"The task {self.name!r} has no prompt in the language {language!r}. "
                f"Accepted: {', '.join(self.prompts)}. Define the task with a prompt in that language."
            )
        missing = [name for name in self.fields if name not in values]
        if missing:
            raise ValueError(
                f"The task {self.name!r} got no value for {', '.join(missing)}. Its prompt is "
                f"{self.prompts[language]!r}: pass a value for each slot."
            )
        template = self.prompts[language]
        for name, prompts in self.longer_prompts.items():
            if values.get(name) and language in prompts:
                template = prompts[language]
        return SLOT.sub(lambda slot: self.clean(slot[1], values[slot[1]]), template)

    def clean(self, slot: str, value: Any) -> str:
        """The text that fills a slot."""
        cleaning = self.cleaning.get(slot, "") if isinstance(self.cleaning, Mapping) else self.cleaning
        text = "&&".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return CLEANING[cleaning](text)


def slots(prompt: str) -> tuple[str, ...]:
    """Names of the slots of a prompt, in order and without repetition."""
    return tuple(dict.fromkeys(SLOT.findall(prompt)))


def official_generation(beam: int, min_tokens: int, max_tokens: int, no_repeat_ngram: int) -> dict[str, Any]:
    """Keywords of `generate` for a task of a checkpoint whose own settings are for another task.

    Args:
        min_tokens, max_tokens: of the answer, before `</s>` (fairseq's min_len and max_len_b).
    """
    return {
        "num_beams": beam,
        "max_length": max_tokens + 2,  # the start token and </s> count here
        "min_length": min_tokens + 1,
        "no_repeat_ngram_size": no_repeat_ngram,
        "early_stopping": True,
    }


def glue_task(
    name: str,
    prompt: str,
    choices: tuple[str, ...] = ("no", "yes"),
    labels: Mapping[str, str] | None = None,
    metric: str = "accuracy",
) -> Task:
    """A task about sentences, answered with a word from a list. Source: OFA `data/nlu_data/`, `run_scripts/glue/`."""
    return Task(
        name=name,
        prompts={"en": prompt},
        answer="choice",
        choices=choices,
        labels=labels or {},
        target="label",
        starts_with="question and end",
        ends=False,
        cleaning="sentence",
        needs_image=False,
        metric=metric,
        pipeline="text-classification",
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            name="caption",
            prompts={"zh": "图片描述了什么内容?", "en": " what does the image describe?"},
            official_text="without punctuation",
        ),
        Task(
            name="grounding",
            prompts={
                "zh": '这段文字" {text} "描述的是哪个区域？',
                "en": ' which region does the text " {text} " describe?',
            },
            answer="boxes",
            target="box",
            cleaning="phrase",
            generation=official_generation(beam=5, min_tokens=4, max_tokens=4, no_repeat_ngram=3),
            metric="box",
            pipeline="zero-shot-object-detection",
        ),
        Task(
            name="ocr",
            prompts={"zh": "图片上的文字是什么?", "en": " what are the texts on the image?"},
            target="text",
            image={"fit": "center"},
            official_text="without blanks",
            generation=official_generation(beam=5, min_tokens=1, max_tokens=64, no_repeat_ngram=0),
            metric="ocr",
        ),
        Task(
            name="vqa",
            prompts={"zh": "{question}", "en": " {question}"},
            target="answer",
            longer_prompts={"objects": {"zh": "{question} object: {objects}", "en": " {question} object: {objects}"}},
            starts_with="question",
            cleaning={"question": "question", "objects": "objects"},
            generation={
                "num_beams": 5,
                "max_new_tokens": 200,
                "min_new_tokens": 1,
                "no_repeat_ngram_size": 0,
                "length_penalty": 0.0,
                "early_stopping": True,
            },
            metric="vqa",
            pipeline="visual-question-answering",
        ),
        Task(
            name="entailment",
            prompts={"en": ' does the image describe " {hypothesis} "?'},
            longer_prompts={
                "caption": {"en": ' can image and text1 " {caption} " imply text2 " {hypothesis} "?'},
            },
            answer="choice",
            choices=("no", "yes", "maybe"),
            labels={"contradiction": "no", "entailment": "yes", "neutral": "maybe"},
            target="label",
            starts_with="question",
            cleaning="phrase",
            metric="accuracy",
            pipeline="visual-question-answering",
        ),
        Task(
            name="classification",
            prompts={"en": " what does the image describe?"},
            answer="choice",
            target="label",
            image=IMAGENET_COLORS,
            metric="accuracy",
            pipeline="zero-shot-image-classification",
        ),
        Task(
            name="summarization",
            prompts={
                "zh": "{article} 请用一个句子简单总结上文：",
                "en": ' what is the summary of article " {article} "?',
            },
            target="summary",
            cleaning="article",
            blank_before=False,
            official_text="as in Gigaword",
            needs_image=False,
            generation={
                **official_generation(beam=6, min_tokens=1, max_tokens=32, no_repeat_ngram=3),
                "length_penalty": 0.7,
            },
            metric="rouge",
            pipeline="summarization",
        ),
        glue_task(
            "cola",
            ' is the text " {sentence} " grammatically correct?',
            labels={"0": "no", "1": "yes", "unacceptable": "no", "acceptable": "yes"},
            metric="matthews",
        ),
        glue_task(
            "sst2",
            ' is the sentiment of text " {sentence} " positive or negative?',
            ("negative", "positive"),
            labels={"0": "negative", "1": "positive"},
        ),
        glue_task(
            "mrpc",
            ' does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?',
            labels={"0": "no", "1": "yes", "not_equivalent": "no", "equivalent": "yes"},
            metric="f1",
        ),
        glue_task(
            "qqp",
            ' is question " {question1} " and question " {question2} " equivalent?',
            labels={"0": "no", "1": "yes", "not_duplicate": "no", "duplicate": "yes"},
            metric="f1",
        ),
        # for the next three, label numbers have opposite meanings in the original's files and on the Hub
        glue_task(
            "qnli",
            ' does " {sentence} " contain the answer to question " {question} "?',
            labels={"not_entailment": "no", "entailment": "yes"},
        ),
        glue_task(
            "rte",
            ' can text1 " {sentence1} " imply text2 " {sentence2} "?',
            labels={"not_entailment": "no", "entailment": "yes"},
        ),
        glue_task(
            "mnli",
            ' can text1 " {sentence1} " imply text2 " {sentence2} "?',
            ("maybe", "yes", "no"),
            labels={"neutral": "maybe", "entailment": "yes", "contradiction": "no"},
        ),
        Task(
            name="region_caption",
            prompts={"en": "  what does the region describe? region:{box}"},
            target="caption",
        ),
        Task(
            name="image_generation",
            prompts={"en": " what is the complete image? caption: {text}"},
            answer="image",
            target="image",
            cleaning="description",
            needs_image=False,
            image={"size": 256},
            generation={
                "do_sample": True,
                "top_k": 256,
                "top_p": 1.0,
                "temperature": 1.0,
                "num_beams": 1,
                "no_repeat_ngram_size": 0,
                "early_stopping": False,
            },
            metric="clip",
            pipeline="text-to-image",
        ),
    )
}


def find_task(name: str) -> Task:
    """The row of a task.

    Raises:
        ValueError: there is no such task; the message lists the tasks.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}. Accepted: {', '.join(TASKS)}.")
    return TASKS[name]


# Settings of a task in a checkpoint; "prompt" and the prompts of "longer_prompts" are in the checkpoint's language.
SETTINGS = (
    "prompt",
    "answer",
    "choices",
    "labels",
    "target",
    "starts_with",
    "cleaning",
    "longer_prompts",
    "needs_image",
    "image",
    "generation",
    "official_text",
    "metric",
    "pipeline",
)


def checkpoint_task(name: str, settings: Mapping[str, Any], language: str) -> Task:
    """A task of a checkpoint: the row of `TASKS`, if there is one, with the settings of the checkpoint.

    Args:
        settings: from the processor's config, keys of `SETTINGS`. A task that is not in `TASKS` needs a "prompt".

    Raises:
        ValueError: an unknown setting, or an unknown task without a prompt.
    """
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown:
        raise ValueError(f"Unknown settings of the task {name!r}: {unknown}. Accepted: {', '.join(SETTINGS)}.")
    changes = {key: value for key, value in settings.items() if key != "prompt"}
    if "prompt" in settings:
        changes["prompts"] = {language: settings["prompt"]}
    if "longer_prompts" in settings:
        changes["longer_prompts"] = {key: {language: prompt} for key, prompt in settings["longer_prompts"].items()}
    elif name in TASKS and settings.get("prompt") not in (None, TASKS[name].prompts.get(language)):
        changes["longer_prompts"] = {}  # those of the row belong to its original prompt
    if name in TASKS:
        return replace(TASKS[name], **changes)
    if "prompts" not in changes:
        raise ValueError(
            f"Unknown task {name!r}. Accepted: {', '.join(TASKS)}, or a task of your own with a prompt: "
            f'{{"{name}": {{"prompt": "…"}}}}.'
        )
    return Task(name, **{"metric": USUAL_METRIC.get(changes.get("answer", "text"), "caption"), **changes})


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an older `processor_config.json`, which has only the prompt for captioning, to the current form."""
    config = dict(config)
    if "max_caption_tokens" in config:
        config["max_target_tokens"] = config.pop("max_caption_tokens")
    if "tasks" not in config:
        prompt = config.pop("prompt", None)
        config["tasks"] = {"caption": {} if prompt is None else {"prompt": prompt}}
    return config
