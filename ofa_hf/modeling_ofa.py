"""OFA: one sequence-to-sequence network for images and text.

The file reads bottom-up: arithmetic of positions, loss, attention, layers, encoder, decoder, the model that generates.
What is particular to OFA: pre-norm layers with extra norms after attention and inside the feed-forward (NormFormer), a
learned scale per head, and attention scores that add three things: content, absolute positions (untied projections)
and relative positions (tables per layer). The last two depend on shapes alone, so they are computed once a shape.

Source: OFA `models/ofa/unify_transformer.py`, `unify_transformer_layer.py`, `unify_multihead_attention.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerationMixin, GenerationMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .configuration_ofa import OFAConfig
from .modeling_ofa_decoding import BeamCache, StepLayer, packed_products_of, products_of, step_modules
from .modeling_ofa_kernels import (
    OFADropout,
    OFALinear,
    biased_attention,
    biased_attention_pays,
    can_pack,
    fast_dtype,
    folding,
    is_observed,
    linear,
    linear_gelu,
    number_of_parts,
    pack,
    products_pay,
)
from .modeling_ofa_memory import PackedMemory, ShapeMemory
from .modeling_ofa_packing import RealTokens
from .modeling_ofa_resnet import OUTPUT_CHANNELS, OFAResNet, drop_path, linear_rates
from .modeling_ofa_search import EndAtMaxLength, EndFrom, Rules, SoftmaxTemperature, beam_search, padded


# Never runs. Saving copies the files named here, and transformers 4 loads no others, not even those that these import.
if TYPE_CHECKING:
    from .image_loading_ofa import load_image  # noqa: F401
    from .image_processing_ofa import OFAImageProcessor  # noqa: F401
    from .modeling_ofa_int8 import int8_works  # noqa: F401
    from .pipeline_ofa import OFAImageToTextPipeline  # noqa: F401
    from .processing_ofa import OFAProcessor  # noqa: F401
    from .tasks_ofa import Task  # noqa: F401
    from .versions_ofa import TRANSFORMERS_5  # noqa: F401

logger = logging.get_logger(__name__)

PIXELS_PER_CELL = 16  # the trunk's stride
BEYOND_CODE_GRID = 1024  # position that OFA gives image codes past its code window
IGNORED_LABEL = -100
FEW_IMAGES = 2  # captioned at once
STEPWISE = {GenerationMode(name) for name in ("greedy_search", "sample", "beam_search", "beam_sample")}
CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"  # until transformers 5.23
_TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5


# ---------------------------------------------------------------------------------------------- positions


def token_position_buckets(bucket_size: int, max_position: int) -> Tensor:
    """Bucket of every signed distance between two tokens.

    Args:
        bucket_size: distances up to half of this have a bucket each, longer ones share logarithmic buckets.
        max_position: longest text in tokens.

    Returns:
        `(2 * max_position - 1,)` int64; entry `query - key + max_position - 1`, values from 0 to 2 * bucket_size - 2.

    Source: OFA `make_token_bucket_position`; float64 gives the buckets of the original's float32.
    """
    middle = bucket_size // 2
    distance = torch.arange(max_position, dtype=torch.float64, device="cpu")
    growth = torch.log(distance.clamp(min=middle - 1) / middle) / math.log((max_position - 1) / middle)
    bucket = torch.where(distance <= middle, distance, torch.ceil(growth * (middle - 1)) + middle).long()
    return torch.cat([-bucket[1:].flip(0), bucket]) + bucket_size - 1


def image_grid_positions(height: int, width: int, bucket_size: int, device: torch.device | None = None) -> Tensor:
    """Number the cells of a feature map row by row inside a `bucket_size` × `bucket_size` grid.

    Args:
        height, width: size of the feature map in cells of 16 pixels.

    Returns:
        `(height * width,)` int64, values from 1; 0 is the position outside the image.
    """
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)[None, :]
    return (rows * bucket_size + columns + 1).flatten()


def image_position_buckets(query_ids: Tensor, key_ids: Tensor, bucket_size: int) -> Tensor:
    """Bucket of the 2-D offset between grid positions: `(Q,)`, `(K,)` → `(Q, K)` int64.

    Position 0 lies outside the grid and has three buckets of its own, after those of the offsets.

    Source: OFA `make_image_bucket_position` (as in BEiT), computed for the positions in use instead of for all.
    """
    side = 2 * bucket_size - 1
    rows, columns = (query_ids - 1) // bucket_size, (query_ids - 1) % bucket_size
    key_rows, key_columns = (key_ids - 1) // bucket_size, (key_ids - 1) % bucket_size
    offset = (rows[:, None] - key_rows + bucket_size - 1) * side + columns[:, None] - key_columns + bucket_size - 1
    from_outside, to_outside = (query_ids == 0)[:, None], (key_ids == 0)[None, :]
    offset = torch.where(to_outside, side * side + 1, torch.where(from_outside, side * side, offset))
    return torch.where(from_outside & to_outside, side * side + 2, offset)


def code_position_ids(code_image_size: int, bucket_size: int, length: int) -> Tensor:
    """Grid position of each decoder step when the text is an image's codes, 8 × 8 pixels a code.

    Returns:
        `(length,)` int64: 0 for the start token, then the code window row by row, then `BEYOND_CODE_GRID`.
    """
    window = code_image_size // 8
    grid = image_grid_positions(window, window, bucket_size, torch.device("cpu"))
    positions = torch.full((max(length, len(grid) + 1),), min(BEYOND_CODE_GRID, bucket_size**2), device="cpu")
    positions[0], positions[1 : len(grid) + 1] = 0, grid
    return positions[:length]


def absolute_position_bias(queries: Tensor, keys: Tensor, num_heads: int, scaling: float) -> Tensor:
    """Score positions against positions: `(B, Q, C)`, `(B, K, C)` → `(B, num_heads, Q, K)`."""
    queries = queries.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    keys = keys.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return (queries * scaling) @ keys.mT


def relative_position_bias(table: nn.Embedding, buckets: Tensor) -> Tensor:
    """Look up a learned score per head: `(Q, K)` buckets → `(num_heads, Q, K)`, on the device of the buckets."""
    return table(buckets).permute(2, 0, 1).to(buckets.device)  # a device map may put tables elsewhere


# ---------------------------------------------------------------------------------------------- precision


def in_fast_precision(method: Callable) -> Callable:
    """Compute in the weights' dtype, whatever autocast says, on processors that autocast's dtype makes slow."""

    @wraps(method)
    def computed(self, *args, **kwargs):
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled("cpu"):
            return method(self, *args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu")
        if fast_dtype(dtype) == dtype:
            return method(self, *args, **kwargs)
        logger.warning_once(
            f"This processor has no instructions for products in {dtype}, which would take several times as long as "
            "float32. Going on without autocast; bf16 and fp16 gain nothing here and can be left out."
        )
        with torch.autocast("cpu", enabled=False):
            args = [halves_to(self.dtype, value) for value in args]
            return method(self, *args, **{name: halves_to(self.dtype, value) for name, value in kwargs.items()})

    return computed


def halves_to(dtype: torch.dtype, value):
    """A tensor of numbers in half precision, or those of a tuple, in another dtype; all else as it is."""
    if isinstance(value, tuple):
        return tuple(halves_to(dtype, one) for one in value)
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.to(dtype) if is_half else value


# --------------------------------------------------------------------------------------------------- loss


def as_autocast(*tensors: Tensor) -> list[Tensor]:
    """Tensors in the dtype that autocast would bring them to for a product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


