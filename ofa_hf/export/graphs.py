"""The network as two ONNX graphs, with their inputs and outputs.

`encoder.onnx` runs once per image; it also projects the keys and values of the decoder's cross-attention.
`decoder.onnx` runs once per step: tokens and cache in, scores of the next token and longer cache out. At first, the
cache has length 0. Rows of the decoder are a multiple of the encoder's batch, so beams share the states of their
image.

Everything is float32; batch, rows, text length, cache length and image size are dynamic.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ofa_hf.modeling_ofa import AttentionContext, OFAForConditionalGeneration
from ofa_hf.modeling_ofa_positions import mask_keys


OPSET = 18
SMALLEST_SIDE = 17  # pixels; an image of a single cell would give another graph
TRACED_SIDE = 32  # other values give the same graph
ENCODER_FILE, DECODER_FILE = "encoder.onnx", "decoder.onnx"
ENCODER_INPUTS = ("pixel_values", "input_ids", "attention_mask")
DECODER_INPUTS = ("decoder_input_ids", "encoder_mask", "cross_positions")


def state_names(prefix: str, num_layers: int) -> list[str]:
    """`<prefix>_keys.0`, `<prefix>_values.0`, `<prefix>_keys.1` …"""
    return [f"{prefix}_{what}.{layer}" for layer in range(num_layers) for what in ("keys", "values")]


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """`(batch, tokens, C)` → `(batch, heads, tokens, head_dim)`."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class EncoderGraph(nn.Module):
    """Images and prompts → the inputs of the decoder."""

    def __init__(self, model: OFAForConditionalGeneration):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """`(B, 3, height, width)`, `(B, T)`, `(B, T)` with 0 = padding → mask `(B, S)`, position keys `(1, H, S, D)`,
        and for each decoder layer keys and values `(B, H, S, D)`; S = image cells + T."""
        encoder, decoder = self.encoder, self.decoder
        features = encoder.embed_images(pixel_values)
        cells = encoder.image_proj(features.flatten(2).transpose(1, 2)) + encoder.type_embedding.weight[1]
        cells = encoder.patch_layernorm_embedding(cells)
        text = encoder.embed_text(encoder.embed_tokens(input_ids))
        mask = torch.cat([torch.ones_like(cells[..., 0], dtype=torch.int64), attention_mask], dim=1)
        states = torch.cat([cells, text], dim=1) * mask[..., None].to(cells.dtype)
        positions, biases = encoder.position_biases.compute(tuple(features.shape[-2:]), input_ids.shape[1])
        for layer, bias in zip(encoder.layers, biases, strict=True):
            states, _ = layer(states, mask_keys(bias, mask))
        states = encoder.layer_norm(states)
        outputs = [mask, split_heads(decoder.cross_pos_k_linear(positions), decoder.config.decoder_attention_heads)]
        for layer in decoder.layers:
            cross = layer.cross_attn
            outputs += [split_heads(project(states), cross.num_heads) for project in (cross.k_proj, cross.v_proj)]
        return tuple(outputs)


