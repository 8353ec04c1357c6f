"""transformers' Trainer with OFA's loss, several targets per row, and scores at evaluation."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ofa_hf.data.collator import IMAGE_ROWS
from ofa_hf.data.grouping import (
    GroupedTargets,
    GroupedTargetSampler,
    MixedTargets,
    MixedTargetSampler,
    count_targets,
)
from ofa_hf.errors import UserError
from ofa_hf.modeling_ofa import IGNORED_LABEL
from ofa_hf.prediction.loop import predict, show_progress
from ofa_hf.prediction.scoring import questions_of, references_of, score_tasks
from ofa_hf.publishing.push import publish_folder
from ofa_hf.training.arguments import FinetuneArguments
from ofa_hf.training.callbacks import SetSamplerEpoch
from ofa_hf.training.encoder_cache import LockedEncoder
from ofa_hf.training.losses import smoothed_cross_entropy, without_logits
from ofa_hf.training.result import keep_vqgan, latest_metrics, repository_name, save_result
from ofa_hf.training.resume import checkpoints_in, saving_to


logger = logging.get_logger(__name__)


class FairseqAdamW(torch.optim.AdamW):
    """AdamW whose epsilon is ε / √(1 − β₂ᵗ): fairseq adds ε before it corrects the second moment's bias.

    Source: fairseq `optim/adam.py`.
    """

    def __init__(self, params, eps: float = 1e-8, **kwargs):
        super().__init__(params, eps=eps, **kwargs)
        for group in self.param_groups:  # these are saved in checkpoints
            group.update(uncorrected_eps=eps, num_updates=0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["num_updates"] += 1
            group["eps"] = group["uncorrected_eps"] / math.sqrt(1 - group["betas"][1] ** group["num_updates"])
        return super().step(closure)


@cache
def let_torch_load_to_numbered_cpus() -> None:
    """Allow torch to load to `cpu:0`, where transformers 4 loads optimizers in runs with several processes."""
    torch.serialization.register_package(
        30, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )


class OFATrainer(Seq2SeqTrainer):
    """Trains on `GroupedTargets` and evaluates by predicting.

    The loss is the sum over real tokens divided by their number over all micro-batches and processes, so it does not
    depend on how a batch is split. Evaluation adds the scores of the task's metric to the loss.

    Args:
        finetune_args: options of the loss and of the evaluation.
        processor: the model's; its default task is the one that is trained. Saved with every checkpoint.
        encoder: runs the locked encoder outside of the model's `forward`.
        others: as for `Seq2SeqTrainer`. Data sets are `GroupedTargets`, so an item is a row with some of its targets.
    """

    def __init__(
        self, *args, finetune_args: FinetuneArguments, processor, encoder: LockedEncoder | None = None, **kwargs
    ):
        settings = kwargs["model"].config, kwargs["model"].generation_config
        self._settings_before = copy.deepcopy([vars(config) for config in settings])
        super().__init__(*args, processing_class=processor, **kwargs)
        self.encoder = encoder
        unwrapped = self.accelerator.unwrap_model(self.model)
        base_model = unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped
        base_model.loss_function = smoothed_cross_entropy
        self.finetune_args = finetune_args
        self.processor = processor
        self.last_predictions: dict[str, str] = {}
        self._last_loss: tuple[int, Tensor] | None = None  # step and its loss, to be checked later
        if finetune_args.adam_epsilon_as_fairseq:
            self.optimizer_cls_and_kwargs = FairseqAdamW, self._adamw_arguments()

    def _adamw_arguments(self) -> dict[str, Any]:
        optimizer, arguments = self.get_optimizer_cls_and_kwargs(self.args)
        if optimizer is not torch.optim.AdamW:
            raise UserError(f"adam_epsilon_as_fairseq needs AdamW, but optim is {self.args.optim}. Drop one of them.")
        return arguments

    # -- batches

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, (GroupedTargets, MixedTargets)):  # custom batches of the caller
            return super()._get_train_sampler(dataset)
        sampler = self._sampler(dataset, self.finetune_args.targets_per_row, shuffle=True)
        self.remove_callback(SetSamplerEpoch)  # from an earlier call of train()
        self.add_callback(SetSamplerEpoch(sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset: GroupedTargets | MixedTargets) -> torch.utils.data.Sampler:
        return self._sampler(eval_dataset, 0, shuffle=False)

    def _sampler(
        self, dataset: GroupedTargets | MixedTargets, targets_per_row: int, shuffle: bool
    ) -> GroupedTargetSampler | MixedTargetSampler:
        batch_size = self.args.train_batch_size if shuffle else self.args.eval_batch_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        block = batch_size * self.args.world_size
        if isinstance(dataset, MixedTargets):
            parts = {task: self._sampler(part, targets_per_row, shuffle) for task, part in dataset.parts.items()}
            weights = self.finetune_args.weights() if shuffle else {}
            return MixedTargetSampler(parts, weights, block, seed, shuffle)
        return GroupedTargetSampler(count_targets(dataset.dataset), targets_per_row, seed, shuffle, fill_to=block)

    # -- loss

    def _drops_worst(self) -> bool:
        ours = self.finetune_args
        return ours.drop_worst_ratio > 0 and self.state.global_step > ours.drop_worst_after

    def _kept_labels(self, labels: Tensor) -> Tensor:
        """Labels without the prefix and the `</s>` that the loss should ignore."""
        ours, labels = self.finetune_args, labels.clone()
        labels[:, : ours.ignore_prefix_size] = IGNORED_LABEL
        if ours.ignore_eos:
            labels[labels == self.processor.tokenizer.eos_token_id] = IGNORED_LABEL
        return labels

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """Number of tokens by which the losses of all micro-batches and processes are divided."""
        counted = []
        for batch in batch_samples:
            labels = self._kept_labels(batch["labels"])
            if self._drops_worst():
                number = int((labels != IGNORED_LABEL).sum())
                labels = labels.new_zeros(int(number * (1 - self.finetune_args.drop_worst_ratio)))  # any real token
            counted.append({"labels": labels})
        return super()._get_num_items_in_batch(counted, device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs):
        ours, inputs = self.finetune_args, self._encoded(dict(inputs), self.train_dataset)
        if model.training:
            if "decoder_input_ids" not in inputs:
                base = self.accelerator.unwrap_model(model)
                inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(inputs["labels"])
            inputs["labels"] = self._kept_labels(inputs["labels"])
            inputs["label_smoothing"] = ours.label_smoothing
            inputs["drop_worst_ratio"] = ours.drop_worst_ratio if self._drops_worst() else 0.0
        return super().compute_loss(model, inputs | without_logits(inputs["labels"]), *args, **kwargs)

    def _encoded(self, inputs: dict[str, Any], dataset) -> dict[str, Any]:
        """Inputs of `forward`, with images replaced by results of the locked encoder or shared by several rows."""
        if self.encoder is None:
            return self._with_shared_images(inputs)
        return self.encoder(self.accelerator.unwrap_model(self.model), inputs, getattr(dataset, "encoded", None))

    def _with_shared_images(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs in which every question has its image; the ResNet runs once for each image."""
        if IMAGE_ROWS not in inputs:
            return inputs
        inputs = dict(inputs)
        rows, images = inputs.pop(IMAGE_ROWS), inputs.pop("pixel_values")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # no part of the model runs on its own
            return {**inputs, "pixel_values": images[rows]}
        encoder = self.accelerator.unwrap_model(self.model).get_encoder()
        with self.accelerator.autocast():
            return {**inputs, "image_embeds": encoder.embed_image_cells(images)[rows]}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> Tensor:
        self._refuse_bad_loss()  # loss of the previous step: reading the current one would wait for the device
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._last_loss = self.state.global_step + 1, loss
        return loss

    def _refuse_bad_loss(self) -> None:
        """Raises `UserError` if the last loss was NaN or inf."""
        (step, loss), self._last_loss = self._last_loss or (0, None), None
        if loss is not None and not torch.isfinite(loss):
            self._stop(f"The loss of step {step} is {loss.item()}, so training stopped")

    def refuse_broken_model(self) -> None:
        """Raises `UserError` if the last step gave a loss of NaN or inf, or left such a weight."""
        self._refuse_bad_loss()
        weights = self.model.named_parameters()
        bad = next((name for name, value in weights if not torch.isfinite(value).all()), None)
        if bad:
            self._stop(
                f"After step {self.state.global_step} the weight {bad} is no longer finite, so training stopped"
            )

    def _stop(self, reason: str) -> None:
        good = [str(path) for path in checkpoints_in(self.args.output_dir)][-1:]
        kept = f"the last good checkpoint, {good[0]}, is kept" if good else "no checkpoint was saved before"
        again = f" and --model_name_or_path {good[0]}" if good else ""
        raise UserError(
            f"{reason}; {kept}. Start again with a learning_rate below {self.args.learning_rate:g} (or with bf16 "
            f"instead of fp16), another output_dir{again}."
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.finetune_args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # -- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        self.refuse_broken_model()
        with saving_to(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        self.restore_settings()
        super()._save(output_dir, state_dict)
        keep_vqgan(self, output_dir or self.args.output_dir)

    def restore_settings(self) -> None:
        """Undo the Trainer's changes to the model's configs (`use_cache`, the type of `eos_token_id`)."""
        model = self.accelerator.unwrap_model(self.model)
        for config, before in zip((model.config, model.generation_config), self._settings_before, strict=True):
            vars(config).update(copy.deepcopy(before))

    def _save_rng_state(self, output_dir: str) -> None:
        """Called in every process. The first one waits, because it then writes the file that ends a checkpoint."""
        super()._save_rng_state(output_dir)
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with self._resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.encoder is not None:
            self.encoder.refuse_other_weights(self.accelerator.unwrap_model(self.model))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._resuming(checkpoint):
            let_torch_load_to_numbered_cpus()
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _resuming(self, checkpoint: str | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any library that reads a checkpoint can raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"Cannot resume from {checkpoint}: {reason}. It must be complete and come from a run of the same "
                "model that locked the same parts. Resume with that run's arguments, pass an earlier checkpoint, or "
                "start over in another output_dir."
            ) from error

    def _issue_warnings_after_load(self, load_result) -> None:
        """Do not warn about names that share the word embedding, which is saved once."""
        tied = {id(parameter) for parameter in self.model.get_input_embeddings().parameters()}
        names = self.model.named_parameters(remove_duplicate=False)
        shared = {name for name, parameter in names if id(parameter) in tied}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in shared]
        super()._issue_warnings_after_load(load_result)

    # -- evaluation

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Mean loss per real token over all targets, and the scores of the predictions."""
        self._refuse_bad_loss()
        model = self._wrap_model(self.model, training=False, dataloader=dataloader).eval()
        dataset = dataloader.dataset
        if not isinstance(dataset, (GroupedTargets, MixedTargets)):
            raise UserError(
                f"OFATrainer got a {type(dataset).__name__} to evaluate on; it needs GroupedTargets. Wrap the rows: "
                "GroupedTargets(rows)."
            )
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            number = (batch["labels"] != IGNORED_LABEL).sum()
            with torch.no_grad(), self.accelerator.autocast():
                batch = self._encoded(batch, dataset) | without_logits(batch["labels"])
                loss = model(**batch, num_items_in_batch=1).loss
            totals += torch.stack([loss.double(), number.double()])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        loss_sum, num_tokens = self.accelerator.reduce(totals, "sum").tolist()
        if not math.isfinite(loss_sum):
            self._stop(f"The evaluation loss after step {self.state.global_step} is {loss_sum}, so training stopped")
        metrics = {"loss": loss_sum / max(1.0, num_tokens), **self._scores(dataset)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataset))

    def _scores(self, dataset: GroupedTargets | MixedTargets) -> dict[str, float]:
        """Predict the first `eval_rows` rows of each task, split among the processes, and score them together."""
        parts = dataset.parts if isinstance(dataset, MixedTargets) else {None: dataset}
        answered: dict[str | None, tuple[dict, dict]] = {}
        for task, part in parts.items():
            if self.processor.find_task(task).answer == "image":
                continue  # drawn images are scored with CLIP by `ofa-hf evaluate`
            number = min(self.finetune_args.eval_rows or len(part), len(part))
            predictions = self._predict(part, task, number)
            for name, references in references_of(part.dataset, number, task).items():
                answered[name] = {id_: predictions.get((name, id_), "") for id_ in references}, references
        self.last_predictions = {id_: text for texts, _ in answered.values() for id_, text in texts.items()}
        return score_tasks(answered, self.processor, isinstance(dataset, MixedTargets))

    def _predict(self, part: GroupedTargets, task: str | None, number: int) -> dict[tuple[str | None, str], Any]:
        """The best answers of all processes to the first rows, by task and id."""
        rows = (part.dataset[index] for index in range(self.args.process_index, number, self.args.world_size))
        generate = {"num_beams": self.args.generation_num_beams, "max_length": self.args.generation_max_length}
        generate = {name: value for name, value in generate.items() if value}
        model = self.accelerator.unwrap_model(self.model)
        batch_size = max(1, self.args.per_device_eval_batch_size)
        with self.accelerator.autocast():
            asked = (question for row in rows for question in questions_of(row, task))
            predictions = predict(model, self.processor, asked, task=task, batch_size=batch_size, **generate)
            if self.is_world_process_zero() and not self.args.disable_tqdm:
                predictions = show_progress(predictions, -(-number // self.args.world_size))
            answers = [(prediction.id, prediction.best) for prediction in predictions]
        return dict(gather_object(answers))

    # -- publishing

    def push_to_hub(
        self, commit_message: str = "Finetuned model", blocking: bool = True, token: str | None = None, **kwargs
    ) -> str | None:
        """Save the model and publish it like `ofa-hf finetune --push_to_hub true`: with its card, no checkpoints.

        Args:
            blocking: has no effect; the call returns when the commit exists.
            kwargs: for `publish_folder`, such as `revision` or `create_pr`.

        Returns:
            The URL of the repository; None in all processes but the first.

        Raises:
            UserError: the Hub refuses or cannot be reached.
        """
        save_result(self, latest_metrics(self))
        if not self.is_world_process_zero():
            return None
        kwargs = {"private": self.args.hub_private_repo, "message": commit_message, **kwargs}
        kwargs["token"] = token or self.args.hub_token
        return publish_folder(self.args.output_dir, repository_name(self.args), **kwargs)