class FusedCrossEntropy(torch.autograd.Function):
    """Sum of smoothed cross entropies of linear logits, some tokens at a time, so the logits never exist as a whole.

    Loss of a token: `(1 - ε - ε_i) * nll + ε_i * Σ_v -log p_v` with `ε_i = ε / (V - 1)`.
    Gradients are computed on the way forward, while a chunk's probabilities are at hand.

    Source: formula of OFA `criterions/label_smoothed_cross_entropy.py`.
    """

    tokens_per_chunk = 192  # 23 MB of logits: well below what glibc uses again without asking the system for it anew

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        features_grad = torch.empty_like(features) if wants_features else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        total = features.new_zeros((), dtype=torch.float32)
        features, weight = as_autocast(features, weight)  # once, and not in each product
        step = FusedCrossEntropy.tokens_per_chunk
        if wants_weight:  # its gradient adds up over a chunk's tokens, fastest over 256
            step += step // 3
        for start in range(0, labels.shape[0], step):
            part = slice(start, start + step)
            loss, logits_grad = FusedCrossEntropy.of_chunk(features[part], weight, labels[part, None], smoothing)
            total += loss
            if wants_features:
                features_grad[part] = linear(logits_grad, weight.T)
            if wants_weight:
                weight_grad += linear(logits_grad.T, features[part].T)
            del logits_grad  # or it would still be there while the next chunk is computed
        ctx.save_for_backward(features_grad, weight_grad)
        return total

    @staticmethod
    def of_chunk(features: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """Loss of some tokens, and its gradient by their logits: `(N, C)`, `(V, C)`, `(N, 1)` → `()`, `(N, V)`."""
        spread = smoothing / (weight.shape[0] - 1)
        logits = linear(features, weight).float()
        # softmax is four times as fast as log_softmax, and tells the normaliser where it is largest
        probabilities = logits.softmax(-1)
        log_normaliser = logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        nll = log_normaliser - logits.gather(-1, target)
        loss = (1 - smoothing - spread) * nll.sum()
        if smoothing:
            loss += spread * (weight.shape[0] * log_normaliser.sum() - logits.sum())
            probabilities.sub_(spread)  # the factors of a token add up to one
        probabilities.scatter_add_(-1, target, torch.full_like(nll, smoothing + spread - 1))
        return loss, probabilities.to(features.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradients = (None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None


@torch.no_grad()
def token_losses(features: Tensor, weight: Tensor, tokens: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of each token as in `FusedCrossEntropy`: `(N, C)` features, `(V, C)` weight, `(N,)` ids → `(N,)` float32.

    Without smoothing it is minus the token's log-probability.
    """
    step, spread = FusedCrossEntropy.tokens_per_chunk, smoothing / (weight.shape[0] - 1)
    losses = []
    for part, target in zip(features.split(step), tokens.split(step), strict=True):
        logits = linear(part, weight).float()
        log_normaliser = logits.logsumexp(-1)
        nll = log_normaliser - logits.gather(-1, target[:, None])[:, 0]
        everything = weight.shape[0] * log_normaliser - logits.sum(-1) if smoothing else 0.0
        losses.append((1 - smoothing - spread) * nll + spread * everything)
    return torch.cat(losses)


# ---------------------------------------------------------------------------------------------- attention


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention with an additive bias; softmax in float32, as in the original, whatever the model's dtype."""
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2), weights


class OFAAttention(nn.Module):
    """Multi-head attention whose scores take an additive bias and whose heads have a learned scale.

    In cross-attention several decoder rows may belong to one encoder row (beams of an image, captions of an image):
    they are folded into the query length, so keys and values exist once per image.
    """

    def __init__(self, config: OFAConfig, num_heads: int, layer_idx: int | None = None, is_cross: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.is_cross = config, layer_idx, is_cross
        self.num_heads, self.head_dim = num_heads, config.d_model // num_heads
        self.scaling = (self.head_dim * config.attn_scale_factor) ** -0.5
        self.is_causal = False  # causality is part of the bias
        self.q_proj = OFALinear(config.d_model, config.d_model)
        self.k_proj = OFALinear(config.d_model, config.d_model)
        self.v_proj = OFALinear(config.d_model, config.d_model)
        self.out_proj = OFALinear(config.d_model, config.d_model)
        self.c_attn = nn.Parameter(torch.ones(num_heads))  # learned scale per head; name kept: checkpoint key

    def _split_heads(self, states: Tensor) -> Tensor:
        """`(batch, tokens, C)` → `(batch, heads, tokens, head_dim)`."""
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _keys_and_values(self, states: Tensor, cache: EncoderDecoderCache | None, positions, real: RealTokens | None):
        """Project `states`, joining or reusing what the cache holds."""
        if cache is None:
            keys, values = self.k_proj(states), self.v_proj(states)
            if real is not None and not self.is_cross:
                keys, values = real.unpack(keys), real.unpack(values)
            return self._split_heads(keys), self._split_heads(values)
        if self.is_cross and cache.is_updated.get(self.layer_idx, False):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        keys, values = self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))
        if self.is_cross:
            cache.is_updated[self.layer_idx] = True
            keys, values = keys.contiguous(), values.contiguous()  # every step reads them
            return cache.cross_attention_cache.update(keys, values, self.layer_idx, None)
        where = {"cache_position": positions}  # transformers 4 writes a static cache at 0 unless told where
        return cache.self_attention_cache.update(keys, values, self.layer_idx, where)

    def forward(
        self,
        hidden_states: Tensor,
        bias: Tensor,
        encoder_states: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        positions: Tensor | None = None,
        output_attentions: bool = False,
        real: RealTokens | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        batch_size, num_tokens = hidden_states.shape[:2] if real is None else real.shape
        query = self.q_proj(hidden_states)
        if real is not None:
            query = real.unpack(query)
        if self.is_cross:
            query = query.reshape(encoder_states.shape[0], -1, query.shape[-1])  # fold rows of one image
        key, value = self._keys_and_values(encoder_states if self.is_cross else hidden_states, cache, positions, real)
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        query = self._split_heads(query)
        if implementation == "sdpa" and products_pay(query):
            attend = eager_attention
        if implementation == "sdpa" and not dropout and biased_attention_pays(query, bias):
            heads, weights = biased_attention(query, key, value, bias, self.scaling), None
        else:
            heads, weights = attend(
                self, query, key, value, bias, scaling=self.scaling, dropout=dropout, is_causal=False
            )
        heads = heads * self.c_attn[:, None]
        if weights is not None and self.is_cross:
            folded = weights.unflatten(2, (-1, num_tokens)).transpose(1, 2)
            weights = folded.reshape(batch_size, self.num_heads, num_tokens, -1)
        heads = heads.reshape(batch_size, num_tokens, -1)
        return self.out_proj(heads if real is None else real.pack(heads)), weights


# ------------------------------------------------------------------------------------------------- layers


class OFAEncoderLayer(GradientCheckpointingLayer):
    """Self-attention, then feed-forward; each normalised before, inside and added to its input."""

    def __init__(self, config: OFAConfig, drop_path_rate: float):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = OFAAttention(config, config.encoder_attention_heads)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = OFALinear(config.d_model, config.encoder_ffn_dim)
        self.ffn_layer_norm = nn.LayerNorm(config.encoder_ffn_dim)
        self.fc2 = OFALinear(config.encoder_ffn_dim, config.d_model)
        self.dropout = OFADropout(config.dropout)
        self.activation_dropout = OFADropout(config.activation_dropout)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: Tensor, bias: Tensor, output_attentions: bool = False):
        residual = hidden_states
        hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, weights = self.self_attn(hidden_states, bias, output_attentions=output_attentions)
        hidden_states = self.dropout(self.self_attn_mid_layer_norm(hidden_states))
        hidden_states = residual + drop_path(hidden_states, self.drop_path_rate, self.training)

        residual = hidden_states
        hidden_states = linear_gelu(self.fc1, self.final_layer_norm(hidden_states))
        hidden_states = self.ffn_layer_norm(self.activation_dropout(hidden_states))
        hidden_states = self.dropout(self.fc2(hidden_states))
        return residual + drop_path(hidden_states, self.drop_path_rate, self.training), weights


class OFADecoderLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention, feed-forward; each normalised before, inside and added to its input."""

    def __init__(self, config: OFAConfig, layer_idx: int, drop_path_rate: float):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = OFAAttention(config, config.decoder_attention_heads, layer_idx)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn = OFAAttention(config, config.decoder_attention_heads, layer_idx, is_cross=True)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = OFALinear(config.d_model, config.decoder_ffn_dim)
        self.ffn_layer_norm = nn.LayerNorm(config.decoder_ffn_dim)
        self.fc2 = OFALinear(config.decoder_ffn_dim, config.d_model)
        self.dropout = OFADropout(config.dropout)
        self.activation_dropout = OFADropout(config.activation_dropout)
        self.drop_path_rate = drop_path_rate

    def forward(
        self,
        hidden_states: Tensor,
        self_bias: Tensor,
        encoder_states: Tensor,
        cross_bias: Tensor,
        cache: EncoderDecoderCache | None = None,
        positions: Tensor | None = None,
        output_attentions: bool = False,
        real: RealTokens | None = None,
    ):
        residual = hidden_states
        hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, weights = self.self_attn(
            hidden_states, self_bias, cache=cache, positions=positions, output_attentions=output_attentions, real=real
        )
        hidden_states = self.dropout(self.self_attn_mid_layer_norm(hidden_states))
        hidden_states = residual + drop_path(hidden_states, self.drop_path_rate, self.training)

        residual = hidden_states
        hidden_states = self.cross_attn_layer_norm(hidden_states)
        hidden_states, cross_weights = self.cross_attn(
            hidden_states, cross_bias, encoder_states, cache=cache, output_attentions=output_attentions, real=real
        )
        hidden_states = self.dropout(self.cross_attn_mid_layer_norm(hidden_states))
        hidden_states = residual + drop_path(hidden_states, self.drop_path_rate, self.training)

        residual = hidden_states
        hidden_states = linear_gelu(self.fc1, self.final_layer_norm(hidden_states))
        hidden_states = self.ffn_layer_norm(self.activation_dropout(hidden_states))
        hidden_states = self.dropout(self.fc2(hidden_states))
        hidden_states = residual + drop_path(hidden_states, self.drop_path_rate, self.training)
        return hidden_states, weights, cross_weights


# What a decoder layer is made of; all else may hide an adapter.
PLAIN_MODULES = (*ShapeMemory.plain_modules, nn.ModuleList, OFADecoderLayer, OFAAttention, OFADropout)


# ------------------------------------------------------------------------------------------- base classes


@dataclass
class OFAEncoderOutput(ModelOutput):
    """What the decoder needs of a batch of images and prompts.

    Args:
        last_hidden_state: `(batch, S, d_model)`, image cells first, then text, after the final LayerNorm.
        position_embeddings: `(1, S, d_model)`, normalised; the same for every sample.
        attention_mask: `(batch, S)`, 0 where the decoder must not look; None where it may look everywhere.
        hidden_states, attentions: per layer, on request; the last hidden state is the normalised one.
    """

    last_hidden_state: torch.FloatTensor | None = None
    position_embeddings: torch.FloatTensor | None = None
    attention_mask: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @classmethod
    def of(cls, value) -> "OFAEncoderOutput":
        """Accept what callers pass as `encoder_outputs`: this class, another output with its fields, or a tuple."""
        if isinstance(value, (tuple, list)):
            tensors = [item for item in value if isinstance(item, Tensor)]
            value = dict(zip(("last_hidden_state", "position_embeddings", "attention_mask"), tensors, strict=False))
        get = value.get if hasattr(value, "get") else lambda name: getattr(value, name, None)
        output = cls(**{name: get(name) for name in cls.__dataclass_fields__})
        if output.position_embeddings is None:
            raise ValueError(
                "encoder_outputs has no position_embeddings, which OFA's decoder needs to score positions. "
                "Pass what `model.get_encoder()(...)` returned, whole."
            )
        return output


class OFAPreTrainedModel(PreTrainedModel):
    """Initial weights, loading and the features that transformers asks a model about."""

    config_class = OFAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["OFAEncoderLayer", "OFADecoderLayer", "OFABottleneck"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = False  # a learned additive bias cannot go through it
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _supports_static_cache = True
    _keys_to_ignore_on_load_unexpected = [  # constants that old checkpoints carry; recomputed here
        r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket)$",
        r"decoder\.image_position_idx$",
    ]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would guess from the text of this file

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
            if getattr(module, "padding_idx", None) is not None and not getattr(
                module.weight, "_is_hf_initialized", False
            ):
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.running_mean)
                nn.init.ones_(module.running_var)
                nn.init.zeros_(module.num_batches_tracked)
        elif isinstance(module, OFAAttention):
            nn.init.ones_(module.c_attn)
        elif isinstance(module, (OFAEncoder, OFADecoder)):
            # built on the meta device this constant comes back as uninitialised memory
            module.text_buckets.copy_(
                token_position_buckets(self.config.token_bucket_size, self.config.max_position_embeddings)
            )

    def _check_text_length(self, length: int, side: str) -> None:
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"The {side} text has {length} tokens but the checkpoint knows {limit} positions. "
                f"Shorten it to at most {limit} tokens."
            )

    def _make_position_tables(self, num_layers: int, num_heads: int) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Relative-position tables per layer: of text distances and of 2-D image offsets."""
        text_buckets = 2 * self.config.token_bucket_size - 1
        image_buckets = (2 * self.config.image_bucket_size - 1) ** 2 + 3  # 3: from, to and both outside the image
        text = nn.ModuleList(nn.Embedding(text_buckets, num_heads) for _ in range(num_layers))
        return text, nn.ModuleList(nn.Embedding(image_buckets, num_heads) for _ in range(num_layers))

    def _register_text_buckets(self) -> None:
        config = self.config
        buckets = token_position_buckets(config.token_bucket_size, config.max_position_embeddings)
        self.register_buffer("text_buckets", buckets, persistent=False)

    def _text_buckets(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Bucket of the distance between text positions: `(Q,)`, `(K,)` → `(Q, K)`."""
        return self.text_buckets[query_ids[:, None] - key_ids + self.config.max_position_embeddings - 1]


def masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Forbid keys: `(1 or batch, H, Q, K)` bias, `(batch, K)` mask with 0 = forbidden → `(batch, H, Q, K)`."""
    if mask is None:
        return bias
    return bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(bias.dtype).min)


def needed(mask: Tensor | None) -> Tensor | None:
    """None where a mask forbids nothing. A compiled graph keeps the mask: it must not depend on values."""
    if mask is None or torch.compiler.is_compiling() or not bool((mask != 0).all()):
        return mask
    return None


# ------------------------------------------------------------------------------------------------ encoder


class OFAEncoder(OFAPreTrainedModel):
    """Images and prompt → states that the decoder reads; image cells first, then text."""

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding | None = None):
        super().__init__(config)
        width, num_heads = config.d_model, config.encoder_attention_heads
        if embed_tokens is None:
            embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_tokens = embed_tokens
        self.type_embedding = nn.Embedding(2, width)  # 0 = text, 1 = image
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_images = OFAResNet(config.resnet_type, config.resnet_drop_path_rate)
        self.image_proj = OFALinear(OUTPUT_CHANNELS, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.dropout = OFADropout(config.dropout)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = OFALinear(width, width)
        self.pos_k_linear = OFALinear(width, width)
        rates = linear_rates(config.encoder_drop_path_rate, config.encoder_layers)
        self.layers = nn.ModuleList(OFAEncoderLayer(config, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(width)
        tables = self._make_position_tables(config.encoder_layers, num_heads)
        self.token_rel_pos_table_list, self.image_rel_pos_table_list = tables
        self._register_text_buckets()
        self._position_scores = ShapeMemory()
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def _embed_text(self, inputs_embeds: Tensor) -> Tensor:
        return self.dropout(self.layernorm_embedding(inputs_embeds + self.type_embedding.weight[0]))

    def _embed_image_cells(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`(batch, 3, height, width)` → `(batch, cells, d_model)` and the size of the feature map."""
        limit = self.config.image_bucket_size
        grid = tuple(-(-side // PIXELS_PER_CELL) for side in pixel_values.shape[-2:])
        if max(grid) > limit:
            raise ValueError(
                f"The image gives {grid[0]}×{grid[1]} cells of 16 pixels but the checkpoint knows positions for "
                f"{limit}×{limit}. Resize images to at most {PIXELS_PER_CELL * limit} pixels a side."
            )
        features = self.embed_images(pixel_values.to(self.embed_images.conv1.weight.dtype))  # never quantised
        cells = self.image_proj(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        return self.dropout(self.patch_layernorm_embedding(cells)), grid

    @in_fast_precision
    def embed_image_cells(self, pixel_values: Tensor) -> Tensor:
        """`(batch, 3, height, width)` → `image_embeds` for `forward`, `(batch, rows, columns, d_model)`.

        All of the encoder that depends neither on the prompt nor on the word embedding.
        """
        cells, grid = self._embed_image_cells(pixel_values)
        return cells.unflatten(1, grid)

    def _compute_position_scores(self, grid: tuple[int, int] | None, text_length: int) -> tuple[Tensor, list[Tensor]]:
        """Normalised position embeddings `(1, S, C)` and, per layer, the bias `(1, H, S, S)` of the attention."""
        device, num_cells = self.text_buckets.device, 0
        text_ids = torch.arange(text_length, device=device)
        embeddings = self.pos_ln(self.embed_positions(text_ids))
        if grid is not None:
            num_cells = grid[0] * grid[1]
            image_ids = image_grid_positions(*grid, self.config.image_bucket_size, device)
            image_buckets = image_position_buckets(image_ids, image_ids, self.config.image_bucket_size)
            embeddings = torch.cat([self.image_pos_ln(self.embed_image_positions(image_ids)), embeddings])
        embeddings = embeddings[None]
        attention = self.layers[0].self_attn
        absolute = absolute_position_bias(
            self.pos_q_linear(embeddings), self.pos_k_linear(embeddings), attention.num_heads, attention.scaling
        )
        text_buckets, biases = self._text_buckets(text_ids, text_ids), []
        for text_table, image_table in zip(self.token_rel_pos_table_list, self.image_rel_pos_table_list, strict=True):
            bias = absolute.clone()
            bias[:, :, num_cells:, num_cells:] += relative_position_bias(text_table, text_buckets)
            if grid is not None:  # tables act within the text and within the image, none across
                bias[:, :, :num_cells, :num_cells] += relative_position_bias(image_table, image_buckets)
            biases.append(bias)
        return embeddings, biases

    def _position_modules(self) -> list[nn.Module]:
        modules = [self.embed_positions, self.embed_image_positions, self.pos_ln, self.image_pos_ln]
        modules += [self.pos_q_linear, self.pos_k_linear]
        return [*modules, *self.token_rel_pos_table_list, *self.image_rel_pos_table_list]

    def position_scores(self, grid: tuple[int, int] | None, text_length: int) -> tuple[Tensor, list[Tensor]]:
        """What `_compute_position_scores` gives, computed once a shape."""
        size = text_length + (0 if grid is None else grid[0] * grid[1])
        heads = self.config.encoder_attention_heads * len(self.layers)
        num_bytes = size * (heads * size + self.config.d_model) * self.pos_ln.weight.element_size()
        self._position_scores.check(self._position_modules())
        return self._position_scores.get(
            (grid, text_length), num_bytes, lambda: self._compute_position_scores(grid, text_length)
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        patch_images: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
    ) -> OFAEncoderOutput | tuple:
        """Encode a batch of images and prompts.

        Args:
            input_ids: `(batch, T)` prompts; or `inputs_embeds` `(batch, T, d_model)`.
            attention_mask: `(batch, T)`, 0 = padding; by default every `pad_token_id` is.
            pixel_values: `(batch, 3, height, width)`, normalised; None for text alone. `patch_images` is its old name.
            patch_masks: `(batch,)`, False = this sample has no image.
            image_embeds: what `embed_image_cells` gave, instead of `pixel_values`.

        Raises:
            ValueError: no text at all, not one image a prompt, or a text or image beyond the position tables.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict
        pixel_values = patch_images if pixel_values is None else pixel_values
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass the prompt as exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if attention_mask is None:
                attention_mask = input_ids != self.config.pad_token_id
        self._check_text_length(inputs_embeds.shape[1], "prompt's")

        hidden_states, grid = self._embed_text(inputs_embeds), None
        mask = needed(attention_mask)
        images = pixel_values if image_embeds is None else image_embeds
        if images is not None:
            self._check_rows(inputs_embeds.shape[0], images, patch_masks)
            if image_embeds is None:
                cells, grid = self._embed_image_cells(pixel_values)
            else:
                cells, grid = image_embeds.flatten(1, 2), tuple(image_embeds.shape[1:3])
            hidden_states = torch.cat([cells, hidden_states], dim=1)
            mask = self._join_masks(mask, needed(patch_masks), cells.shape[:2], inputs_embeds.shape[1])
        if mask is not None:
            hidden_states = hidden_states * mask[..., None].to(hidden_states.dtype)

        position_embeddings, biases = self.position_scores(grid, inputs_embeds.shape[1])
        largest = hidden_states.shape[1] * self.config.encoder_ffn_dim
        whole = output_attentions or output_hidden_states
        num_parts = 1 if whole else number_of_parts(hidden_states, largest)
        if num_parts == 1:
            hidden_states, all_states, all_weights = self._run_layers(hidden_states, biases, mask, output_attentions)
        else:
            masks = [None] * num_parts if mask is None else mask.tensor_split(num_parts)
            parts = zip(hidden_states.tensor_split(num_parts), masks, strict=True)
            hidden_states = torch.cat([self._run_layers(states, biases, part)[0] for states, part in parts])
        output = OFAEncoderOutput(
            last_hidden_state=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=mask,
            hidden_states=all_states + (hidden_states,) if output_hidden_states else None,
            attentions=all_weights if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _run_layers(self, hidden_states: Tensor, biases: list[Tensor], mask: Tensor | None, output_attentions=False):
        """All layers and the final LayerNorm; also the states before each layer and the weights of its attention."""
        all_states, all_weights = (), ()
        for layer, bias in zip(self.layers, biases, strict=True):
            all_states += (hidden_states,)
            hidden_states, weights = layer(hidden_states, masked(bias, mask), output_attentions)
            all_weights += (weights,)
        return self.layer_norm(hidden_states), all_states, all_weights

    @staticmethod
    def _check_rows(num_prompts: int, pixel_values: Tensor, patch_masks: Tensor | None) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[0] != num_prompts:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)} beside {num_prompts} prompts but must be "
                f"({num_prompts}, 3, height, width). Give one image a prompt; patch_masks marks those without one."
            )
        if patch_masks is not None and patch_masks.shape != (num_prompts,):
            raise ValueError(
                f"patch_masks has shape {tuple(patch_masks.shape)} beside {num_prompts} prompts but must be "
                f"({num_prompts},). Give one flag a prompt, False where it has no image."
            )

    @staticmethod
    def _join_masks(text_mask: Tensor | None, has_image: Tensor | None, cells: tuple[int, int], text_length: int):
        """Masks over image cells and text as one `(batch, S)` int64, or None where both allow everything."""
        if text_mask is None and has_image is None:
            return None
        batch_size, num_cells = cells
        device = (has_image if text_mask is None else text_mask).device
        if text_mask is None:
            text_mask = torch.ones(batch_size, text_length, dtype=torch.long, device=device)
        if has_image is None:
            has_image = torch.ones(batch_size, dtype=torch.long, device=device)
        return torch.cat([has_image[:, None].expand(-1, num_cells).long(), text_mask.long()], dim=1)


# ------------------------------------------------------------------------------------------------ decoder


class OFADecoder(OFAPreTrainedModel):
    """Text so far and encoder states → features of the next tokens."""

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding | None = None):
        super().__init__(config)
        width, num_heads = config.d_model, config.decoder_attention_heads
        if embed_tokens is None:
            embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.dropout = OFADropout(config.dropout)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = OFALinear(width, width)
        self.self_pos_k_linear = OFALinear(width, width)
        self.cross_pos_q_linear = OFALinear(width, width)
        self.cross_pos_k_linear = OFALinear(width, width)
        rates = linear_rates(config.decoder_drop_path_rate, config.decoder_layers)
        self.layers = nn.ModuleList(OFADecoderLayer(config, index, rate) for index, rate in enumerate(rates))
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = OFALinear(width, config.vocab_size, bias=False)
        tables = self._make_position_tables(config.decoder_layers, num_heads)
        self.token_rel_pos_table_list, self.image_rel_pos_table_list = tables
        self._register_text_buckets()
        self._position_scores = ShapeMemory()
        self._packed = PackedMemory(), PackedMemory()  # of the vocabulary, of the layers
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def beam_cache(self, num_images: int) -> BeamCache | None:
        """A cache that generates fastest on a CPU; None where it does not serve: modules changed, watched, quantised.

        Its copies of weights are made anew when a weight has changed. With few rows a step waits for memory, and all
        copies pay. With many it computes, and in float32 the vocabulary's pay.
        """
        config, vocabulary = self.config, self.output_projection
        inside = [vocabulary, *self.layers.modules()]
        if not all(type(module) in PLAIN_MODULES and not is_observed(module) for module in inside):
            return None
        modules = [module for layer in self.layers for module in step_modules(layer)]
        if not can_pack(vocabulary.weight, *(module.weight for module in modules)):
            return None
        if self.training or config._attn_implementation != "sdpa":
            return None
        if config.output_attentions or config.output_hidden_states:
            return None
        of_vocabulary, of_layers = self._packed
        packed = of_vocabulary.packed([vocabulary], lambda: pack(vocabulary.weight))
        if num_images <= FEW_IMAGES or vocabulary.weight.dtype != torch.float32:
            products = of_layers.packed(modules, lambda: [packed_products_of(layer) for layer in self.layers])
        else:
            products = [products_of(layer) for layer in self.layers]
        if packed is None or products is None:
            return None
        return BeamCache([StepLayer(*pair) for pair in zip(self.layers, products, strict=True)], packed)

    def _positions(self, ids: Tensor, as_codes: bool) -> tuple[Tensor, Tensor]:
        """Normalised embeddings `(1, L, C)` of decoder steps, and their grid positions if they are image codes."""
        if not as_codes:
            return self.pos_ln(self.embed_positions(ids))[None], ids
        config = self.config
        grid = code_position_ids(config.code_image_size, config.image_bucket_size, config.max_position_embeddings)
        grid_ids = grid.to(ids.device)[ids]
        return self.image_pos_ln(self.embed_image_positions(grid_ids))[None], grid_ids

    def _compute_self_scores(self, query_ids: Tensor, key_ids: Tensor, as_codes: bool) -> tuple[Tensor, ...]:
        """Per layer the bias `(1, H, Q, K)` of self-attention, later steps forbidden."""
        queries, query_grid = self._positions(query_ids, as_codes)
        keys, key_grid = self._positions(key_ids, as_codes)
        attention = self.layers[0].self_attn
        absolute = absolute_position_bias(
            self.self_pos_q_linear(queries), self.self_pos_k_linear(keys), attention.num_heads, attention.scaling
        )
        if as_codes:
            buckets = image_position_buckets(query_grid, key_grid, self.config.image_bucket_size)
            tables = self.image_rel_pos_table_list
        else:
            buckets, tables = self._text_buckets(query_ids, key_ids), self.token_rel_pos_table_list
        later = key_ids > query_ids[:, None]
        lowest = torch.finfo(absolute.dtype).min
        return tuple(
            (absolute + relative_position_bias(table, buckets)).masked_fill(later, lowest) for table in tables
        )

    def _compute_cross_scores(self, query_ids: Tensor, encoder_positions: Tensor, as_codes: bool) -> tuple[Tensor]:
        """The bias `(1, H, Q, S)` of cross-attention; the same in every layer."""
        queries, _ = self._positions(query_ids, as_codes)
        attention = self.layers[0].self_attn
        bias = absolute_position_bias(
            self.cross_pos_q_linear(queries),
            self.cross_pos_k_linear(encoder_positions),
            attention.num_heads,
            attention.scaling,
        )
        return (bias,)

    def _position_modules(self) -> list[nn.Module]:
        modules = [self.embed_positions, self.embed_image_positions, self.pos_ln, self.image_pos_ln]
        modules += [self.self_pos_q_linear, self.self_pos_k_linear, self.cross_pos_q_linear, self.cross_pos_k_linear]
        return [*modules, *self.token_rel_pos_table_list, *self.image_rel_pos_table_list]

    def _scores_of_steps(self, past: int | Tensor, num_tokens: int, num_keys: int, encoder_positions, as_codes: bool):
        """Biases of the steps from `past` on: per layer `(1, H, num_tokens, num_keys)`, and `(1, H, num_tokens, S)`.

        Without gradients they are rows of tables that are computed once for a length and an encoder shape.
        """
        device = self.text_buckets.device
        query_ids = torch.arange(num_tokens, device=device) + past
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            key_ids = torch.arange(num_keys, device=device)
            return (
                self._compute_self_scores(query_ids, key_ids, as_codes),
                self._compute_cross_scores(query_ids, encoder_positions, as_codes)[0],
            )
        length = min(64 * math.ceil(num_keys / 64), self.config.max_position_embeddings)
        steps = torch.arange(length, device=device)
        heads, item = self.config.decoder_attention_heads, self.pos_ln.weight.element_size()
        self_tables = self._position_scores.get(
            ("self", length, as_codes),
            heads * length * length * item * len(self.layers),
            lambda: self._compute_self_scores(steps, steps, as_codes),
        )
        cross_table = self._position_scores.get(
            ("cross", length, as_codes),
            heads * length * encoder_positions.shape[1] * item,
            lambda: self._compute_cross_scores(steps, encoder_positions, as_codes),
            encoder_positions,
        )[0]
        if isinstance(past, int):
            rows = slice(past, past + num_tokens)
            return tuple(table[:, :, rows, :num_keys] for table in self_tables), cross_table[:, :, rows]
        return tuple(table[:, :, query_ids, :num_keys] for table in self_tables), cross_table[:, :, query_ids]

    def position_scores(self, past, num_tokens: int, num_keys: int, encoder_positions: Tensor, code_masks):
        """Biases as in `_scores_of_steps`; samples that `code_masks` `(batch,)` marks count as image codes."""
        arguments = (past, num_tokens, num_keys, encoder_positions)
        if code_masks is None or not bool(code_masks.any()):
            return self._scores_of_steps(*arguments, as_codes=False)
        codes = self._scores_of_steps(*arguments, as_codes=True)
        if bool(code_masks.all()):
            return codes
        text, chosen = self._scores_of_steps(*arguments, as_codes=False), code_masks[:, None, None, None]
        self_scores = tuple(torch.where(chosen, code, plain) for code, plain in zip(codes[0], text[0], strict=True))
        return self_scores, torch.where(chosen, codes[1], text[1])

    def _embed(self, inputs_embeds: Tensor, code_masks: Tensor | None) -> Tensor:
        hidden_states = self.layernorm_embedding(inputs_embeds)
        if code_masks is not None:
            codes = self.code_layernorm_embedding(inputs_embeds)
            hidden_states = torch.where(code_masks[:, None, None], codes, hidden_states)
        return self.dropout(hidden_states)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: OFAEncoderOutput | None = None,
        code_masks: torch.BoolTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
        real: RealTokens | None = None,
    ) -> tuple[Tensor, tuple, tuple, tuple]:
        """Decode `(rows, T)` tokens, where rows is a multiple of the encoder's batch: neighbours share an image.

        Returns:
            Features `(rows, T, d_model)` after the final LayerNorm, hidden states, self- and cross-attention weights.
            With `real`, the N real tokens alone: features and states are `(N, d_model)`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass the text so far as exactly one of decoder_input_ids and decoder_inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        rows, num_tokens, _ = inputs_embeds.shape
        encoder_states = encoder_outputs.last_hidden_state
        if rows % encoder_states.shape[0]:
            raise ValueError(
                f"{rows} decoder rows cannot be shared out among {encoder_states.shape[0]} encoder rows. "
                "Give every image the same number of texts, those of one image next to each other."
            )
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        num_keys = self._number_of_keys(past_key_values, past, num_tokens)
        self._check_text_length(num_keys, "decoder's")

        if past_key_values is None or not any(past_key_values.is_updated.values()):  # first step of a generation
            self._position_scores.check(self._position_modules())
        self_biases, cross_bias = self.position_scores(
            past, num_tokens, num_keys, encoder_outputs.position_embeddings[:1], code_masks
        )
        key_mask = needed(attention_mask)
        if key_mask is not None:
            key_mask = nn.functional.pad(key_mask, (0, num_keys - key_mask.shape[1]), value=1)
        cross_bias = masked(self._fold(cross_bias, rows // encoder_states.shape[0]), encoder_outputs.attention_mask)
        hidden_states = self._embed(inputs_embeds if real is None else real.pack(inputs_embeds), code_masks)
        if isinstance(past_key_values, BeamCache):
            hidden_states = past_key_values.decode(hidden_states, self_biases, encoder_states, cross_bias)
            return self.layer_norm(hidden_states), (), (), ()
        positions = torch.arange(num_tokens, device=encoder_states.device) + past
        all_states, all_weights, all_cross_weights = (), (), ()
        for layer, self_bias in zip(self.layers, self_biases, strict=True):
            all_states += (hidden_states,)
            hidden_states, weights, cross_weights = layer(
                hidden_states,
                masked(self_bias, key_mask),
                encoder_states,
                cross_bias,
                past_key_values,
                positions,
                output_attentions,
                real,
            )
            all_weights += (weights,)
            all_cross_weights += (cross_weights,)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states, all_states + (hidden_states,), all_weights, all_cross_weights

    @staticmethod
    def _number_of_keys(cache: EncoderDecoderCache | None, past: int | Tensor, num_tokens: int) -> int:
        """Keys that self-attention sees: all so far, or the whole of a cache of fixed size."""
        if cache is None or not cache.is_compileable:
            return past + num_tokens
        fixed = cache.self_attention_cache
        return fixed.get_max_length() if hasattr(fixed, "get_max_length") else fixed.get_max_cache_shape()

    @staticmethod
    def _fold(bias: Tensor, rows_per_image: int) -> Tensor:
        """Rows of one image into the query length: `(1 or rows, H, T, S)` → `(1 or batch, H, n * T, S)`."""
        if rows_per_image == 1:
            return bias
        if bias.shape[0] == 1:
            return bias[:, :, None].expand(-1, -1, rows_per_image, -1, -1).flatten(2, 3)
        return bias.unflatten(0, (-1, rows_per_image)).transpose(1, 2).flatten(2, 3)


# -------------------------------------------------------------------------------------------------- model


_TIED_WEIGHTS = {
    "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
    "decoder.output_projection.weight": "encoder.embed_tokens.weight",
}


class OFAForConditionalGeneration(OFAPreTrainedModel, GenerationMixin):
    """Images and prompt → text, one caption or many.

    `OFAForConditionalGeneration.from_pretrained(folder).generate(input_ids, pixel_values=...)`
    """

    _tied_weights_keys = _TIED_WEIGHTS if _TRANSFORMERS_5 else list(_TIED_WEIGHTS)

    def __init__(self, config: OFAConfig):
        super().__init__(config)
        embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = OFAEncoder(config, embed_tokens)
        self.decoder = OFADecoder(config, embed_tokens)
        self._encoder_is_locked, self._encoder_passes_gradients = False, True
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.output_projection

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder.output_projection = value

    def _tie_weights(self) -> None:  # called by transformers 4
        if self.config.tie_word_embeddings:
            self.decoder.embed_tokens = self.encoder.embed_tokens
            self._tie_or_clone_weights(self.decoder.output_projection, self.encoder.embed_tokens)

    def get_encoder(self, modality: str | None = None) -> OFAEncoder:
        return self.encoder

    def get_decoder(self) -> OFADecoder:
        return self.decoder

    def lock_encoder(self, train_embeddings: bool = False, through_encoder: bool = False) -> None:
        """Lock the encoder for LiT-tuning: no gradient, and inference mode (no dropout, fixed BatchNorm) for good.

        Args:
            train_embeddings: go on training the word embedding, which encoder, decoder and output share. The encoder
                still reads it, but passes no gradient to it.
            through_encoder: let it pass one: the whole way back through the encoder, for the prompt's few tokens.

        Source: LiT, arXiv 2111.07991.
        """
        self._encoder_is_locked, self._encoder_passes_gradients = True, train_embeddings and through_encoder
        self.encoder.requires_grad_(False)
        self.encoder.embed_tokens.requires_grad_(train_embeddings)
        self.train(self.training)

    def unlock_encoder(self) -> None:
        """Undo `lock_encoder`: everything is trained again."""
        self._encoder_is_locked, self._encoder_passes_gradients = False, True
        self.encoder.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "OFAForConditionalGeneration":
        super().train(mode)
        if self._encoder_is_locked:
            self.encoder.eval()
        return self

    def _encode(self, **inputs) -> OFAEncoderOutput:
        if not self._encoder_passes_gradients:
            return self.encode(**inputs)
        return self.encoder(**inputs, return_dict=True)

    @torch.no_grad()
    @in_fast_precision
    def encode(self, **inputs) -> OFAEncoderOutput:
        """Images and prompts → `encoder_outputs` for `generate`, `caption_scores` and `forward`, at full speed.

        Args:
            inputs: arguments of `OFAEncoder.forward`.
        """
        with folding(keep=not self.training):
            return self.encoder(**inputs, return_dict=True)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """`(rows, T)` labels → decoder inputs: shifted right behind the start token, ignored labels as padding."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    @in_fast_precision
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        encoder_outputs: OFAEncoderOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        patch_images: torch.FloatTensor | None = None,
        label_smoothing: float | None = None,
        drop_worst_ratio: float = 0.0,
        return_logits: bool = True,
        image_embeds: torch.FloatTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput | tuple:
        """One pass through encoder and decoder.

        Args:
            input_ids: `(batch, T)` prompts; `attention_mask` `(batch, T)` has 0 for padding (default: every pad).
            pixel_values: `(batch, 3, height, width)`; None for text alone. `patch_images` is its old name.
            patch_masks: `(batch,)`, False = this sample has no image.
            decoder_input_ids: `(rows, U)`; rows = batch × n, the n texts of one image next to each other.
            decoder_attention_mask: `(rows, U)`, 0 for padding; needed only for padding on the left.
            code_masks: `(rows,)`, True = this row's text is image codes, placed on a grid.
            encoder_outputs: what `get_encoder()` returned, instead of encoding again.
            labels: `(rows, U)`, −100 = ignored; shifted here, so `decoder_input_ids` can be left out.
            label_smoothing: share of the target spread over the vocabulary; default `config.label_smoothing`.
            drop_worst_ratio: share of the real tokens, those with the highest loss, that the loss leaves out.
            return_logits: False leaves out the logits, which need far more memory than the rest, and padding.
            image_embeds: what `get_encoder().embed_image_cells` gave, instead of `pixel_values`.
            cache: the name of `past_key_values` from transformers 5.24 on; the output has it under the same name.
            num_items_in_batch: (Trainer) the loss is the sum over real tokens divided by this, instead of their mean.

        Raises:
            ValueError: no decoder input, more texts than fit the images, or sizes beyond the position tables.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if use_cache and self.training and self.decoder.gradient_checkpointing:
            logger.warning_once("use_cache=True does not go with gradient checkpointing; going on without a cache.")
            use_cache = False
        if encoder_outputs is None:
            encoder_outputs = self._encode(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=patch_images if pixel_values is None else pixel_values,
                patch_masks=patch_masks,
                image_embeds=image_embeds,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        encoder_outputs = OFAEncoderOutput.of(encoder_outputs)
        past_key_values = cache if past_key_values is None else past_key_values
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())

        whole = return_logits or use_cache or output_attentions or output_hidden_states or code_masks is not None
        real = None if whole else self._real_tokens(labels)
        features, hidden_states, weights, cross_weights = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            code_masks=code_masks,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values if use_cache else None,
            output_attentions=output_attentions,
            real=real,
        )
        if real is not None:
            labels = real.pack(labels)
        loss, logits = None, None
        if labels is not None:
            num_items = kwargs.get("num_items_in_batch")
            loss = self._loss(features, labels, label_smoothing, drop_worst_ratio, num_items)
        if return_logits or labels is None:
            by_cache = isinstance(past_key_values, BeamCache)
            logits = (past_key_values.logits if by_cache else self.decoder.output_projection)(features)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: past_key_values if use_cache else None},
            decoder_hidden_states=hidden_states if output_hidden_states else None,
            decoder_attentions=weights if output_attentions else None,
            cross_attentions=cross_weights if output_attentions else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
        return output if return_dict else output.to_tuple()

    def _real_tokens(self, labels: Tensor | None) -> RealTokens | None:
        """What the decoder must compute for a loss; None where that is everything, or may not be told apart."""
        # stochastic depth drops all tokens of a sample at once
        drops_samples = self.training and any(layer.drop_path_rate for layer in self.decoder.layers)
        if labels is None or drops_samples or torch.compiler.is_compiling():
            return None
        return RealTokens.of_labels(labels, IGNORED_LABEL)

    def _loss(self, features: Tensor, labels: Tensor, smoothing: float | None, drop_worst: float, num_items) -> Tensor:
        """Smoothed cross entropy over the real tokens: their mean, or their sum divided by `num_items`."""
        smoothing = self.config.label_smoothing if smoothing is None else smoothing
        weight, real = self.decoder.output_projection.weight, labels != IGNORED_LABEL
        features, labels = features[real], labels[real]
        if drop_worst:
            losses = token_losses(features, weight, labels, smoothing)
            kept = losses.topk(int(len(losses) * (1 - drop_worst)), largest=False).indices
            features, labels = features[kept], labels[kept]
        if torch.is_grad_enabled():
            total = FusedCrossEntropy.apply(features, weight, labels, smoothing)
        else:  # the fused one would compute gradients that nobody asked for
            total = token_losses(features, weight, labels, smoothing).sum()
        return total / (len(labels) if num_items is None else num_items)

    # -- generation: the encoder side exists once per image, decoder rows once a beam

    @torch.no_grad()
    @in_fast_precision
    def generate(self, *args, **kwargs):
        """`GenerationMixin.generate`, with BatchNorm folded and, on a CPU, in steps of few operations."""
        with folding():
            return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode=None, *args, **kwargs):
        """Where one token a step is added and none taken back, `BeamCache`, if it serves; else transformers' own."""
        special = "decoder_attention_mask code_masks output_attentions output_hidden_states".split()
        plain = not any(model_kwargs.get(name) is not None for name in (CACHE, *special))
        plain = plain and not (generation_config.output_attentions or generation_config.output_hidden_states)
        plain = plain and generation_config.use_cache and not generation_config.cache_implementation
        if plain and generation_mode in STEPWISE:
            states = OFAEncoderOutput.of(model_kwargs["encoder_outputs"]).last_hidden_state
            cache = self.decoder.beam_cache(len(states))
            if cache is not None:
                model_kwargs[CACHE] = cache
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: EncoderDecoderCache | None = None,
        encoder_outputs: OFAEncoderOutput | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        code_masks: torch.BoolTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> dict:
        past_key_values = cache if past_key_values is None else past_key_values
        if past_key_values is not None:
            input_ids = input_ids[:, int(past_key_values.get_seq_length()) :]
        return {
            "decoder_input_ids": input_ids,
            CACHE: past_key_values,
            "encoder_outputs": encoder_outputs,
            "decoder_attention_mask": decoder_attention_mask,
            "code_masks": code_masks,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=True, input_ids=None, **model_kwargs):
        if expand_size > 1:
            if input_ids is not None:
                input_ids = input_ids.repeat_interleave(expand_size, dim=0)
            for name, value in model_kwargs.items():
                if isinstance(value, Tensor) and (name.startswith("decoder_") or name == "code_masks"):
                    model_kwargs[name] = value.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: Tensor) -> EncoderDecoderCache:
        past_key_values.self_attention_cache.reorder_cache(beam_idx)  # the images stay where they are
        return past_key_values

    def _beam_search(
        self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus=False, **model_kwargs
    ):
        """`GenerationMixin._beam_search`, with less around the model where `BeamCache` serves."""
        cache, rules = model_kwargs.get(CACHE), Rules.of(generation_config, stopping_criteria)
        changed = type(self).forward is not OFAForConditionalGeneration.forward
        changed = changed or any(is_observed(module) for module in (self, *self.decoder.modules()))
        if rules is None or synced_gpus or changed or not isinstance(cache, BeamCache):
            arguments = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus)
            return super()._beam_search(*arguments, **model_kwargs)
        encoder_outputs = OFAEncoderOutput.of(model_kwargs["encoder_outputs"])

        def next_scores(tokens: Tensor) -> Tensor:
            features = self.decoder(input_ids=tokens, encoder_outputs=encoder_outputs, past_key_values=cache)[0]
            return cache.logits(features[:, -1]).float().log_softmax(-1)

        reorder = cache.self_attention_cache.reorder_cache
        with torch.inference_mode():
            images = beam_search(next_scores, reorder, input_ids, logits_processor, rules)
        found = [text for texts in images for text in texts[: generation_config.num_return_sequences]]
        padding = (generation_config.pad_token_id or rules.ends[0]) if rules.ends else -1
        sequences = padded([text.tokens for text in found], padding, input_ids.device)
        if not generation_config.return_dict_in_generate:
            return sequences
        rows = padded([text.rows for text in found], -1, input_ids.device).int()
        return GenerateBeamEncoderDecoderOutput(sequences=sequences, beam_indices=rows, **{CACHE: cache})

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        processors[:] = [EndFrom.of(processor) for processor in processors]
        temperature = generation_config.temperature
        if not generation_config.do_sample and temperature not in (None, 1.0):
            processors.insert(0, SoftmaxTemperature(temperature))
        if getattr(generation_config, "end_at_max_length", False):
            processors.append(EndAtMaxLength(generation_config.max_length, self.config.eos_token_id))
        return processors

    @torch.no_grad()
    @in_fast_precision
    def caption_scores(self, sequences: torch.LongTensor, encoder_outputs=None, **encoder_inputs) -> Tensor:
        """Mean log-probability a token, `</s>` included, of texts that `generate` returned.

        Args:
            sequences: `(rows, L)`, starting with the start token; rows = batch × n, those of one image together.
            encoder_outputs: what `get_encoder()` returned; else `encoder_inputs` are its arguments.

        Returns:
            `(rows,)` float32.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encode(**encoder_inputs)
        tokens = sequences[:, 1:]
        ended_before = (tokens == self.config.eos_token_id).cumsum(1) - (tokens == self.config.eos_token_id).long()
        real = (ended_before == 0) & (tokens != self.config.pad_token_id)
        features = self.decoder(input_ids=sequences[:, :-1], encoder_outputs=OFAEncoderOutput.of(encoder_outputs))[0]
        scores = torch.zeros(tokens.shape, device=tokens.device)
        scores[real] = -token_losses(features[real], self.decoder.output_projection.weight, tokens[real])
        return scores.sum(1) / real.sum(1).clamp(min=1)


class OFAModel(OFAForConditionalGeneration):
    """What `AutoModel` gives: the same network, which generates and returns logits, as in OFA-Chinese."""


OFAModelForCaption = OFAForConditionalGeneration  # the name in the OFA-Chinese article

# Without these, saving would write an auto_map but not the files it names.
OFAForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
OFAModel.register_for_auto_class("AutoModel")
