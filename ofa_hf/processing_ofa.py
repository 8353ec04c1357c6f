"""Images and text → model inputs, generated ids → clean text; owns the prompt that a checkpoint was trained with."""

import os
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging


logger = logging.get_logger(__name__)

OFFICIAL_PROMPT = "图片描述了什么内容?"
IGNORED_LABEL = -100  # what the loss leaves out
# Never part of a caption, whichever of them the tokenizer counts as special.
UNSPOKEN_TOKENS = frozenset("<s> <pad> </s> <unk> <mask> [PAD] [UNK] [CLS] [SEP] [MASK]".split())
# Scripts that are written without blanks: ideographs, kana, their symbols and the full-width forms.
UNSPACED = (
    "\u2e80-\u2fff\u3000-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
ENDS_IN_WORD = re.compile(rf"[^\W_{UNSPACED}]\Z")
STARTS_WITH_WORD = re.compile(rf"[^\W_{UNSPACED}]")
ENDS_IN_WORD_AND_MARK = re.compile(rf"[^\W\d_{UNSPACED}][,;!?]\Z")
IMAGE_OPTIONS = frozenset(
    "do_convert_rgb do_resize size resample do_rescale rescale_factor do_normalize image_mean image_std".split()
)

# A tokenizer keeps the settings of its last call, so threads that share one take turns.
TURNS = threading.Lock()
if hasattr(os, "register_at_fork"):  # a process that is forked during another thread's turn would wait for ever
    os.register_at_fork(before=TURNS.acquire, after_in_parent=TURNS.release, after_in_child=TURNS.release)


def join_pieces(pieces: Iterable[str]) -> str:
    """Join word pieces as a reader expects: 红 色 t 恤 iphone 13 pro ##s 3 . 5 → 红色t恤iphone 13 pros 3.5.

    Pieces that start with `##` continue a word. Blanks stand between two words of a script that has blanks, and after
    a comma or the end of a sentence between two such words; Chinese and punctuation have none. BERT's pieces do not
    tell where the blanks around other punctuation were (`a - b` and `a-b` are the same pieces), so there are none.
    """
    text = ""
    for piece in pieces:
        if piece.startswith("##") and len(piece) > 2:
            text += piece[2:]
        elif _needs_blank(text, piece):
            text += " " + piece
        else:
            text += piece
    return text


def _needs_blank(text: str, piece: str) -> bool:
    if not STARTS_WITH_WORD.match(piece):
        return False
    tail = text[-2:]
    if ENDS_IN_WORD_AND_MARK.search(tail):
        return not piece[0].isdigit()
    return ENDS_IN_WORD.search(tail) is not None


def whole_characters(texts: Iterable[str]) -> list[str]:
    """Texts with � for half characters, as of an emoji cut in two: no tokenizer takes one; � encodes to nothing."""
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


def forget_use(tokenizer: Any) -> None:
    """Remove what a tokenizer would save of its last call (padding, truncation) and of where it was loaded from."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)


class OFAProcessor(ProcessorMixin):
    """One object for both ends of the model: `processor(images, text)` and `processor.batch_decode(ids)`.

    Args:
        image_processor: an `OFAImageProcessor`.
        tokenizer: the BERT tokenizer of the checkpoint.
        prompt: the question that goes with an image when a call names none; the one the checkpoint was trained with.
        max_prompt_tokens: longer texts are cut, keeping `</s>`; `<s>` and `</s>` count. The model has 1,024 positions.
        max_caption_tokens: longer captions are cut, keeping `</s>`, which counts.
    """

    if transformers.__version__.startswith("4."):  # 5 reads the parts from the arguments below and warns about these
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        prompt: str = OFFICIAL_PROMPT,
        max_prompt_tokens: int = 1024,
        max_caption_tokens: int = 1024,
        **kwargs,
    ):
        if min(max_prompt_tokens, max_caption_tokens) < 2:
            raise ValueError(
                f"max_prompt_tokens={max_prompt_tokens}, max_caption_tokens={max_caption_tokens}: a text and its end "
                f"token need at least 2. Raise the smaller one."
            )
        self.prompt = prompt
        self.max_prompt_tokens = max_prompt_tokens
        self.max_caption_tokens = max_caption_tokens
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list of them (see `OFAImageProcessor`); None for text alone.
            text: one text for all images or one for each; None with images means the checkpoint's prompt.
            text_target: captions, one for each row.
            return_tensors: "pt" or None; None gives lists of ids.
            padding, truncation, max_length: of `text`; `max_length` is `max_prompt_tokens` unless given.
            kwargs: options of the image processor (`size=256`) or of the tokenizer (`padding_side="left"`).

        Returns:
            `input_ids`, `attention_mask (batch, tokens)`, with images `pixel_values (batch, 3, height, width)`, with
            captions `labels (batch, caption tokens)`: caption and `</s>`, −100 where a row is shorter.

        Raises:
            ValueError: nothing to prepare, or numbers of images, texts and captions that differ.
        """
        image_options = {name: kwargs.pop(name) for name in IMAGE_OPTIONS & kwargs.keys()}
        data = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors, **image_options))
        texts = self._texts(images, data, text)
        if texts is not None:
            data.update(self._encode(texts, return_tensors, padding, truncation, max_length, **kwargs))
        if text_target is not None:
            data["labels"] = self._labels(text_target, data, return_tensors)
        if not data:
            raise ValueError("OFAProcessor got neither images nor text nor text_target. Give at least one of them.")
        return BatchFeature(data, tensor_type=return_tensors)

    def _texts(self, images: Any, data: dict, text: str | Sequence[str] | None) -> list[str] | None:
        """One text for each image; without images the texts as they came."""
        if images is None:
            return [text] if isinstance(text, str) else text if text is None else list(text)
        num_images = len(data["pixel_values"])
        if text is None or isinstance(text, str):
            return [self.prompt if text is None else text] * num_images
        if len(text) != num_images:
            raise ValueError(f"Got {num_images} images and {len(text)} texts. Give one text, or one for each image.")
        return list(text)

    def _encode(self, texts, return_tensors, padding, truncation, max_length, **kwargs) -> dict:
        length = min(max_length or self.max_prompt_tokens, self.max_prompt_tokens) if truncation else None
        options = {"padding": padding, "truncation": truncation, "max_length": length} | kwargs
        with TURNS:
            encoding = self.tokenizer(whole_characters(texts), return_tensors=return_tensors, **options)
        return {name: encoding[name] for name in ("input_ids", "attention_mask") if name in encoding}

    def _labels(self, captions: str | Sequence[str], data: dict, return_tensors: str | None) -> torch.Tensor | list:
        captions = [captions] if isinstance(captions, str) else list(captions)
        rows = len(data["input_ids"]) if "input_ids" in data else len(captions)
        if len(captions) != rows:
            raise ValueError(f"Got {rows} inputs and {len(captions)} captions. Give one caption for each input.")
        labels = self.encode_labels(captions)
        return labels.tolist() if return_tensors is None else labels

    def encode_labels(self, captions: Sequence[str], max_tokens: int | None = None) -> torch.LongTensor:
        """Captions → labels `(batch, tokens)`: caption and `</s>`, no `<s>`, −100 after the end.

        Args:
            captions: one text for each row.
            max_tokens: longer captions are cut, keeping `</s>`, which counts; `max_caption_tokens` unless given.
        """
        limit = min(max_tokens or self.max_caption_tokens, self.max_caption_tokens)
        options = {"add_special_tokens": False, "truncation": True, "max_length": limit - 1}
        with TURNS:
            encoding = self.tokenizer(whole_characters(captions), **options)
        rows = [[*ids, self.tokenizer.eos_token_id] for ids in encoding["input_ids"]]
        labels = torch.full((len(rows), max(map(len, rows), default=0)), IGNORED_LABEL, dtype=torch.long)
        for label, ids in zip(labels, rows):
            label[: len(ids)] = torch.tensor(ids)
        return labels

    def encode_bins(self, values: Iterable[int]) -> list[int]:
        """Places 0 … 999 on an image's side → ids of `<bin_i>`; text never gives these ids."""
        return self._symbol_ids("bin", values)

    def encode_codes(self, values: Iterable[int]) -> list[int]:
        """Image codes 0 … 8191 → ids of `<code_i>`; text never gives these ids."""
        return self._symbol_ids("code", values)

    def _symbol_ids(self, kind: str, values: Iterable[int]) -> list[int]:
        symbols = [f"<{kind}_{int(value)}>" for value in values]
        ids = self.tokenizer.convert_tokens_to_ids(symbols)
        unknown = [symbol for symbol, index in zip(symbols, ids) if index in (None, self.tokenizer.unk_token_id)]
        if unknown:
            raise ValueError(f"No such symbols: {unknown[:5]}. Bins run from 0 to 999, codes from 0 to 8191.")
        return ids

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs) -> str:
        """Ids of one text → clean text; `<bin_i>` and `<code_i>` are kept, negative ids (ignored labels) left out.

        Args:
            token_ids: `(tokens,)`, a tensor, an array or a list.
            skip_special_tokens: leave out `<s>`, `</s>`, `<pad>`, `[UNK]` and their like.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else [int(index) for index in ids if index >= 0]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        if skip_special_tokens:
            pieces = [piece for piece in pieces if piece not in UNSPOKEN_TOKENS]
        return join_pieces(piece for piece in pieces if piece is not None)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Ids `(batch, tokens)` → clean texts; see `decode`."""
        return [self.decode(sequence, skip_special_tokens) for sequence in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Generated ids `(batch, tokens)` → clean texts; the name that transformers' own pipelines call."""
        return self.batch_decode(generated_outputs, skip_special_tokens)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save processor, tokenizer and image processor; the last also on its own, as transformers 4 reads it."""
        if push_to_hub:  # the base class would upload before the last file is written
            written = self.save_pretrained(save_directory)
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)
            return written
        with TURNS:
            forget_use(self.tokenizer)
            written = super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        return written


OFAProcessor.register_for_auto_class("AutoProcessor")  # or saving would write an auto_map without the files it names
