"""Pipelines of OFA, under transformers' names: `pipeline("image-to-text", model=…, trust_remote_code=True)`."""

import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, Pipeline
from transformers.utils import logging

from .image_loading_ofa import load_image
from .image_processing_ofa import check_image_decoder, load_image_decoder
from .tasks_ofa import MAX_DESCRIPTION
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
}
IMAGES_PER_BATCH = 16  # that are drawn together
PHRASES_PER_BATCH = 16  # that are located together
MAX_SEED = 2**63 - 1
PIPELINE_NAMES = ("", "image-to-text", "image-text-to-text")  # what transformers passes as `task`
OF_OTHER_MODELS = frozenset(  # what transformers' pipelines of these names take for theirs; nothing to do here
    "hypothesis_template tokenizer_kwargs truncation padding max_question_len clean_up_tokenization_spaces "
    "return_text return_all_scores function_to_apply".split()
)
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

    The encoder runs once for both. Scores are those of the beam search where that is the same number. Answers that
    start with questions of different length are searched length by length, since padding would move their positions.

    Args:
        inputs: what the processor made of `batch` rows.
        generate: keywords of `model.generate`.

    Returns:
        `(batch * answers, tokens)`, without the question that an answer starts with, and `(batch * answers,)`; those
        of one row together.
    """
    encoder_inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    encoder_outputs = model.encode(**encoder_inputs)
    if "decoder_input_ids" not in inputs:
        return _search(model, encoder_outputs, inputs, return_scores, generate)
    lengths = inputs["decoder_attention_mask"].sum(1).tolist()
    texts, scores = [None] * len(lengths), [None] * len(lengths)
    for length in sorted(set(lengths)):
        rows = [row for row, own in enumerate(lengths) if own == length]
        is_real = inputs["decoder_attention_mask"][rows].bool()
        of_rows = {name: inputs[name][rows] for name in ("input_ids", "attention_mask")}
        of_rows["decoder_input_ids"] = inputs["decoder_input_ids"][rows][is_real].view(len(rows), length)
        found = _search(model, encoder_outputs.rows(rows), of_rows, return_scores, generate)
        for name, values in zip((texts, scores), found):
            for row, value in zip(rows, [None] * len(rows) if values is None else values.chunk(len(rows))):
                name[row] = value
    longest = max(text.shape[1] for text in texts)
    padded = [
        torch.nn.functional.pad(text, (0, longest - text.shape[1]), value=model.config.pad_token_id) for text in texts
    ]
    return torch.cat(padded), torch.cat(scores) if return_scores else None


def with_length(
    of_task: Mapping[str, Any], given: Mapping[str, Any], defaults: Any, answer_follows: bool
) -> dict[str, Any]:
    """Keywords of `generate`: those of a task with those of a call on top.

    A `max_length` of the call is turned into new tokens where the task or the checkpoint limits those, since
    `generate` would prefer their limit, and where a question comes before the answer, which `max_length` would count.

    Args:
        defaults: generation settings of the checkpoint.
        answer_follows: answers of the task start with a question.
    """
    settings = {**of_task, **given}
    counts_new = answer_follows or of_task.get("max_new_tokens") or getattr(defaults, "max_new_tokens", None)
    if given.get("max_length") and counts_new and not given.get("max_new_tokens"):
        settings["max_new_tokens"] = max(settings.pop("max_length") - 1, 1)
    return settings


def _search(
    model: Any,
    encoder_outputs: Any,
    inputs: Mapping[str, torch.Tensor],
    return_scores: bool,
    generate: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Answers to rows whose answers start with questions of one length, as `generate_answers` returns them."""
    prompt_length = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
    if generate.get("max_new_tokens"):  # transformers warns where the model's own settings have a max_length
        generate = {**generate, "max_length": prompt_length + generate["max_new_tokens"], "max_new_tokens": None}
    generated = model.generate(**inputs, encoder_outputs=encoder_outputs, return_dict_in_generate=True, **generate)
    sequences = generated.sequences
    answers = torch.cat([sequences[:, :1], sequences[:, prompt_length:]], dim=1)
    if not return_scores:
        return answers, None
    from_search = getattr(generated, "sequences_scores", None)
    is_plain = all(_setting(model, name, generate) in (None, value) for name, value in PLAIN_SCORES.items())
    is_plain &= all(getattr(each, "before_softmax", False) for each in generate.get("logits_processor") or ())
    if is_plain and from_search is not None:
        return answers, from_search
    return answers, model.sequence_scores(sequences, encoder_outputs=encoder_outputs, prompt_length=prompt_length)


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


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None, the value for "not given"."""
    return {name: value for name, value in values.items() if value is not None}


class OFAPipeline(Pipeline):
    """What the pipelines of OFA share: the checkpoint's processor, and its task for this pipeline."""

    pipeline_name = ""  # as transformers calls pipelines of this kind
    _load_processor = True  # brings tokenizer and image processor with it
    _load_image_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def _task_for(self, name: str | None = None) -> str:
        """Name of the task to answer: the one given, else the first of the checkpoint that this pipeline answers.

        Raises:
            ValueError: the checkpoint has no such task.
        """
        if name is not None:
            return self.processor.find_task(name).name
        names = [self.processor.default_task, *self.processor.tasks]
        fitting = [name for name in names if self.processor.find_task(name).pipeline == self.pipeline_name]
        if not fitting:
            raise ValueError(
                f"This checkpoint has no task for the pipeline {self.pipeline_name!r}. Its tasks: "
                f"{', '.join(self.processor.tasks)}. Use the pipeline of one of those, or another checkpoint."
            )
        return fitting[0]

    def _search_settings(self, task: str, given: Mapping[str, Any], **of_task: Any) -> dict[str, Any]:
        """Keywords of `generate`: those of the task with those of a call on top."""
        if "generation_config" not in given:
            starts = bool(self.processor.find_task(task).starts_with)
            given = with_length(
                self.processor.generation_kwargs(task, **of_task), given, self.model.generation_config, starts
            )
        return pipeline_generate_kwargs(self, given)


