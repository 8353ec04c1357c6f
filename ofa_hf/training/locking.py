"""Choose what a run trains and what it locks. Locked means no gradients *and* inference mode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ofa_hf.modeling_ofa import OFAForConditionalGeneration
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import FinetuneArguments


# Parts of the decoder that only image codes use, and those that only texts use.
CODE_PARTS = ("embed_image_positions", "image_pos_ln", "code_layernorm_embedding", "image_rel_pos_table_list")
TEXT_PARTS = ("embed_positions", "pos_ln", "layernorm_embedding", "token_rel_pos_table_list")
# Parts of the encoder that only images use.
IMAGE_PARTS = ("embed_images", "image_proj", "patch_layernorm_embedding")
IMAGE_PARTS += ("embed_image_positions", "image_pos_ln", "image_rel_pos_table_list")


@dataclass(frozen=True)
class ParameterCount:
    """Number of trained and of locked weights."""

    trained: int
    locked: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.trained + self.locked)
        return f"{self.trained:,} weights are trained ({share:.0%}), {self.locked:,} are locked"


def unused_parts(model: OFAForConditionalGeneration, tasks: Sequence[Task]) -> Iterator[nn.Module]:
    """Parts that these tasks never use; without tasks, that captioning never uses."""
    draws = [task.answer == "image" for task in tasks]
    unused = {
        model.decoder: [*(() if any(draws) else CODE_PARTS), *(TEXT_PARTS if draws and all(draws) else ())],
        model.encoder: () if not tasks or any(task.needs_image for task in tasks) else IMAGE_PARTS,
    }
    for stack, names in unused.items():
        yield from (getattr(stack, name) for name in names)


def share_parts(tasks: Sequence[Task]) -> bool:
    """Whether all batches of a run use the same parts."""
    return len({(task.needs_image, task.answer == "image") for task in tasks}) < 2


def lock(model: OFAForConditionalGeneration, args: FinetuneArguments, tasks: Sequence[Task] = ()) -> None:
    """Lock the parts of a model that a run does not train.

    `freeze_encoder` locks the whole encoder (LiT) except the word embedding, which the decoder shares and which
    `freeze_word_embed` locks. `freeze_resnet` fixes only BatchNorm, its statistics and weights; the convolutions are
    trained. LoRA fixes BatchNorm too, because adapters are saved without statistics. Parts that none of the tasks uses
    are always locked, so that distributed training never waits for their gradients.
    """
    for part in unused_parts(model, tasks):
        part.requires_grad_(False)
    if args.locks_encoder:
        model.lock_encoder(not args.freeze_word_embed, through_encoder=args.embed_gradient_through_encoder)
    elif args.freeze_word_embed:
        model.get_input_embeddings().requires_grad_(False)
    if args.freeze_resnet or args.lora_rank:
        for module in batch_norms(model):
            module.requires_grad_(False)
            module.register_forward_pre_hook(_stay_in_inference_mode)


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _stay_in_inference_mode(module: nn.Module, _) -> None:
    module.training = False  # the Trainer calls `model.train()` before every step


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count trained and locked weights. Shared ones count once."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    locked = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return ParameterCount(trained, locked)
