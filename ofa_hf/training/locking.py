"""Choose what a run trains and what it locks. Locked means no gradient *and* inference mode."""

from dataclasses import dataclass

from torch import nn

from ofa_hf.modeling_ofa import OFAForConditionalGeneration
from ofa_hf.training.arguments import FinetuneArguments


# Parts of the decoder that only image codes use. Texts never touch them, so they never get a gradient.
CODE_PARTS = ("embed_image_positions", "image_pos_ln", "code_layernorm_embedding", "image_rel_pos_table_list")


@dataclass(frozen=True)
class ParameterCount:
    """Number of trained and of locked weights."""

    trained: int
    locked: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.trained + self.locked)
        return f"{self.trained:,} weights are trained ({share:.0%}), {self.locked:,} are locked"


def lock(model: OFAForConditionalGeneration, args: FinetuneArguments) -> None:
    """Lock the parts of a model that a run does not train.

    `freeze_encoder` locks the whole encoder (LiT) except the word embedding, which the decoder shares and which
    `freeze_word_embed` locks. `freeze_resnet` fixes only BatchNorm, its statistics and weights; the convolutions are
    trained. LoRA fixes BatchNorm too, because adapters are saved without statistics. Parts that no text target uses
    are always locked, so that distributed training never waits for their gradients.
    """
    for part in CODE_PARTS:
        getattr(model.decoder, part).requires_grad_(False)
    if args.freeze_encoder:
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
