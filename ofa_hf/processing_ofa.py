"""Images and text → model inputs, generated ids → answers. Knows the tasks that its checkpoint was trained for."""

import os
import re
import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, LogitsProcessorList
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .boxes_ofa import NUM_PLACES, CodesOnly, PlacesOnly, box_to_places, check_box, parse_box, places_to_box
from .image_loading_ofa import IMAGE_SUFFIXES, load_image
from .image_processing_ofa import PIXELS_PER_CODE, check_image_decoder, images_of_codes, load_image_decoder
from .tasks_ofa import BOX_SLOT, OFFICIAL_TEXT, Task, checkpoint_task, upgrade_config
from .versions_ofa import PROCESSOR_DECLARES_PARTS


logger = logging.get_logger(__name__)

ROOM_FOR_ANSWER = 256  # tokens that a question leaves to the answer that starts with it
IGNORED_LABEL = -100  # the loss skips these positions
NOT_GIVEN = object()  # `images` was left out, which differs from `images=None`
IMAGE_OPTIONS = frozenset(
    "do_convert_rgb do_resize size resample fit do_rescale rescale_factor do_normalize image_mean image_std".split()
)
TEXT_OPTIONS = frozenset(
    "add_special_tokens padding padding_side pad_to_multiple_of truncation max_length return_attention_mask".split()
)
# Never part of an answer, whether or not the tokenizer counts them as special.
UNSPOKEN_TOKENS = frozenset(
    "<s> <pad> </s> <unk> <mask> [PAD] [UNK] [CLS] [SEP] [MASK] madeupword0000 madeupword0001 madeupword0002".split()
)
BLANK = "\u0120"  # how byte-level tokenizers, those of the English checkpoints, write a blank; each has this entry
# Scripts that are written without spaces: ideographs, kana, their symbols and full-width forms.
UNSPACED = (
    "\u2e80-\u2fff\u3000-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
ENDS_IN_WORD = re.compile(rf"[^\W_{UNSPACED}]\Z")
STARTS_WITH_WORD = re.compile(rf"[^\W_{UNSPACED}]")
ENDS_IN_WORD_AND_MARK = re.compile(rf"[^\W\d_{UNSPACED}][,;!?]\Z")
BERT_SYMBOL = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")
# BERT's basic tokenizer puts blanks around each of these.
IDEOGRAPH = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
# Three words; names of products are shorter. Bounded, so that a megabyte of letters is searched in linear time.
LATIN_SENTENCE = re.compile(r"(?<![A-Za-z'])(?:[A-Za-z']{2,40}\W{1,5}){2}[A-Za-z']{2}")
# The text of the last user message; earlier ones are not read.
CHAT_TEMPLATE = """\
{%- set content = (messages | selectattr("role", "equalto", "user") | list | last).content -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content if part.type == "text" -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
"""

# A tokenizer stores the settings of its last call, so threads that share one take turns.
TURNS = threading.Lock()
if hasattr(os, "register_at_fork"):  # a process forked during another thread's turn would wait forever
    os.register_at_fork(before=TURNS.acquire, after_in_parent=TURNS.release, after_in_child=TURNS.release)


def join_pieces(pieces: Iterable[str]) -> str:
    """Join word pieces as a reader expects: 红 色 t 恤 iphone 13 pro ##s 3 . 5 → 红色t恤iphone 13 pros 3.5.

    Pieces that start with `##` continue a word. A space goes between two words of a script that has spaces, and after
    a comma or the end of a sentence between two such words; Chinese and punctuation get none. BERT's pieces do not
    record the spaces around other punctuation (`a - b` and `a-b` are the same pieces), so none are added there.
    """
    text = ""
    for piece in pieces:
        if piece.startswith("##") and len(piece) > 2:
            text += piece[2:]
        elif _needs_space(text, piece):
            text += " " + piece
        else:
            text += piece
    return text


def _needs_space(text: str, piece: str) -> bool:
    if not STARTS_WITH_WORD.match(piece):
        return False
    tail = text[-2:]
    if ENDS_IN_WORD_AND_MARK.search(tail):
        return not piece[0].isdigit()
    return ENDS_IN_WORD.search(tail) is not None


def whole_characters(text: str) -> str:
    """The text with half characters, as of an emoji cut in two, replaced by �."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_text(text: str) -> str:
    """Prepare user text for a Chinese tokenizer, so that it gives the official ids.

    Half characters become �, which encodes to nothing. `[CLS]`, `[SEP]`, `[UNK]`,
    `[MASK]` and `[PAD]` are symbols only between blanks or ideographs; elsewhere (`a[CLS]`, `[SEP][SEP]`) they are
    ordinary text. The fast tokenizer would keep them whole everywhere, so these are lowercased here, as BERT's basic
    tokenizer does with all ordinary text.

    Source: BERT's `BasicTokenizer`, which the official code uses with these five as `never_split`.
    """
    text = whole_characters(text)
    if "[" not in text:
        return text
    return BERT_SYMBOL.sub(lambda symbol: symbol[0] if _stands_free(text, *symbol.span()) else symbol[0].lower(), text)


def _stands_free(text: str, start: int, end: int) -> bool:
    """Whether the visible characters on both sides of a span are blanks, ideographs, or the ends of the text."""
    before = next((text[index] for index in range(start - 1, -1, -1) if not _is_dropped(text[index])), " ")
    after = next((text[index] for index in range(end, len(text)) if not _is_dropped(text[index])), " ")
    return all(char.isspace() or IDEOGRAPH.match(char) for char in (before, after))


def _is_dropped(char: str) -> bool:
    """Whether BERT's basic tokenizer removes a character: controls, formats, unassigned ones and �."""
    return char == "\ufffd" or (unicodedata.category(char).startswith("C") and char not in "\t\n\r")


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is Chinese for a checkpoint that is asked in English, or English for one asked in Chinese."""
    if language == "en":
        return IDEOGRAPH.search(text) is not None
    return LATIN_SENTENCE.search(text) is not None and IDEOGRAPH.search(text) is None


class Answer(str):
    """A generated text that is no continuation of its prompt.

    transformers' `image-text-to-text` pipeline takes every text for a continuation: it cuts the decoded prompt off the
    front and puts the prompt as written before it. With an `Answer` both leave the text alone.
    """

    def find(self, text: str, *span: int) -> int:
        return -1 if isinstance(text, Answer) else super().find(text, *span)

    def __radd__(self, prompt: str) -> str:
        return str(self)


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Split the keywords of a call into image options, text options and `return_tensors`.

    Options may stand by themselves or in transformers' `images_kwargs`, `text_kwargs` and `common_kwargs`; the last
    gives way to the others.

    Raises:
        TypeError: an unknown option.
        ValueError: an option by itself and in a dict.
    """
    flat = {
        name: value for name, value in given.items() if name not in ("images_kwargs", "text_kwargs", "common_kwargs")
    }
    images, texts, common = (dict(given.get(name) or {}) for name in ("images_kwargs", "text_kwargs", "common_kwargs"))
    twice = sorted(flat.keys() & (images.keys() | texts.keys()))
    if twice:
        raise ValueError(f"Options passed by themselves and in images_kwargs or text_kwargs: {twice}. Pass each once.")
    flat = {**common, **flat}
    tensors = [options.pop("return_tensors") for options in (texts, images, flat) if "return_tensors" in options]
    unknown = sorted(name for name in flat.keys() - IMAGE_OPTIONS - TEXT_OPTIONS if flat[name] is not None)
    if unknown:
        raise TypeError(
            f"Unknown options of OFAProcessor: {unknown}. Accepted: "
            f"{', '.join(sorted({'return_tensors', *IMAGE_OPTIONS, *TEXT_OPTIONS}))}."
        )
    images = {**{name: flat[name] for name in IMAGE_OPTIONS & flat.keys()}, **images}
    texts = {**{name: flat[name] for name in TEXT_OPTIONS & flat.keys()}, **texts}
    return images, texts, tensors[0] if tensors else "pt"


def _as_parts(content: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The content of a chat message as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _first_ones(names: Iterable[str], number: int = 5) -> str:
    """The first of many names, for a message."""
    names = list(names)
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")


def _as_rows(text: Any) -> Sequence[Any]:
    return text if isinstance(text, (list, tuple)) else [text]


def _insert_places(encoding: Mapping[str, Any], places: list[list[int]], eos_token_id: int) -> dict[str, list]:
    """Put the symbols of places before the `</s>` of each row."""
    rows = []
    for ids, mask, symbols in zip(encoding["input_ids"], encoding["attention_mask"], places):
        ids, mask = list(map(int, ids)), list(map(int, mask))
        end = len(ids) - 1 - ids[::-1].index(eos_token_id)
        rows.append(([*ids[:end], *symbols, *ids[end:]], [*mask[:end], *[1] * len(symbols), *mask[end:]]))
    return {"input_ids": [ids for ids, _ in rows], "attention_mask": [mask for _, mask in rows]}


def _start_of_answers(encoding: Mapping[str, Any], without_end: bool, tokenizer: Any) -> dict[str, list[list[int]]]:
    """The questions as the beginning of answers, padded on the left."""
    rows = [
        [int(index) for index, real in zip(ids, mask) if real]
        for ids, mask in zip(encoding["input_ids"], encoding["attention_mask"])
    ]
    rows = [ids[:-1] if without_end else ids for ids in rows]
    longest = max(map(len, rows))
    padding = [longest - len(ids) for ids in rows]
    return {
        "decoder_input_ids": [[tokenizer.pad_token_id] * count + ids for ids, count in zip(rows, padding)],
        "decoder_attention_mask": [[0] * count + [1] * len(ids) for ids, count in zip(rows, padding)],
    }


def forget_use(tokenizer: Any) -> None:
    """Remove what a tokenizer would save of its last call (padding, truncation) and of where it was loaded from."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)


class OFAProcessor(ProcessorMixin):
    """Both ends of the model: `processor(images, text)` prepares inputs, `processor.post_process(ids)` gives answers.

    Args:
        image_processor: an `OFAImageProcessor`.
        tokenizer: the checkpoint's tokenizer.
        tasks: what the checkpoint was trained for: names of `TASKS`, or name → settings (`SETTINGS` of `tasks_ofa`).
            A task of your own needs a prompt: `{"material": {"prompt": "{product}是什么材质?"}}`.
        default_task: used where a call names none.
        language: of the prompts, "zh" or "en".
        max_prompt_tokens: longer texts are cut, keeping `</s>`; `<s>` and `</s>` count. The model has 1,024 positions.
            Questions that answers start with are cut to leave the answer 256 of them, or half.
        max_target_tokens: longer targets are cut, keeping `</s>`, which counts.
        chat_template: Jinja template that turns chat messages into the question.

    Raises:
        ValueError: a task that is neither in `TASKS` nor fully defined, limits below 2, or a tokenizer without words.
    """

    if PROCESSOR_DECLARES_PARTS:
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("caption",),
        default_task: str | None = None,
        language: str = "zh",
        max_prompt_tokens: int = 1024,
        max_target_tokens: int = 1024,
        chat_template: str | None = None,
    ):
        if min(max_prompt_tokens, max_target_tokens) < 2:
            raise ValueError(
                f"max_prompt_tokens={max_prompt_tokens}, max_target_tokens={max_target_tokens}: a text and its end "
                f"token need at least 2. Raise the smaller one."
            )
        if tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError(
                "The tokenizer knows no words, only special tokens: transformers makes such a one of a folder whose "
                "tokenizer.json is missing or empty. Convert the checkpoint again."
            )
        self.language = language
        self.tasks = {name: self._settings(name, tasks) for name in tasks}
        self.default_task = next(iter(self.tasks), "") if default_task is None else default_task
        self.max_prompt_tokens = max_prompt_tokens
        self.max_target_tokens = max_target_tokens
        self.find_task()  # refuses a default task that is not among the tasks
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def _settings(self, name: str, tasks: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Settings of one task, its prompt included, so that the saved config is complete."""
        settings = dict(tasks[name]) if isinstance(tasks, Mapping) else {}
        prompts = checkpoint_task(name, settings, self.language).prompts
        if self.language not in prompts:
            raise ValueError(
                f"The task {name!r} has no prompt in the language {self.language!r}. Accepted: {', '.join(prompts)}."
            )
        return {"prompt": prompts[self.language], **settings}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """`ProcessorMixin.from_pretrained`.

        Raises:
            ValueError: a folder without a tokenizer, of which transformers makes one without words, or an error of
                another meaning.
        """
        folder = os.path.join(os.fspath(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        names = ("tokenizer.json", "vocab.txt", "vocab.json")
        if os.path.isdir(folder) and not any(os.path.isfile(os.path.join(folder, name)) for name in names):
            raise ValueError(
                f"{folder} has no tokenizer: none of {', '.join(names)} is there. Save the processor's files next to "
                f"the model, or convert the checkpoint again."
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """Called by `from_pretrained`; also reads the config of folders written before processors had tasks."""
        return super().from_args_and_dict(args, upgrade_config(processor_dict), **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def find_task(self, name: str | None = None) -> Task:
        """One of the checkpoint's tasks, the default one if no name is given.

        Raises:
            ValueError: the checkpoint has no such task.
        """
        name = self.default_task if name is None else name
        if name not in self.tasks:
            raise ValueError(
                f"This checkpoint has no task {name!r}. Accepted: {', '.join(self.tasks) or 'none'}. "
                f"Define others with OFAProcessor.from_pretrained(…, tasks={{name: {{'prompt': '…'}}}})."
            )
        return checkpoint_task(name, self.tasks[name], self.language)

    def prompt_for(self, task: str | None = None, **fields: str) -> str:
        """The question of a task, its slots filled with `fields`.

        Raises:
            ValueError: no such task, or a slot without a value.
        """
        return self.find_task(task).prompt(self.language, **fields)

    def generation_kwargs(
        self, task: str | None = None, official: bool = False, zero_shot: bool = False
    ) -> dict[str, Any]:
        """Keywords of `generate` that belong to the task. The checkpoint's own are in `generation_config.json`.

        Args:
            official: let tasks that answer with boxes generate any word, as the original scripts do. By default they
                generate places only.
            zero_shot: choose places by their probabilities among all words, as the original's `--zero-shot` does. By
                default those among places count.
        """
        chosen = self.find_task(task)
        if chosen.answer == "image":
            codes = CodesOnly(*self.codes(), self._codes_of_image(chosen), self.tokenizer.eos_token_id)
            length = {"max_length": codes.length + 2}  # start and end tokens count
            return {**length, **chosen.generation, "logits_processor": LogitsProcessorList([codes])}
        if chosen.answer != "boxes" or official:
            return dict(chosen.generation)
        places_only = PlacesOnly(self.encode_bins([0])[0], self.tokenizer.eos_token_id, renormalize=not zero_shot)
        return {**chosen.generation, "logits_processor": LogitsProcessorList([places_only])}

    def post_process(
        self,
        sequences: Any,
        task: str | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        official: bool = False,
        image_decoder: Any = None,
    ) -> list[str] | list[dict[str, float] | None] | list[Image.Image]:
        """Generated ids `(batch, tokens)` → one answer per row.

        Args:
            image_sizes: `(width, height)` of each original image, for tasks that answer with boxes.
            official: texts as the original scripts write them before they score them: captions without punctuation,
                summaries in the tokens of Gigaword.
            image_decoder: for tasks that draw, what `load_image_decoder` returned; by default that of the checkpoint
                that this processor was loaded from. It needs diffusers.

        Returns:
            texts; for tasks that answer with boxes `{"xmin", "ymin", "xmax", "ymax"}` in pixels of the original
            image, and None for a row without four places, which only `official=True` generates; for tasks that draw
            RGB images.

        Raises:
            ImportError: a task that draws, and diffusers is not installed.
            ValueError: a task that answers with boxes got no image sizes, or a wrong number of them; a task that
                draws got other tokens than the codes of one image, or a VQGAN that does not fit.
        """
        chosen = self.find_task(task)
        if chosen.answer == "image":
            decoder = image_decoder or load_image_decoder(self.tokenizer.name_or_path)
            check_image_decoder(decoder, self.codes()[1])
            return images_of_codes(decoder, self._grids(sequences, chosen))
        if chosen.answer != "boxes":
            answers = self._answers(sequences)
            return list(map(OFFICIAL_TEXT[chosen.official_text], answers)) if official else answers
        if image_sizes is None or len(image_sizes) != len(sequences):
            seen = "none" if image_sizes is None else len(image_sizes)
            raise ValueError(
                f"The task {chosen.name!r} answers with boxes in pixels: pass image_sizes=[(width, height), …], one "
                f"for each of the {len(sequences)} rows. Got {seen}."
            )
        return [self._box(list(map(int, ids)), chosen, size) for ids, size in zip(sequences, image_sizes)]

    def _box(self, ids: list[int], task: Task, image_size: tuple[int, int]) -> dict[str, float] | None:
        """The box that the first four tokens after `<s>` name."""
        first = self.encode_bins([0])[0]
        places = [index - first for index in ids[1:5]]
        if len(places) < 4 or not all(0 <= place < NUM_PLACES for place in places):
            return None
        return places_to_box(places, tuple(map(int, image_size)), self.model_size(task))

    def codes(self) -> tuple[int, int]:
        """Id of `<code_0>`, and how many codes there are."""
        first = self.encode_codes([0])[0]
        return first, self.encode_bins([0])[0] - first

    def _codes_of_image(self, task: Task) -> int:
        width, height = self.model_size(task)
        return (width // PIXELS_PER_CODE) * (height // PIXELS_PER_CODE)

    def _grids(self, sequences: Any, task: Task) -> torch.LongTensor:
        """Generated ids `(batch, tokens)` → codes `(batch, rows, columns)`."""
        first, number = self.codes()
        codes = torch.as_tensor(sequences)[:, 1 : 1 + self._codes_of_image(task)] - first
        width, height = (side // PIXELS_PER_CODE for side in self.model_size(task))
        if codes.shape[1] != width * height or not bool(((codes >= 0) & (codes < number)).all()):
            raise ValueError(
                f"An image of the task {task.name!r} is {height} × {width} codes after the start token. Generate it "
                f"with the settings of processor.generation_kwargs({task.name!r})."
            )
        return codes.view(-1, height, width)

    def model_size(self, task: Task) -> tuple[int, int]:
        """`(width, height)` that the model reads for a task."""
        size = task.image.get("size", self.image_processor.size)
        return (size, size) if isinstance(size, int) else (size["width"], size["height"])

    def _answers(self, sequences: Any, skip_special_tokens: bool = True) -> list[str]:
        """Texts without the blank with which English answers start."""
        texts = self.batch_decode(sequences, skip_special_tokens)
        return [text.strip() for text in texts] if self._is_byte_level() else texts

    def _is_byte_level(self) -> bool:
        """Whether the tokenizer is that of an English checkpoint: pieces are bytes and carry their own blanks."""
        return self.tokenizer.convert_tokens_to_ids(BLANK) not in (None, self.tokenizer.unk_token_id)

    def _clean(self, texts: Iterable[str]) -> list[str]:
        """User texts as the tokenizer needs them to give the official ids."""
        return list(map(whole_characters if self._is_byte_level() else clean_text, texts))

    def __call__(
        self,
        images: Any = NOT_GIVEN,
        text: str | Mapping[str, str] | Sequence[str | Mapping[str, str]] | None = None,
        text_target: str | Sequence[str] | None = None,
        *,
        task: str | None = None,
        boxes: Sequence[float] | Sequence[Sequence[float]] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list of them (see `load_image`). Leave it out to encode text only; `images=None`
                says that there is no image, which is refused if the task needs one.
            text: with `task`, the value of the prompt's slot, or a dict of values; without it, the prompt itself. One
                for all images or one for each. None is the prompt of the task.
            text_target: expected answers, one per row.
            task: one of `processor.tasks`; by default `processor.default_task`.
            boxes: for a prompt with a box, `(xmin, ymin, xmax, ymax)` in pixels of the original image; one for all
                images or one for each. A dict in `text` may bring its own `"box"`.
            kwargs: options of the image processor (`size=256`) and of the tokenizer (`max_length=20`), by themselves
                or in `images_kwargs`, `text_kwargs` and `common_kwargs` as in transformers. `return_tensors` is "pt"
                by default; None gives lists.

        Returns:
            `input_ids`, `attention_mask (batch, tokens)`; with images `pixel_values (batch, 3, height, width)`; for a
            task whose answers start with the question `decoder_input_ids`, `decoder_attention_mask (batch, tokens)`,
            padded on the left: give a model questions of one length, or none but `score_choices` is exact; with
            targets `labels (batch, target tokens)`: target and `</s>`, −100 where a row is shorter; for a task that
            draws `code_masks (batch,)`.

        Raises:
            ImageError: an image cannot be read.
            TypeError: an unknown option.
            ValueError: nothing to prepare; numbers of images, texts, boxes and targets that differ; no such task; a
                text without an image where the task needs one; a box that does not fit its image.
        """
        image_options, text_options, return_tensors = split_options(kwargs)
        chosen, data, places = self.find_task(task), {}, None
        if boxes is not None or any(isinstance(row, Mapping) and BOX_SLOT in row for row in _as_rows(text)):
            images, text, places = self._take_boxes(chosen, images, text, boxes)
        if images is not None and images is not NOT_GIVEN:
            options = {**chosen.image, **image_options}
            data.update(self.image_processor(images, return_tensors=return_tensors, **options))
        elif chosen.needs_image and text is not None and (images is None or task is not None):
            raise ValueError(self._why_no_answer(chosen, text))
        texts = self._texts(data, text, task)
        if chosen.starts_with:  # the answer needs room after the question
            limit = self.max_prompt_tokens - min(ROOM_FOR_ANSWER, self.max_prompt_tokens // 2)
            text_options["max_length"] = min(text_options.get("max_length") or limit, limit)
        if texts is not None:
            data.update(self._encode(texts, return_tensors, **text_options))
        if places is not None:
            data.update(_insert_places(data, places, self.tokenizer.eos_token_id))
        if chosen.starts_with and texts is not None and text_target is None:
            data.update(_start_of_answers(data, chosen.starts_with == "question", self.tokenizer))
        if chosen.answer == "image" and texts is not None:
            if text_target is not None:
                raise ValueError(f"The task {chosen.name!r} answers with images, so it takes no text_target.")
            masks = [True] * len(texts)
            data["code_masks"] = masks if return_tensors is None else torch.tensor(masks)
        if text_target is not None:
            data["labels"] = self._labels(text_target, data, return_tensors)
        if not data:
            raise ValueError("OFAProcessor got neither images nor text nor text_target. Pass at least one of them.")
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_question(
        self,
        text: str | Mapping[str, Any] | None = None,
        task: str | None = None,
        image_size: tuple[int, int] | None = None,
        prompt: str | None = None,
        notice_language: bool = True,
    ) -> BatchFeature:
        """What a call gives for one row, but for its image: several questions can share one that was prepared once.

        Args:
            text, task: as in a call; a prompt's box is part of the dict.
            image_size: `(width, height)` of the original image, which a box must fit.
            prompt: the whole question, in place of the task's.
            notice_language: log once that a text is in another language than the checkpoint reads.

        Returns:
            tensors `(1, tokens)`. Nothing is cut: a long text has more tokens than `max_prompt_tokens`.

        Raises:
            ValueError: no such task, a slot without a value, or a box that does not fit.
        """
        chosen, places = self.find_task(task), None
        if isinstance(text, Mapping) and BOX_SLOT in text:
            box = check_box(parse_box(text[BOX_SLOT]), image_size or (0, 0))
            places = [self.encode_bins(box_to_places(box, image_size, self.model_size(chosen)))]
            text = {**text, BOX_SLOT: ""}
        whole = (
            self._checked(prompt, notice_language) if prompt is not None else self._text(text, task, notice_language)
        )
        data = self._encode([whole], None, truncation=False)
        if places is not None:
            data.update(_insert_places(data, places, self.tokenizer.eos_token_id))
        if chosen.starts_with:
            data.update(_start_of_answers(data, chosen.starts_with == "question", self.tokenizer))
        if chosen.answer == "image":
            data["code_masks"] = [True]
        return BatchFeature(data, tensor_type="pt")

    def _take_boxes(self, task: Task, images: Any, text: Any, boxes: Any) -> tuple[list, list, list[list[int]]]:
        """Loaded images, the text of each without its box, and the symbols of the four places of each box."""
        if BOX_SLOT not in task.fields:
            raise ValueError(f"The task {task.name!r} takes no boxes. Pass them with a task whose prompt has {{box}}.")
        if images is None or images is NOT_GIVEN:
            raise ValueError(f"The task {task.name!r} needs the image that the box lies in. Pass images as well.")
        images = list(map(load_image, images if isinstance(images, (list, tuple)) else [images]))
        texts = list(text) if isinstance(text, (list, tuple)) else [text] * len(images)
        if boxes is None:
            boxes = [row[BOX_SLOT] for row in texts]
        elif not any(hasattr(side, "__len__") for side in boxes):
            boxes = [boxes] * len(images)
        if not len(images) == len(texts) == len(boxes):
            raise ValueError(
                f"Got {len(images)} images, {len(texts)} texts and {len(boxes)} boxes. Pass one of each, or one text "
                f"or box for all images."
            )
        size = self.model_size(task)
        boxes = [check_box(box, image.size) for box, image in zip(boxes, images)]
        places = [self.encode_bins(box_to_places(box, image.size, size)) for box, image in zip(boxes, images)]
        return images, [{**(row or {}), BOX_SLOT: ""} for row in texts], places

    @staticmethod
    def _why_no_answer(task: Task, text: Any) -> str:
        return (
            f"The task {task.name!r} needs an image but got only the text {str(text)[:100]!r}. If that is an image, "
            f"call OFAImageToTextPipeline(model=model, processor=processor)(image), or pass image and prompt to "
            f"transformers' pipeline: pipe(image, text=processor.prompt_for())."
        )

    def _texts(self, data: dict, text: Any, task: str | None) -> list[str] | None:
        """One text per image; without images the texts as they are."""
        is_one = text is None or isinstance(text, (str, Mapping))
        if "pixel_values" not in data:
            return None if text is None else [self._text(one, task) for one in ([text] if is_one else text)]
        num_images = len(data["pixel_values"])
        if is_one:
            return [self._text(text, task)] * num_images
        if len(text) != num_images:
            raise ValueError(f"Got {num_images} images and {len(text)} texts. Pass one text, or one for each image.")
        return [self._text(one, task) for one in text]

    def _text(self, text: str | Mapping[str, str] | None, task: str | None, notice_language: bool = True) -> str:
        """The text of one row: the prompt of the task, filled with `text`, or without a task the text itself."""
        if isinstance(text, str) and task is None:
            return self._checked(text, notice_language)
        if isinstance(text, str):
            slots = self.find_task(task).fields
            if len(slots) != 1:
                needed = f"a dict with {', '.join(slots)}" if slots else "no text"
                raise ValueError(f"The task {task!r} takes {needed} but got the text {text[:100]!r}.")
            text = {slots[0]: text}
        for value in (text or {}).values():
            self._checked(value, notice_language)
        return self.prompt_for(task, **(text or {}))

    def _checked(self, text: Any, notice_language: bool = True) -> Any:
        """A text of the user's, which must not be an image; one in another language than the prompts may be noticed.

        Raises:
            ValueError: it is the path of an image file.
        """
        if not isinstance(text, str):
            return text
        if os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES and not IDEOGRAPH.search(text):
            raise ValueError(
                f"The text {text[:200]!r} is the name of an image file. Pass images as images=, and a question or "
                f"phrase as text."
            )
        if notice_language and is_foreign(text, self.language):
            trained, seen = ("English", "Chinese") if self.language == "en" else ("Chinese", "English")
            logger.warning_once(
                f"This checkpoint was trained on {trained} text but was asked in {seen}. Its answers to such texts "
                f"mean little."
            )
        return text

    def _encode(
        self, texts: list[str], return_tensors: str | None, truncation: bool | str = True, max_length=None, **options
    ) -> dict:
        length = min(max_length or self.max_prompt_tokens, self.max_prompt_tokens) if truncation else None
        options = {"padding": True, "truncation": truncation, "max_length": length, **options}
        texts = self._clean(texts)
        with TURNS:
            encoding = self.tokenizer(texts, return_tensors=return_tensors, **options)
            self._notice_cut_texts(texts, encoding["input_ids"], length)
        return {name: encoding[name] for name in ("input_ids", "attention_mask") if name in encoding}

    def _notice_cut_texts(self, texts: list[str], rows: Any, length: int | None) -> None:
        """Say once that a text was longer than `length` tokens."""
        if length is None or max(map(len, rows), default=0) < length:
            return
        longest = max(map(len, self.tokenizer(texts, truncation=False, padding=False)["input_ids"]))
        if longest > length:
            logger.warning_once(
                f"A text of more than {length:,} tokens was cut. Shorten such texts to have all of them read."
            )

    def _labels(self, targets: str | Sequence[str], data: dict, return_tensors: str | None) -> torch.Tensor | list:
        targets = [targets] if isinstance(targets, str) else list(targets)
        rows = len(data["input_ids"]) if "input_ids" in data else len(targets)
        if len(targets) != rows:
            raise ValueError(f"Got {rows} inputs and {len(targets)} targets. Pass one target for each input.")
        labels = self.encode_labels(targets)
        return labels.tolist() if return_tensors is None else labels

    def encode_labels(
        self, texts: Sequence[str], max_tokens: int | None = None, blank_before: bool = True
    ) -> torch.LongTensor:
        """Targets → labels `(batch, tokens)`: target and `</s>`, no `<s>`, −100 after the end.

        Args:
            texts: one per row.
            max_tokens: longer targets are cut, keeping `</s>`, which counts; at most and by default
                `max_target_tokens`.
            blank_before: an English target gets a blank in front if it has none, as in most of the official training.
        """
        limit = min(max_tokens or self.max_target_tokens, self.max_target_tokens)
        options = {"add_special_tokens": False, "truncation": True, "max_length": limit - 1}
        texts = self._clean(texts)
        if blank_before and self._is_byte_level():
            texts = [text if text[:1].isspace() else f" {text}" for text in texts]
        with TURNS:
            encoding = self.tokenizer(texts, **options)
        rows = [[*ids, self.tokenizer.eos_token_id] for ids in encoding["input_ids"]]
        labels = torch.full((len(rows), max(map(len, rows), default=0)), IGNORED_LABEL, dtype=torch.long)
        for label, ids in zip(labels, rows):
            label[: len(ids)] = torch.tensor(ids)
        return labels

    def encode_choices(self, texts: Sequence[str]) -> list[list[int]]:
        """Answers of a list → token ids for `model.score_choices`, without start and end tokens.

        Raises:
            ValueError: no answers, or some that are empty, that the vocabulary cannot write, or that it writes alike.
        """
        if not texts:
            raise ValueError("The list of answers is empty. Pass at least one.")
        with TURNS:  # an answer follows a blank, as in the original; in Chinese it makes no difference
            answers = [f" {text.strip()}" for text in self._clean(texts)]
            encoding = self.tokenizer(answers, add_special_tokens=False)
        seen: dict[tuple[int, ...], str] = {}
        unwritable, alike = [], []
        for text, ids in zip(texts, map(tuple, encoding["input_ids"])):
            if not ids or self.tokenizer.unk_token_id in ids:
                unwritable.append(text)
            elif ids in seen:
                alike.append(f"{seen[ids]!r} and {text!r}")
            else:
                seen[ids] = text
        if unwritable:
            raise ValueError(
                f"These answers have no words, or words that the vocabulary lacks: "
                f"{_first_ones(map(repr, unwritable))} ({len(unwritable)} of {len(texts)}). Change or remove them."
            )
        if alike:
            raise ValueError(
                f"These answers are the same to the model: {_first_ones(alike)} ({len(alike)} of {len(texts)}). "
                f"Remove one of each."
            )
        return list(map(list, seen))

    def encode_bins(self, values: Iterable[int]) -> list[int]:
        """Places 0 … 999 along an image's side → ids of `<bin_i>`, which no text encodes to."""
        return self._symbol_ids("bin", values)

    def encode_codes(self, values: Iterable[int]) -> list[int]:
        """Image codes, 0 … 8191 in most vocabularies → ids of `<code_i>`, which no text encodes to."""
        return self._symbol_ids("code", values)

    def _symbol_ids(self, kind: str, values: Iterable[int]) -> list[int]:
        symbols = [f"<{kind}_{int(value)}>" for value in values]
        ids = self.tokenizer.convert_tokens_to_ids(symbols)
        unknown = [symbol for symbol, index in zip(symbols, ids) if index in (None, self.tokenizer.unk_token_id)]
        if unknown:
            accepted = "Bins run from 0 to 999, codes from 0 to 8191 in most vocabularies."
            raise ValueError(f"No such symbols: {unknown[:5]}. {accepted}")
        return ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs) -> str:
        """Ids of one text → clean text. Keeps `<bin_i>` and `<code_i>`, drops negative ids (ignored labels).

        Args:
            token_ids: `(tokens,)`, a tensor, an array or a list.
            skip_special_tokens: drop `<s>`, `</s>`, `<pad>`, `[UNK]` and the other special tokens.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else [int(index) for index in ids if index >= 0]
        pieces = [piece for piece in self.tokenizer.convert_ids_to_tokens(ids) if piece is not None]
        if skip_special_tokens:
            pieces = [piece for piece in pieces if piece not in UNSPOKEN_TOKENS]
        return self.tokenizer.convert_tokens_to_string(pieces) if self._is_byte_level() else join_pieces(pieces)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Ids `(batch, tokens)` → clean texts; see `decode`."""
        return [self.decode(sequence, skip_special_tokens) for sequence in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Generated ids `(batch, tokens)` → answers, under the name that transformers' own pipelines call."""
        return [Answer(text) for text in self._answers(generated_outputs, skip_special_tokens)]

    def apply_chat_template(self, conversation: Any, *args, **kwargs) -> Any:
        """Chat messages → the last user message's question, or with `tokenize=True` the inputs of the model.

        A message with an image and no text asks the default task's question. Source: `ProcessorMixin`.
        """
        is_batch = not isinstance(conversation[0], Mapping)
        chats = [self._with_question(getattr(chat, "messages", chat)) for chat in conversation] if is_batch else None
        return super().apply_chat_template(chats or self._with_question(conversation), *args, **kwargs)

    def _with_question(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in which every content is a list of parts and the last user message has a text."""
        messages = [{**message, "content": _as_parts(message["content"])} for message in messages]
        asked = [message for message in messages if message["role"] == "user"]
        if not asked:
            raise ValueError("The chat has no message of the user. Pass {'role': 'user', 'content': …}.")
        if not any(part["type"] == "text" for part in asked[-1]["content"]):
            asked[-1]["content"].append({"type": "text", "text": self.prompt_for()})
        return messages

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save processor, tokenizer and image processor, the latter also in a file of its own for transformers 4."""
        if push_to_hub:  # the base class would upload before the last file is written
            written = self.save_pretrained(save_directory)
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)
            return written
        with TURNS:
            forget_use(self.tokenizer)
            written = super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return written


OFAProcessor.register_for_auto_class("AutoProcessor")  # save_pretrained copies the code
