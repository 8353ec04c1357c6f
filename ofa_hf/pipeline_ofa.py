"""`pipeline("image-to-text", model=…, trust_remote_code=True)` for OFA: images in, captions out."""

import os
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image as download
from transformers.utils import logging

from .image_processing_ofa import ImageError, load_image


logger = logging.get_logger(__name__)

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
ONE_IMAGE = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)


_last_process: int | None = None  # that ran a model


def leave_lost_threads() -> None:
    """Go on with one thread in a process that was forked from one that ran a model.

    OpenMP's threads do not come along when a process forks, and torch would wait for them for ever. torch's own data
    loader workers do the same.
    """
    global _last_process
    if _last_process not in (None, os.getpid()) and torch.get_num_threads() > 1:
        logger.warning("This process was forked from one that ran a model before: torch computes with one thread now.")
        torch.set_num_threads(1)
    _last_process = os.getpid()


def fetch_image(source: Any, timeout: float | None = None) -> Any:
    """Load an image from wherever it is, `http(s)` addresses and rows of `datasets` included; see `load_image`.

    Args:
        timeout: seconds to wait for a server.

    Raises:
        ImageError: there is no image; the message names the file or address.
    """
    if isinstance(source, Mapping):  # an image column of `datasets` that is not decoded
        source = source.get("bytes") or source.get("path")
    if not (isinstance(source, str) and source.startswith(("http://", "https://"))):
        return load_image(source)
    try:
        return load_image(download(source, timeout=timeout or DOWNLOAD_TIMEOUT))
    except Exception as error:  # the libraries that transformers 4 and 5 fetch with have no error in common
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ImageError(
            f"{source} gives no image ({reason}). Check the address, or download the file first."
        ) from error


def is_stream(inputs: Any) -> bool:
    """Whether inputs are many images that come one after another, such as a `datasets.Dataset` or an iterator."""
    if isinstance(inputs, (list, types.GeneratorType, torch.utils.data.Dataset, torch.Tensor, *ONE_IMAGE)):
        return False  # one image, or something that the base class streams by itself
    if hasattr(inputs, "read") or hasattr(type(inputs), "__array_interface__"):  # a file; a PIL image, an array
        return False  # asked of the type: a PIL image would decode itself to answer
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


class OFAImageToTextPipeline(Pipeline):
    """Captions for images.

    `captioner("photo.jpg")` gives `[{"generated_text": "…"}]`, a list of images gives a list of such lists, and a
    generator or data set gives them one by one. An image is a path, an address, base64 text, bytes, a PIL image, an
    array, or `{"image": image, "text": prompt}`.
    """

    _load_processor = True  # it brings tokenizer and image processor along
    _load_image_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def __call__(self, inputs: Any = None, **kwargs) -> Any:
        """Caption images.

        Args:
            inputs: one image, a list, a generator, or a data set; also called `images`.
            prompt: question for images that bring none; default: the checkpoint's own.
            batch_size: images that go through the model together.
            num_return_sequences: captions for each image, best first.
            return_scores: add `"score"`, the mean log-probability of a caption's tokens, `</s>` included; by default
                when several captions are asked for.
            max_new_tokens, generate_kwargs: for `generate`, as is every other keyword.
            timeout: seconds to wait for the server of an address.

        Raises:
            ImageError: an image cannot be read; the message names it.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("The pipeline got no images. Give a path, an address, a PIL image, or a list of them.")
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        if is_stream(inputs):
            inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        timeout: float | None = None,
        max_new_tokens: int | None = None,
        return_scores: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        preparing = {"prompt": prompt, "timeout": timeout}
        generating = {"max_new_tokens": max_new_tokens, "return_scores": return_scores}
        given = {name: value for name, value in generating.items() if value is not None}
        return (
            {name: value for name, value in preparing.items() if value is not None},
            {**given, **(generate_kwargs or {}), **kwargs},
            {},
        )

    def preprocess(self, inputs: Any, prompt: str | None = None, timeout: float | None = None) -> dict:
        if isinstance(inputs, Mapping) and ("image" in inputs or "text" in inputs):
            prompt, inputs = inputs.get("text", prompt), inputs.get("image")
        if not (prompt is None or isinstance(prompt, str)):
            raise ValueError(
                f'A prompt must be one text but is {prompt!r}. Give {{"image": image, "text": prompt}}, or no text.'
            )
        image = None if inputs is None else fetch_image(inputs, timeout)
        return self.processor(images=image, text=prompt, return_tensors="pt")

    def _forward(self, model_inputs: dict, return_scores: bool | None = None, **generate_kwargs) -> dict:
        if hasattr(self, "_prepare_generate_kwargs"):  # transformers 5
            generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        elif "generation_config" not in generate_kwargs:  # transformers 4
            # The model's settings with those given to the pipeline; generate would take `num_beams=1` for "not given".
            generate_kwargs |= {"generation_config": self.generation_config, "use_model_defaults": False}
        leave_lost_threads()
        inputs = dict(model_inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        encoder_outputs = self.model.encode(**inputs)  # once for the captions and their scores
        generated = self.model.generate(
            **inputs, encoder_outputs=encoder_outputs, return_dict_in_generate=True, **generate_kwargs
        )
        return self._by_image(generated.sequences, len(inputs["input_ids"]), encoder_outputs, return_scores)

    def _by_image(self, sequences: torch.Tensor, num_images: int, encoder_outputs, return_scores) -> dict:
        """Give each image one row: the base class hands row i of every tensor to image i."""
        num_captions = len(sequences) // num_images
        outputs = {"sequences": sequences.view(num_images, num_captions, -1)}
        if num_captions > 1 if return_scores is None else return_scores:
            scores = self.model.sequence_scores(sequences, encoder_outputs=encoder_outputs)
            outputs["scores"] = scores.float().view(num_images, num_captions)
        return outputs

    def postprocess(self, model_outputs: dict) -> list[dict]:
        captions = self.processor.batch_decode(model_outputs["sequences"].flatten(0, 1))
        if "scores" not in model_outputs:
            return [{"generated_text": caption} for caption in captions]
        scores = model_outputs["scores"].flatten().tolist()
        return [{"generated_text": caption, "score": score} for caption, score in zip(captions, scores)]
