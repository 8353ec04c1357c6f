"""`pipeline("image-to-text", model=…, trust_remote_code=True)` for OFA: images in, answers out."""

import os
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import logging

from .image_loading_ofa import load_image
from .versions_ofa import pipeline_generate_kwargs


logger = logging.get_logger(__name__)

# With these settings the score of a beam search is the mean log-probability; others scale or distort it.
PLAIN_SCORES = {
    "length_penalty": 1.0,
    "temperature": 1.0,
    "beam_temperature": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "do_sample": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "guidance_scale": None,
    "diversity_penalty": 0.0,
    "logits_processor": None,
}
PIPELINE_NAMES = ("", "image-to-text", "image-text-to-text")  # what transformers passes as `task`
ONE_IMAGE = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)

_last_process: int | None = None  # the last process that ran a model


def leave_lost_threads() -> None:
    """Use one thread in a process that was forked from one that ran a model.

    OpenMP's threads do not survive a fork, and torch would wait for them forever. torch's own data loader workers do
    the same.
    """
    global _last_process
    if _last_process not in (None, os.getpid()) and torch.get_num_threads() > 1:
        logger.warning("This process was forked from one that ran a model, so torch now computes with one thread.")
        torch.set_num_threads(1)
    _last_process = os.getpid()


def generate_answers(
    model: Any, inputs: Mapping[str, torch.Tensor], return_scores: bool, **generate: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generate token ids, and on request the mean log-probability of their tokens, `</s>` included.

    The encoder runs once for both. Scores are those of the beam search where that is the same number.

    Args:
        inputs: what the processor made of `batch` rows.
        generate: keywords of `model.generate`.

    Returns:
        `(batch * answers, tokens)` and `(batch * answers,)`, those of one row together.
    """
    encoder_inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    encoder_outputs = model.encode(**encoder_inputs)
    generated = model.generate(**inputs, encoder_outputs=encoder_outputs, return_dict_in_generate=True, **generate)
    if not return_scores:
        return generated.sequences, None
    from_search = getattr(generated, "sequences_scores", None)
    is_plain = all(_setting(model, name, generate) in (None, value) for name, value in PLAIN_SCORES.items())
    if from_search is not None and is_plain:
        return generated.sequences, from_search
    return generated.sequences, model.sequence_scores(generated.sequences, encoder_outputs=encoder_outputs)


def _setting(model: Any, name: str, generate: Mapping[str, Any]) -> Any:
    """A setting of `generate` as it was used; None is its default."""
    configs = (generate.get("generation_config"), model.generation_config)
    values = (generate.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


def is_stream(inputs: Any) -> bool:
    """Whether inputs are many images in sequence, such as a `datasets.Dataset` or an iterator."""
    if isinstance(inputs, (list, types.GeneratorType, torch.utils.data.Dataset, torch.Tensor, *ONE_IMAGE)):
        return False  # one image, or inputs that the base class streams itself
    if hasattr(inputs, "read") or hasattr(type(inputs), "__array_interface__"):  # a file; a PIL image, an array
        return False  # asked of the type: the attribute of a PIL image would decode it
    return isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


class OFAImageToTextPipeline(Pipeline):
    """Answers about images: captions, or another task of the checkpoint.

    `captioner("photo.jpg")` gives `[{"generated_text": "…"}]`, a list of images gives a list of such lists, and a
    generator or data set gives them one by one. An image is anything that `load_image` takes, or
    `{"image": image, "text": text}`.

    `pipeline("image-to-text", model=folder_or_id, trust_remote_code=True)` makes one. For a model in memory call
    `OFAImageToTextPipeline(model=model, processor=processor)`: `pipeline()` would take a class of transformers.
    """

    _load_processor = True  # brings tokenizer and image processor with it
    _load_image_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def __init__(self, *args, task: str = "", **kwargs):
        """Takes what `Pipeline` takes. `task` may be a task of the checkpoint instead of a pipeline's name.

        Raises:
            ValueError: the checkpoint has no such task.
        """
        super().__init__(*args, task=task, **kwargs)
        if task not in PIPELINE_NAMES:
            self.processor.find_task(task)
            for parameters in (self._preprocess_params, self._forward_params, self._postprocess_params):
                parameters["task"] = task

    def __call__(self, inputs: Any = None, **kwargs) -> Any:
        """Answer a question about images.

        Args:
            inputs: one image, a list, a generator, or a data set; also called `images`. A dict may bring its own
                `"text"`.
            task: one of `processor.tasks`; by default the checkpoint's default task. The text of an input then fills
                the slot of the task's prompt.
            prompt: text for inputs that bring none. Without a task it is the whole question.
            batch_size: images that go through the model together.
            num_return_sequences: answers per image, best first.
            return_scores: add `"score"`, the mean log-probability of an answer's tokens, `</s>` included. On by
                default when several answers are asked for.
            max_new_tokens, generate_kwargs: for `generate`, as is every other keyword.
            timeout: seconds to wait for the server of a URL.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ValueError: no input, no such task, or a text without an image where the task needs one.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("The pipeline got no images. Pass a path, a URL, a PIL image, or a list of them.")
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        if is_stream(inputs):
            inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        task: str | None = None,
        prompt: str | Mapping[str, str] | None = None,
        timeout: float | None = None,
        max_new_tokens: int | None = None,
        return_scores: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        def given(**values) -> dict:
            return {name: value for name, value in values.items() if value is not None}

        generating = given(task=task, max_new_tokens=max_new_tokens, return_scores=return_scores)
        return (
            given(task=task, prompt=prompt, timeout=timeout),
            {**generating, **(generate_kwargs or {}), **kwargs},
            given(task=task),
        )

    def preprocess(
        self,
        inputs: Any,
        task: str | None = None,
        prompt: str | Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict:
        if isinstance(inputs, Mapping) and ("image" in inputs or "text" in inputs):
            prompt, inputs = inputs.get("text", prompt), inputs.get("image")
        if not (prompt is None or isinstance(prompt, (str, Mapping))):
            raise ValueError(
                f'The text must be one string but is {prompt!r}. Pass {{"image": image, "text": text}}, or no text.'
            )
        image = None if inputs is None else load_image(inputs, timeout=timeout)
        return self.processor(images=image, text=prompt, task=task, return_tensors="pt")

    def _forward(
        self, model_inputs: dict, task: str | None = None, return_scores: bool | None = None, **generate_kwargs
    ) -> dict:
        if "generation_config" not in generate_kwargs:
            generate_kwargs = {**self.processor.generation_kwargs(task), **generate_kwargs}
        generate_kwargs = pipeline_generate_kwargs(self, generate_kwargs)
        leave_lost_threads()
        inputs = dict(model_inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        num_rows = len(inputs["input_ids"])
        asks_for_several = (_setting(self.model, "num_return_sequences", generate_kwargs) or 1) > 1
        with_scores = asks_for_several if return_scores is None else return_scores
        sequences, scores = generate_answers(self.model, inputs, with_scores, **generate_kwargs)
        # The base class gives row i of every tensor to input i.
        outputs = {"sequences": sequences.view(num_rows, len(sequences) // num_rows, -1)}
        if scores is not None:
            outputs["scores"] = scores.float().view(num_rows, -1)
        return outputs

    def postprocess(self, model_outputs: dict, task: str | None = None) -> list[dict]:
        answers = self.processor.post_process(model_outputs["sequences"].flatten(0, 1), task)
        if "scores" not in model_outputs:
            return [{"generated_text": answer} for answer in answers]
        scores = model_outputs["scores"].flatten().tolist()
        return [{"generated_text": answer, "score": score} for answer, score in zip(answers, scores)]