class DecoderGraph(nn.Module):
    """Tokens and cache → scores of the next token and the longer cache."""

    def __init__(self, model: OFAForConditionalGeneration):
        super().__init__()
        self.decoder = decoder = model.decoder
        attention = decoder.layers[0].self_attn
        steps = torch.arange(model.config.max_position_embeddings)
        with torch.no_grad():  # positions are the same in every call, so what depends only on them is a constant
            positions = decoder.position_biases.embeddings(steps)
            for name in ("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear"):
                states = split_heads(getattr(decoder, name)(positions), attention.num_heads)
                self.register_buffer(name, states * attention.scaling if "_q_" in name else states)

    def forward(self, decoder_input_ids: Tensor, encoder_mask: Tensor, cross_positions: Tensor, *states: Tensor):
        """`(N, T)` tokens, mask and position keys of the encoder, its keys and values, then the cache `(N, H, P, D)`
        → scores `(N, vocabulary)` of the token after the last, and the cache `(N, H, P + T, D)`."""
        decoder, num_layers = self.decoder, len(self.decoder.layers)
        cross, own = states[: 2 * num_layers], states[2 * num_layers :]
        past, num_tokens = own[0].shape[2], decoder_input_ids.shape[1]
        query_ids = torch.arange(num_tokens) + past
        cross_bias = self.cross_pos_q_linear[:, :, query_ids] @ cross_positions.mT
        rows = decoder_input_ids.shape[0] // encoder_mask.shape[0]
        cross_bias = mask_keys(cross_bias[:, :, None].expand(-1, -1, rows, -1, -1).flatten(2, 3), encoder_mask)
        cache = EncoderDecoderCache(as_cache(own), as_cache(cross))
        context = AttentionContext(cache=cache, positions=query_ids)
        hidden = decoder.embed(decoder.embed_tokens(decoder_input_ids), None)
        for layer, bias in zip(decoder.layers, self.self_biases(query_ids, past + num_tokens), strict=True):
            # of cross[0], only the batch size counts
            hidden, _, _ = layer(hidden, bias, cross[0], cross_bias, context)
        scores = decoder.output_projection(decoder.layer_norm(hidden[:, -1]))
        longer = [state for layer in cache.self_attention_cache.layers for state in (layer.keys, layer.values)]
        return scores, *longer

    def self_biases(self, query_ids: Tensor, num_keys: int) -> list[Tensor]:
        """Per layer the bias `(1, H, T, K)` of self-attention, later steps masked."""
        key_ids = torch.arange(num_keys)
        absolute = self.self_pos_q_linear[:, :, query_ids] @ self.self_pos_k_linear[:, :, key_ids].mT
        buckets = self.decoder.position_biases.text_buckets(query_ids, key_ids)
        later, lowest = key_ids > query_ids[:, None], torch.finfo(absolute.dtype).min
        tables = self.decoder.token_rel_pos_table_list
        return [(absolute + table(buckets).permute(2, 0, 1)).masked_fill(later, lowest) for table in tables]


def as_cache(states: tuple[Tensor, ...]) -> DynamicCache:
    """Keys and values of each layer as the cache that attention reads."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(states[::2], states[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def example_inputs(model: OFAForConditionalGeneration) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Example inputs of both graphs; all sizes are different, so that none is mistaken for another."""
    config, side = model.config, TRACED_SIDE
    encoder_inputs = (torch.zeros(2, 3, side, side), torch.full((2, 7), 5), torch.ones(2, 7, dtype=torch.int64))
    head_dim = config.d_model // config.decoder_attention_heads
    source = (-(-side // 16)) ** 2 + 7
    shapes = {"position": (1, source), "cross": (2, source), "own": (6, 5)}
    shapes = {
        name: (rows, config.decoder_attention_heads, length, head_dim) for name, (rows, length) in shapes.items()
    }
    layers = range(2 * config.decoder_layers)  # separate tensors, or the tracer would treat them as one
    states = [torch.zeros(shapes[name]) for name in ("position", *("cross" for _ in layers), *("own" for _ in layers))]
    return encoder_inputs, (torch.full((6, 3), 5), torch.ones(2, source, dtype=torch.int64), *states)


@torch.no_grad()
def write_graphs(model: OFAForConditionalGeneration, folder: Path) -> None:
    """Write both graphs of a model in float32 with eager attention; weights are next to them in `.data` files."""
    layers = model.config.decoder_layers
    encoder_inputs, decoder_inputs = example_inputs(model)
    batch, rows, text, source, past, tokens = map(
        torch.export.Dim, ("batch", "rows", "text", "source", "past", "tokens")
    )
    height, width = (torch.export.Dim(name, min=SMALLEST_SIDE) for name in ("height", "width"))
    cross, own = {0: batch, 2: source}, {0: rows, 2: past}
    write_graph(
        EncoderGraph(model),
        folder / ENCODER_FILE,
        encoder_inputs,
        ({0: batch, 2: height, 3: width}, {0: batch, 1: text}, {0: batch, 1: text}),
        list(ENCODER_INPUTS),
        [*DECODER_INPUTS[1:], *state_names("cross", layers)],
    )
    write_graph(
        DecoderGraph(model),
        folder / DECODER_FILE,
        decoder_inputs,
        ({0: rows, 1: tokens}, {0: batch, 1: source}, {2: source}, (*[cross] * 2 * layers, *[own] * 2 * layers)),
        [*DECODER_INPUTS, *state_names("cross", layers), *state_names("self", layers)],
        ["scores", *state_names("next", layers)],
    )


def write_graph(graph: nn.Module, path: Path, inputs, shapes, input_names: list[str], output_names: list[str]) -> None:
    """Trace a module and write it, with its weights in a separate file."""
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            verbose=False,
        )
    program.save(str(path), external_data=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages of the exporter that are for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