class OFAImageToTextPipeline(OFAPipeline):
    """Answers about images: captions, or another task of the checkpoint.

    `captioner("photo.jpg")` gives `[{"generated_text": "…"}]`, a list of images gives a list of such lists, and a
    generator or data set gives them one by one. An image is anything that `load_image` takes, or
    `{"image": image, "text": text}`.

    `pipeline("image-to-text", model=folder_or_id, trust_remote_code=True)` makes one. For a model in memory call
    `OFAImageToTextPipeline(model=model, processor=processor)`: `pipeline()` would take a class of transformers.
    """

    pipeline_name = "image-to-text"

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
            return_scores: add `"score"`, the mean log-probability of an answer's tokens, `</s>` included; where the
                task has a list of answers, their log-probability in the list. On by default when several answers are
                asked for.
            official: answers as the original scripts search and write them; see `generation_kwargs` and `post_process`
                of the processor.
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
        official: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        generating = _given(task=task, max_new_tokens=max_new_tokens, return_scores=return_scores, official=official)
        return (
            _given(task=task, prompt=prompt, timeout=timeout),
            {**generating, **(generate_kwargs or {}), **kwargs},
            _given(task=task, official=official),
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
        encoded = self.processor(images=image, text=prompt, task=task, return_tensors="pt")
        if image is not None and self.processor.find_task(task).answer == "boxes":
            encoded["image_sizes"] = torch.tensor([image.size])
        return encoded

    def _forward(
        self,
        model_inputs: dict,
        task: str | None = None,
        return_scores: bool | None = None,
        official: bool = False,
        **generate_kwargs,
    ) -> dict:
        generate_kwargs = self._search_settings(task, generate_kwargs, official=official)
        leave_lost_threads()
        inputs = dict(model_inputs)
        image_sizes = inputs.pop("image_sizes", None)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        num_rows = len(inputs["input_ids"])
        number = _setting(self.model, "num_return_sequences", generate_kwargs) or 1
        with_scores = number > 1 if return_scores is None else return_scores
        if choices := self._choices_of(task):
            scores = self.model.score_choices(self.processor.encode_choices(choices), **inputs)
            best = scores.float().topk(min(number, len(choices)))
            return {"choices": best.indices, **({"scores": best.values} if with_scores else {})}
        sequences, scores = generate_answers(self.model, inputs, with_scores, **generate_kwargs)
        # The base class gives row i of every tensor to input i.
        outputs = {"sequences": sequences.view(num_rows, len(sequences) // num_rows, -1)}
        if scores is not None:
            outputs["scores"] = scores.float().view(num_rows, -1)
        if image_sizes is not None:
            outputs["image_sizes"] = image_sizes
        return outputs

    def _choices_of(self, task: str | None) -> tuple[str, ...]:
        """The answers of a task that has a list of them."""
        chosen = self.processor.find_task(task)
        return tuple(chosen.choices) if chosen.answer == "choice" else ()

    def postprocess(self, model_outputs: dict, task: str | None = None, official: bool = False) -> list[dict]:
        if "choices" in model_outputs:
            choices = self._choices_of(task)
            answers = [{"generated_text": choices[index]} for index in model_outputs["choices"].flatten().tolist()]
        else:
            sequences = model_outputs["sequences"].flatten(0, 1)
            sizes = model_outputs["image_sizes"].tolist() * len(sequences) if "image_sizes" in model_outputs else None
            key = "generated_text" if sizes is None else "box"
            answers = [{key: answer} for answer in self.processor.post_process(sequences, task, sizes, official)]
        if "scores" not in model_outputs:
            return answers
        scores = model_outputs["scores"].flatten().tolist()
        return [{**answer, "score": score} for answer, score in zip(answers, scores)]


class OFAObjectDetectionPipeline(OFAPipeline):
    """Locates phrases in images: one box per phrase, in pixels of the original image.

    `pipe("photo.jpg", candidate_labels=["red dress", "hat"])` gives `[{"score": 0.9, "label": "red dress", "box":
    {"xmin": …, "ymin": …, "xmax": …, "ymax": …}}, …]`, best first. `pipeline("zero-shot-object-detection",
    model=folder_or_id, trust_remote_code=True)` makes one.
    """

    pipeline_name = "zero-shot-object-detection"

    def __call__(self, image: Any = None, candidate_labels: str | Sequence[str] | None = None, **kwargs) -> Any:
        """Locate phrases.

        Args:
            image: anything that `load_image` takes, a list of them, or `{"image", "candidate_labels"}`.
            candidate_labels: phrases, or one string of them divided by commas.
            threshold: boxes with a lower score are left out, 0 by default. A score is the mean probability of the
                places (their geometric mean), so a phrase that is nowhere in the image has a low one.
            top_k: at most so many boxes per image.
            official: let the model generate any word, as the original scripts do; phrases without a box are left out.
            zero_shot: choose places by their probabilities among all words, as the original's `--zero-shot` does.
            task: a task of the checkpoint that answers with boxes.
            timeout: seconds to wait for the server of a URL.
            kwargs: for `generate`. An image passes the ResNet once for all its phrases.

        Raises:
            ImageError: an image cannot be read.
            ValueError: no image or no phrases, or the checkpoint has no task that answers with boxes.
        """
        image = kwargs.pop("images", kwargs.pop("inputs", image))
        kwargs.pop("batch_size", None)  # the phrases of an image are the batch
        if image is None:
            raise ValueError("The pipeline got no image. Pass a path, a URL, a PIL image, or a list of them.")
        if isinstance(image, (list, tuple)):
            return super().__call__([_with_labels(one, candidate_labels) for one in image], **kwargs)
        return super().__call__(_with_labels(image, candidate_labels), **kwargs)

    def _sanitize_parameters(
        self,
        task: str | None = None,
        timeout: float | None = None,
        official: bool | None = None,
        zero_shot: bool | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        return (
            _given(task=task, timeout=timeout),
            {**_given(task=task, official=official, zero_shot=zero_shot), **(generate_kwargs or {}), **kwargs},
            _given(task=task, threshold=threshold, top_k=top_k),
        )

    def preprocess(self, inputs: Mapping[str, Any], task: str | None = None, timeout: float | None = None) -> dict:
        task, labels = self._task_for(task), inputs["candidate_labels"]
        if self.processor.find_task(task).answer != "boxes":
            raise ValueError(f"The task {task!r} does not answer with boxes, which this pipeline gives.")
        image = load_image(inputs["image"], timeout=timeout)
        prompts = [self.processor._text(label, task) for label in labels]
        pixels = self.processor(images=image, text=labels[0], task=task)["pixel_values"]
        return {"pixel_values": pixels, **self.processor(text=prompts), "labels": labels, "image_size": image.size}

    def _forward(
        self,
        model_inputs: dict,
        task: str | None = None,
        official: bool = False,
        zero_shot: bool = False,
        **generate_kwargs,
    ) -> dict:
        options = {"official": official, "zero_shot": zero_shot}
        generate_kwargs = self._search_settings(self._task_for(task), generate_kwargs, **options)
        leave_lost_threads()
        cells = self.model.embed_image_cells(model_inputs["pixel_values"].to(self.model.dtype))
        texts = (model_inputs[name].split(PHRASES_PER_BATCH) for name in ("input_ids", "attention_mask"))
        sequences, scores = [], []
        for ids, mask in zip(*texts):
            inputs = {"input_ids": ids, "attention_mask": mask, "image_embeds": cells.expand(len(ids), -1, -1, -1)}
            found, found_scores = generate_answers(self.model, inputs, True, **generate_kwargs)
            sequences += found.tolist()
            scores += found_scores.float().exp().tolist()
        return {**model_inputs, "sequences": sequences, "scores": scores}

    def postprocess(
        self, model_outputs: dict, task: str | None = None, threshold: float = 0.0, top_k: int | None = None
    ) -> list[dict]:
        sequences, labels = model_outputs["sequences"], model_outputs["labels"]
        boxes = self.processor.post_process(
            sequences, self._task_for(task), [model_outputs["image_size"]] * len(sequences)
        )
        per_label = len(sequences) // len(labels)
        labels = [label for label in labels for _ in range(per_label)]
        found = [
            {"score": score, "label": label, "box": box}
            for score, label, box in zip(model_outputs["scores"], labels, boxes, strict=True)
            if box is not None and score >= threshold
        ]
        return sorted(found, key=lambda one: -one["score"])[:top_k]


def _with_labels(image: Any, labels: str | Sequence[str] | None) -> dict[str, Any]:
    """An image with its labels as a list.

    Raises:
        ValueError: no labels, or labels that are no strings.
    """
    if isinstance(image, Mapping) and "image" in image:
        image, labels = image["image"], image.get("candidate_labels", labels)
    labels = labels.split(",") if isinstance(labels, str) else list(labels or ())
    labels = [label.strip() if isinstance(label, str) else "" for label in labels]
    if not labels or not all(labels):
        raise ValueError(f"candidate_labels must be texts, at least one and none of them empty; got {labels[:8]}.")
    return {"image": image, "candidate_labels": labels}


class OFAChoicePipeline(OFAPipeline):
    """What the pipelines that choose among answers share."""

    key = "label"  # of an answer in the results

    def _sanitize_parameters(
        self,
        task: str | None = None,
        timeout: float | None = None,
        top_k: int | None = None,
        search: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        kwargs = {name: value for name, value in kwargs.items() if name not in OF_OTHER_MODELS}
        return (
            _given(task=task, timeout=timeout),
            {**_given(task=task, top_k=top_k, search=search), **(generate_kwargs or {}), **kwargs},
            _given(top_k=top_k),
        )

    def _run(self, image: Any, one: Callable[[Any], dict], kwargs: dict) -> Any:
        kwargs.pop("batch_size", None)  # the answers to one question are the batch
        if image is None:
            raise ValueError(f"The pipeline {self.pipeline_name!r} got no input. Pass one, or a list of them.")
        if isinstance(image, (list, tuple)):
            return super().__call__([one(each) for each in image], **kwargs)
        return super().__call__(one(image), **kwargs)

    def preprocess(self, inputs: Mapping[str, Any], task: str | None = None, timeout: float | None = None) -> dict:
        name = self._task_for(task)
        chosen = self.processor.find_task(name)
        choices = list(inputs["choices"] or chosen.choices)
        if chosen.answer == "choice" and not choices:
            raise ValueError(f"The task {name!r} chooses among answers. Pass candidate_labels=, a list of them.")
        images = {"images": load_image(inputs["image"], timeout=timeout)} if "image" in inputs else {}
        return {**self.processor(**images, text=inputs["text"], task=name), "choices": choices}

    def _forward(
        self,
        model_inputs: dict,
        task: str | None = None,
        top_k: int | None = None,
        search: bool = False,
        **generate_kwargs,
    ) -> dict:
        leave_lost_threads()
        inputs, task = dict(model_inputs), self._task_for(task)
        choices = inputs.pop("choices")
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        ids = self.processor.encode_choices(choices) if choices else []
        if choices and not search:
            return {"answers": choices, "scores": self.model.score_choices(ids, **inputs)[0].exp().tolist()}
        settings = self._search_settings(task, generate_kwargs)
        number = settings.setdefault("num_return_sequences", top_k or 1)
        if (_setting(self.model, "num_beams", settings) or 1) < number:
            settings["num_beams"] = number
        if choices:
            start = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
            trie = self.model.answer_trie(ids, start)
            settings["logits_processor"] = LogitsProcessorList([trie])
        sequences, scores = generate_answers(self.model, inputs, True, **settings)
        return {"answers": self.processor.post_process(sequences, task), "scores": scores.float().exp().tolist()}

    def postprocess(self, model_outputs: dict, top_k: int | None = None) -> list[dict]:
        found = zip(model_outputs["scores"], model_outputs["answers"], strict=True)
        found = [{"score": score, self.key: answer} for score, answer in found]
        return sorted(found, key=lambda one: -one["score"])[:top_k]


class OFAQuestionAnsweringPipeline(OFAChoicePipeline):
    """Answers questions about images, freely or from a list of answers.

    `pipe(image="photo.jpg", question="这是什么颜色的?", top_k=2)` gives `[{"score": 0.9, "answer": "红色"}, …]`, best
    first. `pipeline("visual-question-answering", model=folder_or_id, trust_remote_code=True)` makes one.
    """

    pipeline_name = "visual-question-answering"
    key = "answer"

    def __call__(self, image: Any = None, question: str | None = None, **kwargs) -> Any:
        """Answer a question.

        Args:
            image: anything that `load_image` takes, a list of them, or `{"image", "question"}`, which may also bring
                a field of the task's longer prompt: `"objects"`, or for visual entailment `"caption"`.
            question: for images that bring none; a list of them is asked of each image. For visual entailment, the
                hypothesis.
            candidate_answers: a list of answers to choose from. Scores are then probabilities that sum to 1; those of
                free answers are the mean probability of their tokens (the geometric mean).
            search: find the best answers of the list by beam search, as the original's `beam` evaluation does, instead
                of scoring each. Scores are then those of free answers.
            top_k: at most so many answers; 1 by default for free ones, all for those of a list.
            task, timeout, kwargs: a task of the checkpoint, seconds to wait for the server of a URL, and settings of
                `generate` for free answers.

        Raises:
            ImageError: an image cannot be read.
            ValueError: no image or no question, or answers that cannot be chosen from.
        """
        image = kwargs.pop("images", kwargs.pop("inputs", image))
        answers, slot = kwargs.pop("candidate_answers", None), self._slot(kwargs.get("task"))
        if isinstance(question, (list, tuple)) and image is not None:
            images = image if isinstance(image, (list, tuple)) else [image]
            image = [{"image": one, "question": text} for one in images for text in question]

        def one(item: Any) -> dict[str, Any]:
            own = dict(item) if isinstance(item, Mapping) and "image" in item else {"image": item}
            picked, text = own.pop("image"), own.pop("question", question)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"The question must be a text but is {text!r}. Pass question=.")
            return {"image": picked, "text": {**own, slot: text}, "choices": answers}

        return self._run(image, one, kwargs)

    def _slot(self, task: str | None) -> str:
        """The field that a question fills.

        Raises:
            ValueError: the prompt of the task takes no question, or more than one text.
        """
        name = self._task_for(task)
        fields = self.processor.find_task(name).fields
        if len(fields) != 1:
            needed = f"a dict with {', '.join(fields)}" if fields else "no text"
            raise ValueError(f"The task {name!r} takes {needed}, so it answers no question. Use another task=.")
        return fields[0]


class OFAClassificationPipeline(OFAChoicePipeline):
    """Finds the label of an image among thousands: one pass of the encoder, and of the decoder where labels part.

    `pipe("photo.jpg", candidate_labels=["cat", "dog"])` gives `[{"score": 0.9, "label": "cat"}, …]`, best first; the
    scores sum to 1. `pipeline("zero-shot-image-classification", model=folder_or_id, trust_remote_code=True)` makes
    one.
    """

    pipeline_name = "zero-shot-image-classification"

    def __call__(self, image: Any = None, candidate_labels: str | Sequence[str] | None = None, **kwargs) -> Any:
        """Classify images.

        Args:
            image: anything that `load_image` takes, a list of them, or `{"image", "candidate_labels"}`.
            candidate_labels: labels, or one string of them divided by commas.
            top_k: at most so many labels.
            task, timeout: a task of the checkpoint, and seconds to wait for the server of a URL.

        Raises:
            ImageError: an image cannot be read.
            ValueError: no image, no labels, or labels that cannot be chosen from.
        """
        image = kwargs.pop("images", kwargs.pop("inputs", image))

        def one(item: Any) -> dict[str, Any]:
            row = _with_labels(item, candidate_labels)
            return {"image": row["image"], "text": None, "choices": row["candidate_labels"]}

        return self._run(image, one, kwargs)


class OFATextClassificationPipeline(OFAChoicePipeline):
    """Answers questions about sentences with one word of a list, as the tasks of GLUE do.

    `pipe("a charming journey", task="sst2")` gives `[{"score": 0.9, "label": "positive"}, …]`, best first; the scores
    sum to 1. Tasks about two sentences take a dict: `{"sentence1": "…", "sentence2": "…"}`.
    `pipeline("text-classification", model=folder_or_id, trust_remote_code=True)` makes one.
    """

    pipeline_name = "text-classification"

    def __call__(self, text: Any = None, **kwargs) -> Any:
        """Classify sentences.

        Args:
            text: a sentence, a dict with the fields of the task's prompt, or a list of them. `"text"` and
                `"text_pair"` stand for the first and the second field, as in transformers.
            candidate_labels: answers to choose from, by default those of the task.
            task, top_k: a task of the checkpoint, and at most so many labels.

        Raises:
            ValueError: no text, or one that lacks a field of the prompt.
        """
        text, labels = kwargs.pop("inputs", text), kwargs.pop("candidate_labels", None)
        fields = self.processor.find_task(self._task_for(kwargs.get("task"))).fields

        def one(item: Any) -> dict[str, Any]:
            if isinstance(item, Mapping) and "text" in item and "text" not in fields:
                item = dict(zip(fields, (item["text"], item.get("text_pair", ""))))
            return {"text": item, "choices": labels}

        return self._run(text, one, kwargs)


class OFASummarizationPipeline(OFAPipeline):
    """Summarizes articles: `pipe("…")` gives `[{"summary_text": "…"}]`, a list of articles a list of such dicts.

    `pipeline("summarization", model=folder_or_id, trust_remote_code=True)` makes one.
    """

    pipeline_name = "summarization"

    def __call__(self, documents: Any = None, **kwargs) -> list[dict]:
        """Summarize articles.

        Args:
            documents: an article, or a list of them.
            official: summaries as the original scripts write them, in the tokens of Gigaword.
            task, generate_kwargs, kwargs: a task of the checkpoint, and settings of `generate`.

        Raises:
            ValueError: no article, or one that is no text.
        """
        documents = kwargs.pop("inputs", documents)
        kwargs.pop("batch_size", None)
        articles = list(documents) if isinstance(documents, (list, tuple)) else [documents]
        if not articles or not all(isinstance(article, str) and article.strip() for article in articles):
            raise ValueError(f"The pipeline needs articles, which are texts, but got {str(documents)[:100]!r}.")
        summaries = super().__call__(articles, **kwargs)
        return [each for of_article in summaries for each in of_article]

    def _sanitize_parameters(
        self,
        task: str | None = None,
        official: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        kwargs = {name: value for name, value in kwargs.items() if name not in OF_OTHER_MODELS}
        generating = {**_given(task=task), **(generate_kwargs or {}), **kwargs}
        return _given(task=task), generating, _given(task=task, official=official)

    def preprocess(self, inputs: str, task: str | None = None) -> dict:
        return self.processor(text=inputs, task=self._task_for(task))

    def _forward(self, model_inputs: dict, task: str | None = None, **generate_kwargs) -> dict:
        leave_lost_threads()
        settings = self._search_settings(self._task_for(task), generate_kwargs)
        return {"sequences": generate_answers(self.model, dict(model_inputs), False, **settings)[0]}

    def postprocess(self, model_outputs: dict, task: str | None = None, official: bool = False) -> list[dict]:
        texts = self.processor.post_process(model_outputs["sequences"], self._task_for(task), official=official)
        return [{"summary_text": text} for text in texts]


class OFATextToImagePipeline(OFAPipeline):
    """Draws texts: `pipe("a red dress", num_images=4, seed=7)` gives `[{"image": …, "score": …}, …]`, best first.

    `pipeline("text-to-image", model=folder_or_id, trust_remote_code=True)` makes one. It needs diffusers.
    """

    pipeline_name = "text-to-image"

    def __call__(self, text: Any = None, **kwargs) -> Any:
        """Draw texts.

        Args:
            text: what to draw, at most 64 words, or a list of texts.
            num_images: samples of each text, 1 by default. A sample is independent of the others.
            seed: from 0 to 2**63 - 1. The same seed draws a text again, whatever is drawn before it; by default each
                call draws anew.
            image_decoder: a `diffusers.VQModel` in place of the checkpoint's.
            on_step: called after each code with the steps done and those of the whole text, `(40, 1026)`; what it
                raises ends the call.
            notice_language: log once that a text is in another language than the checkpoint reads; on by default.
            task, kwargs: a task of the checkpoint, and settings of `generate`: `do_sample=False` takes the best code
                at each place, `num_beams=5` searches, `top_k` and `temperature` change the samples.

        Returns:
            images with the mean log-probability of their codes, best first; for a list of texts a list of such lists.

        Raises:
            ImportError: diffusers is not installed.
            ValueError: no text, or one that is empty or too long; a checkpoint that does not draw, a VQGAN that does
                not fit it, or fewer beams than images.
        """
        text = kwargs.pop("inputs", text)
        kwargs.pop("batch_size", None)  # the images of a text are the batch
        if isinstance(text, (list, tuple)) and not text:
            return []
        return super().__call__(list(text) if isinstance(text, tuple) else text, **kwargs)

    def _sanitize_parameters(
        self,
        task: str | None = None,
        num_images: int | None = None,
        seed: int | None = None,
        image_decoder: Any = None,
        on_step: Callable[[int, int], object] | None = None,
        notice_language: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        num_images = kwargs.pop("num_return_sequences", num_images)  # as other pipelines call it
        if num_images is not None and (type(num_images) is not int or num_images < 1):
            raise ValueError(f"num_images={num_images!r}. Accepted: a whole number from 1.")
        if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
            raise ValueError(f"seed={seed!r}. Accepted: a whole number from 0 to {MAX_SEED}.")
        kwargs = {name: value for name, value in kwargs.items() if name not in OF_OTHER_MODELS}
        decoding = _given(task=task, image_decoder=image_decoder)
        drawing = {**_given(num_images=num_images, seed=seed, on_step=on_step), **(generate_kwargs or {}), **kwargs}
        reading = {**decoding, **_given(notice_language=notice_language)}
        return reading, {**_given(task=task), **drawing}, decoding

    def preprocess(
        self, inputs: Any, task: str | None = None, image_decoder: Any = None, notice_language: bool = True
    ) -> dict:
        name = self._task_for(task)
        text = inputs["text"] if isinstance(inputs, Mapping) and "text" in inputs else inputs
        encoded = encode_description(self.processor, text, name, notice_language)
        check_image_decoder(image_decoder or self._image_decoder(), self.processor.codes()[1])
        check_window(self.processor, name, self.model.config)
        return encoded

    def _image_decoder(self) -> Any:
        config = self.model.config
        return load_image_decoder(config._name_or_path, getattr(config, "_commit_hash", None))

    def _forward(
        self,
        model_inputs: dict,
        task: str | None = None,
        num_images: int = 1,
        seed: int | None = None,
        on_step: Callable[[int, int], object] | None = None,
        **generate_kwargs,
    ) -> dict:
        settings = self._drawing_settings(self._task_for(task), generate_kwargs)
        num_beams, do_sample = (_setting(self.model, name, settings) for name in ("num_beams", "do_sample"))
        is_search = (num_beams or 1) > 1
        if num_images > (num_beams or 1) and not (do_sample and not is_search):
            raise ValueError(
                f"num_images={num_images}, but a search with {num_beams or 1} beams finds no more than that. Raise "
                f"num_beams, lower num_images, or draw samples, with num_beams=1 and do_sample=True."
            )
        leave_lost_threads()
        encoder_outputs = self.model.encode(**{name: model_inputs[name] for name in ("input_ids", "attention_mask")})
        at_once = num_images if is_search else IMAGES_PER_BATCH
        found, scores = [], []
        steps = Steps(on_step, settings["max_length"] * math.ceil(num_images / at_once)) if on_step else None
        if steps and is_search:  # to which transformers gives no streamer
            settings["logits_processor"] = LogitsProcessorList([*settings["logits_processor"], steps])
        elif steps:
            settings["streamer"] = steps
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for first in range(0, num_images, at_once):
                settings["num_return_sequences"] = min(at_once, num_images - first)
                inputs = {**model_inputs, "encoder_outputs": encoder_outputs, **settings}
                part = self.model.generate(**inputs, return_dict_in_generate=True)
                found.append(part.sequences)
                scores.append(self._scores(part, encoder_outputs, settings))
        if steps:
            steps.finish()
        return {"sequences": torch.cat(found), "scores": torch.cat(scores).float()}

    def _drawing_settings(self, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of `generate`, with which it makes the codes of an image and nothing else."""
        settings = self._search_settings(task, given)
        if (_setting(self.model, "num_beams", settings) or 1) > 1:
            settings |= {"do_sample": False, "early_stopping": given.get("early_stopping", True)}
        if "generation_config" in given:  # which does not know images
            of_task = self.processor.generation_kwargs(task)
            settings |= {name: of_task[name] for name in ("max_length", "logits_processor")}
        return settings

    def _scores(self, found: Any, encoder_outputs: Any, settings: Mapping[str, Any]) -> torch.Tensor:
        """Mean log-probabilities: those of the search, or computed anew where it gives none or others."""
        scores = getattr(found, "sequences_scores", None)
        if scores is not None and _setting(self.model, "length_penalty", settings) in (None, 1.0):
            return scores
        masks = torch.ones(len(found.sequences), dtype=torch.bool, device=found.sequences.device)
        words = settings["logits_processor"][0].words
        return self.model.sequence_scores(found.sequences, encoder_outputs, code_masks=masks, words=words)

    def postprocess(self, model_outputs: dict, task: str | None = None, image_decoder: Any = None) -> list[dict]:
        scores, order = model_outputs["scores"].sort(descending=True, stable=True)
        decoder = image_decoder or self._image_decoder()
        sequences = model_outputs["sequences"][order]
        images = self.processor.post_process(sequences, self._task_for(task), image_decoder=decoder)
        return [{"image": image, "score": score} for image, score in zip(images, scores.tolist(), strict=True)]


class Steps(LogitsProcessor):
    """Counts the steps of a drawing: a streamer for samples, and a logits processor that changes nothing for searches.

    Args:
        on_step: called with the steps done and the total.
    """

    def __init__(self, on_step: Callable[[int, int], object], total: int):
        self.on_step, self.total, self.done = on_step, total, 0

    def put(self, value: Any) -> None:
        self.done += 1
        self.on_step(self.done, self.total)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.put(input_ids)
        return scores

    def end(self) -> None:
        pass

    def finish(self) -> None:
        """Say that all is done, unless that was said."""
        if self.done < self.total:
            self.done = self.total
            self.on_step(self.total, self.total)


def check_window(processor: Any, task: str, config: Any) -> None:
    """Check that a model has places for the codes of the images that a task draws.

    Raises:
        ValueError: it has them for images of another size.
    """
    width, height = processor.model_size(processor.find_task(task))
    if not width == height == config.code_image_size:
        raise ValueError(
            f"The task {task!r} draws images of {width} × {height} pixels, but the model has places for those of "
            f"code_image_size={config.code_image_size}. Make both the same in the checkpoint's files."
        )


class TextTooLong(ValueError):
    """A text is longer than the model can read.

    Args:
        length, limit: of the text, and the most there may be.
        unit: of both, "words" or "tokens".
    """

    def __init__(self, text: str, length: int, limit: int, unit: str):
        self.length, self.limit, self.unit = length, limit, unit
        counted = "tokens, its prompt included" if unit == "tokens" else unit
        super().__init__(
            f"The text {text[:60]!r}… has {length:,} {counted}. The model reads at most {limit:,}. Shorten the text."
        )


def encode_description(processor: Any, text: Any, task: str, notice_language: bool = True) -> dict[str, torch.Tensor]:
    """A text that is to be drawn → the inputs of the model.

    Args:
        notice_language: as in `OFAProcessor.encode_question`.

    Raises:
        ValueError: it is no text, empty, or longer than the model was trained for.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Drawing needs a text, but got {repr(text)[:100]}. Describe the image in a few words.")
    if (words := len(text.split())) > MAX_DESCRIPTION:
        raise TextTooLong(text, words, MAX_DESCRIPTION, "words")
    encoded = processor.encode_question(text, task, notice_language=notice_language)
    if (length := encoded["input_ids"].shape[1]) > processor.max_prompt_tokens:
        raise TextTooLong(text, length, processor.max_prompt_tokens, "tokens")
    return dict(encoded)
