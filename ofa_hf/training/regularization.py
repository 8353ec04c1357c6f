"""Dropout and stochastic depth of a run, set on modules; `model.config` keeps the values of the checkpoint."""

from collections.abc import Sequence

from torch import nn

from ofa_hf.modeling_ofa import OFAForConditionalGeneration
from ofa_hf.modeling_ofa_resnet import linear_rates
from ofa_hf.training.arguments import FinetuneArguments


def regularize(model: OFAForConditionalGeneration, args: FinetuneArguments) -> None:
    """Set the run's dropout (None: the checkpoint's) and its stochastic-depth rates, which rise linearly from 0."""
    if args.dropout is not None:
        set_dropout(model, args.dropout)
    trunk = model.encoder.embed_images
    set_drop_path(model.encoder.layers, args.encoder_drop_path_rate)
    set_drop_path(model.decoder.layers, args.decoder_drop_path_rate)
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
        set_drop_path(stage, args.resnet_drop_path_rate)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the dropout of `config.dropout`; that of attention weights and activations is unchanged."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "dropout":
            module.p = rate


def set_drop_path(layers: Sequence[nn.Module], last: float) -> None:
    for layer, rate in zip(layers, linear_rates(last, len(layers)), strict=True):
        layer.drop_path_rate = rate
