"""OFA: one sequence-to-sequence network for images and text.

The file reads bottom-up: attention, layers, encoder, decoder, the model that generates. What is particular to OFA:
pre-norm layers with extra norms after attention and inside the feed-forward (NormFormer), a learned scale per head,
and attention scores that add three things: content, absolute positions (untied projections) and relative positions
(tables per layer). The last two are biases, computed in `modeling_ofa_positions.py`.

Source: OFA `models/ofa/unify_transformer.py`, `unify_transformer_layer.py`, `unify_multihead_attention.py`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, Seq2SeqLMOutput
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration_ofa import OFAConfig
from .fast_decoding_ofa import StepCache
from .fast_ofa import OFALinear, RealTokens, attention_function, find_real_tokens, linear_gelu
from .generation_ofa import OFAEncoderOutput, OFAGenerationMixin
from .modeling_ofa_positions import (
    PIXELS_PER_CELL,
    DecoderBiases,
    EncoderBiases,
    fold_rows,
    mask_keys,
    num_image_buckets,
    token_position_buckets,
)
from .modeling_ofa_resnet import OUTPUT_CHANNELS, OFAResNet, drop_path, linear_rates
from .versions_ofa import CACHE_NAME, fixed_cache_length, lacks_word_embedding, tied_weights_keys


# Never runs. Saving copies the files named here, and transformers 4 loads only these, not what they import.
if TYPE_CHECKING:
    from .boxes_ofa import PlacesOnly  # noqa: F401
    from .image_loading_ofa import load_image  # noqa: F401
    from .image_processing_ofa import OFAImageProcessor  # noqa: F401
    from .pipeline_ofa import OFAImageToTextPipeline  # noqa: F401
    from .processing_ofa import OFAProcessor  # noqa: F401
    from .tasks_ofa import Task  # noqa: F401

logger = logging.get_logger(__name__)
IGNORED_LABEL = -100
TEXT_TYPE, IMAGE_TYPE = 0, 1  # rows of the type embedding


# ---------------------------------------------------------------------------------------------- attention


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention with an additive bias. The softmax is always in float32, as in the original."""
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2), weights


@dataclass(frozen=True)
class AttentionContext:
    """The inputs that all attention layers of one pass share.

    Args:
        cache: keys and values; None outside of generation.
        positions: `(T,)`, where a cache of fixed size stores the new tokens.
        real_tokens: set where padding was removed and states are `(N, C)` instead of `(rows, T, C)`.
        output_attentions: return the attention weights, for which plain attention is used.
    """

    cache: EncoderDecoderCache | None = None
    positions: Tensor | None = None
    real_tokens: RealTokens | None = None
    output_attentions: bool = False

    def to_rows(self, states: Tensor) -> Tensor:
        return states if self.real_tokens is None else self.real_tokens.scatter(states)

    def to_tokens(self, states: Tensor) -> Tensor:
        return states if self.real_tokens is None else self.real_tokens.gather(states)


NO_CONTEXT = AttentionContext()


class OFAAttention(nn.Module):
    """Multi-head attention whose scores take an additive bias and whose heads have a learned scale.

    In cross-attention several decoder rows may belong to one encoder row (beams or texts of one image): they are
    folded into the query length, so keys and values exist once per image.
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

    def _keys_and_values(self, states: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Project `states`, and append them to the cache or reuse what it holds."""
        cache = context.cache
        if self.is_cross and cache is not None and cache.is_updated.get(self.layer_idx, False):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        keys, values = self.k_proj(states), self.v_proj(states)
        if not self.is_cross:
            keys, values = context.to_rows(keys), context.to_rows(values)
        keys, values = self._split_heads(keys), self._split_heads(values)
        if cache is None:
            return keys, values
        if self.is_cross:
            cache.is_updated[self.layer_idx] = True
            keys, values = keys.contiguous(), values.contiguous()  # every step reads them
            return cache.cross_attention_cache.update(keys, values, self.layer_idx, None)
        where = {"cache_position": context.positions}  # or transformers 4 writes a static cache at 0
        return cache.self_attention_cache.update(keys, values, self.layer_idx, where)

    def forward(
        self,
        hidden_states: Tensor,
        bias: Tensor,
        encoder_states: Tensor | None = None,
        context: AttentionContext = NO_CONTEXT,
    ) -> tuple[Tensor, Tensor | None]:
        query = context.to_rows(self.q_proj(hidden_states))
        rows, num_tokens, _ = query.shape
        key, value = self._keys_and_values(encoder_states if self.is_cross else hidden_states, context)
        rows_per_image = rows // key.shape[0]
        query = self._split_heads(query.reshape(key.shape[0], rows_per_image * num_tokens, -1))
        dropout = self.config.attention_dropout if self.training else 0.0
        implementation = "eager" if context.output_attentions else self.config._attn_implementation
        is_eager = implementation == "eager"
        attend = eager_attention if is_eager else attention_function(implementation, query, bias, dropout)
        heads, weights = attend(self, query, key, value, bias, scaling=self.scaling, dropout=dropout, is_causal=False)
        heads = (heads * self.c_attn[:, None]).reshape(rows, num_tokens, -1)
        if weights is not None and rows_per_image > 1:
            weights = weights.unflatten(2, (rows_per_image, num_tokens)).transpose(1, 2).flatten(0, 1)
        return self.out_proj(context.to_tokens(heads)), weights


# ------------------------------------------------------------------------------------------------- layers


class OFALayer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: each block normalizes before and inside, and is added to its input."""

    def __init__(self, config: OFAConfig, num_heads: int, ffn_dim: int, drop_path_rate: float, layer_idx=None):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = OFAAttention(config, num_heads, layer_idx)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = OFALinear(config.d_model, ffn_dim)
        self.ffn_layer_norm = nn.LayerNorm(ffn_dim)
        self.fc2 = OFALinear(ffn_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.drop_path_rate = drop_path_rate

    def add(self, residual: Tensor, branch: Tensor) -> Tensor:
        return residual + drop_path(self.dropout(branch), self.drop_path_rate, self.training)

    def attend_to_self(self, hidden_states: Tensor, bias: Tensor, context: AttentionContext):
        attended, weights = self.self_attn(self.self_attn_layer_norm(hidden_states), bias, context=context)
        return self.add(hidden_states, self.self_attn_mid_layer_norm(attended)), weights

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        inner = linear_gelu(self.fc1, self.final_layer_norm(hidden_states))
        return self.add(hidden_states, self.fc2(self.ffn_layer_norm(self.activation_dropout(inner))))


class OFAEncoderLayer(OFALayer):
    """Self-attention, then feed-forward."""

    def __init__(self, config: OFAConfig, drop_path_rate: float):
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim, drop_path_rate)

    def forward(self, hidden_states: Tensor, bias: Tensor, context: AttentionContext = NO_CONTEXT):
        hidden_states, weights = self.attend_to_self(hidden_states, bias, context)
        return self.feed_forward(hidden_states), weights


class OFADecoderLayer(OFALayer):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, config: OFAConfig, layer_idx: int, drop_path_rate: float):
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim, drop_path_rate, layer_idx)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn = OFAAttention(config, config.decoder_attention_heads, layer_idx, is_cross=True)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model)

    def attend_to_encoder(
        self, hidden_states: Tensor, bias: Tensor, encoder_states: Tensor, context: AttentionContext
    ):
        attended, weights = self.cross_attn(self.cross_attn_layer_norm(hidden_states), bias, encoder_states, context)
        return self.add(hidden_states, self.cross_attn_mid_layer_norm(attended)), weights

    def forward(
        self,
        hidden_states: Tensor,
        self_bias: Tensor,
        encoder_states: Tensor,
        cross_bias: Tensor,
        context: AttentionContext = NO_CONTEXT,
    ):
        hidden_states, weights = self.attend_to_self(hidden_states, self_bias, context)
        hidden_states, cross_weights = self.attend_to_encoder(hidden_states, cross_bias, encoder_states, context)
        return self.feed_forward(hidden_states), weights, cross_weights


# ------------------------------------------------------------------------------------------- base classes


class OFAPreTrainedModel(PreTrainedModel):
    """Initialization, loading, and the features that transformers queries."""

    config_class = OFAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["OFAEncoderLayer", "OFADecoderLayer", "OFABottleneck"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = False  # it does not support a learned additive bias
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _supports_static_cache = True
    _keys_to_ignore_on_load_unexpected = [  # constants in old checkpoints, recomputed here
        r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket)$",
        r"decoder\.image_position_idx$",
    ]

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but also notices if a checkpoint lacks the shared word embedding."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if lacks_word_embedding(model, info):
            raise ValueError(
                f"The checkpoint {args[0] if args else ''} lacks encoder.embed_tokens.weight, the word embedding of "
                "encoder, decoder and output. Get the weight file again, or convert the checkpoint again."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # otherwise transformers guesses from the text of this file

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
            is_loaded = getattr(module.weight, "_is_hf_initialized", False)
            if getattr(module, "padding_idx", None) is not None and not is_loaded:
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
        elif isinstance(module, (OFAEncoder, OFADecoder)):  # what was on the meta device is uninitialized memory
            module.text_buckets.copy_(self._make_text_buckets())

    def _wanted(self, output_attentions: bool | None, output_hidden_states: bool | None) -> dict[str, bool]:
        """Outputs to return besides the last states: those of the config, unless the call overrides them."""
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        return {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}

    def _check_text_length(self, length: int, side: str) -> None:
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"The {side} text has {length} tokens but the checkpoint knows {limit} positions. "
                f"Shorten it to at most {limit} tokens."
            )

    def _make_position_tables(self, num_layers: int, num_heads: int) -> None:
        """Embeddings of absolute positions, and per layer tables of text distances and of 2-D image offsets."""
        config = self.config
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, config.d_model)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, config.d_model)
        self.pos_ln = nn.LayerNorm(config.d_model)
        self.image_pos_ln = nn.LayerNorm(config.d_model)
        sizes = (2 * config.token_bucket_size - 1, num_image_buckets(config.image_bucket_size))
        self.token_rel_pos_table_list, self.image_rel_pos_table_list = (
            nn.ModuleList(nn.Embedding(size, num_heads) for _ in range(num_layers)) for size in sizes
        )
        self.register_buffer("text_buckets", self._make_text_buckets(), persistent=False)

    def _make_text_buckets(self) -> Tensor:
        return token_position_buckets(self.config.token_bucket_size, self.config.max_position_embeddings)


def drop_full_mask(mask: Tensor | None) -> Tensor | None:
    """None for a mask without zeros. A compiled graph keeps the mask, since it must not depend on values."""
    if mask is None or torch.compiler.is_compiling() or not bool((mask != 0).all()):
        return mask
    return None


def is_padded_right(mask: Tensor | None) -> bool:
    """Whether all padding of a `(rows, T)` mask is at the end, where causal attention never looks."""
    return mask is not None and not torch.compiler.is_compiling() and not bool((mask[:, 1:] > mask[:, :-1]).any())


# ------------------------------------------------------------------------------------------------ encoder


class OFAEncoder(OFAPreTrainedModel):
    """Images and prompts → states that the decoder reads; image cells first, then text."""

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding | None = None):
        super().__init__(config)
        width = config.d_model
        if embed_tokens is None:
            embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_tokens = embed_tokens
        self.type_embedding = nn.Embedding(2, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_images = OFAResNet(config.resnet_type, config.resnet_drop_path_rate)
        self.image_proj = OFALinear(OUTPUT_CHANNELS, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self._make_position_tables(config.encoder_layers, config.encoder_attention_heads)
        self.pos_q_linear = OFALinear(width, width)
        self.pos_k_linear = OFALinear(width, width)
        rates = linear_rates(config.encoder_drop_path_rate, config.encoder_layers)
        self.layers = nn.ModuleList(OFAEncoderLayer(config, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(width)
        self.position_biases = EncoderBiases(self)
        self.gradient_checkpointing = False
        self.post_init()

    def embed_type(self, number: int, device: torch.device) -> Tensor:
        return self.type_embedding(torch.full((), number, device=device))

    def embed_text(self, inputs_embeds: Tensor) -> Tensor:
        return self.dropout(self.layernorm_embedding(inputs_embeds + self.embed_type(TEXT_TYPE, inputs_embeds.device)))

    def embed_image_cells(self, pixel_values: Tensor, trunk=None) -> Tensor:
        """`(batch, 3, height, width)` → `image_embeds`, `(batch, rows, columns, d_model)`.

        This is the part of the encoder that depends on neither the prompt nor the word embedding.

        Args:
            trunk: computes the features instead of `self.embed_images`.
        """
        limit = self.config.image_bucket_size
        grid = tuple(-(-side // PIXELS_PER_CELL) for side in pixel_values.shape[-2:])
        if max(grid) > limit:
            raise ValueError(
                f"The image gives {grid[0]}×{grid[1]} cells of {PIXELS_PER_CELL} pixels but the checkpoint knows "
                f"positions for {limit}×{limit}. Resize images to at most {PIXELS_PER_CELL * limit} pixels a side."
            )
        pixel_values = pixel_values.to(self.embed_images.conv1.weight.dtype)  # never quantized
        features = (trunk or self.embed_images)(pixel_values).flatten(2).transpose(1, 2)
        cells = self.image_proj(features) + self.embed_type(IMAGE_TYPE, features.device)
        return self.dropout(self.patch_layernorm_embedding(cells)).unflatten(1, grid)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        patch_masks: torch.BoolTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        patch_images: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
    ) -> OFAEncoderOutput:
        """Encode a batch of images and prompts.

        Args:
            input_ids: `(batch, T)` prompts; or `inputs_embeds` `(batch, T, d_model)`.
            attention_mask: `(batch, T)`, 0 = padding; by default derived from `pad_token_id`.
            pixel_values: `(batch, 3, height, width)`, normalized; None for text only. `patch_images` is its old name.
            patch_masks: `(batch,)`, False = this sample has no image.
            image_embeds: the result of `embed_image_cells`, instead of `pixel_values`.

        Raises:
            ValueError: no text at all, not one image per prompt, or a text or image beyond the position tables.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass the prompt as exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if attention_mask is None:
                attention_mask = input_ids != self.config.pad_token_id
        batch_size, text_length, _ = inputs_embeds.shape
        self._check_text_length(text_length, "prompt's")
        pixel_values = patch_images if pixel_values is None else pixel_values
        if image_embeds is None and pixel_values is not None:
            self._check_rows(batch_size, pixel_values, patch_masks)
            image_embeds = self.embed_image_cells(pixel_values)

        hidden_states, grid, mask = self.embed_text(inputs_embeds), None, drop_full_mask(attention_mask)
        if image_embeds is not None:
            grid, cells = tuple(image_embeds.shape[1:3]), image_embeds.flatten(1, 2)
            self._check_rows(batch_size, image_embeds, patch_masks)
            hidden_states = torch.cat([cells, hidden_states], dim=1)
            mask = self._join_masks(mask, drop_full_mask(patch_masks), cells.shape[:2], text_length)
        if mask is not None:
            hidden_states = hidden_states * mask[..., None].to(hidden_states.dtype)
        position_embeddings, biases = self.position_biases(grid, text_length)
        wanted = self._wanted(output_attentions, output_hidden_states)
        states, all_states, all_weights = self._run_layers(hidden_states, biases, mask, **wanted)
        return OFAEncoderOutput(states, position_embeddings, mask, all_states, all_weights)

    def _run_layers(self, hidden_states, biases, mask, output_attentions: bool, output_hidden_states: bool):
        """The normalized states after the last layer and, if requested, all states and attention weights."""
        context = AttentionContext(output_attentions=output_attentions)
        all_states, all_weights = (), ()
        for layer, bias in zip(self.layers, biases, strict=True):
            all_states += (hidden_states,) if output_hidden_states else ()
            hidden_states, weights = layer(hidden_states, mask_keys(bias, mask), context)
            all_weights += (weights,)
        hidden_states = self.layer_norm(hidden_states)
        all_states = (*all_states, hidden_states) if output_hidden_states else None
        return hidden_states, all_states, all_weights if output_attentions else None

    @staticmethod
    def _check_rows(num_prompts: int, images: Tensor, patch_masks: Tensor | None) -> None:
        if images.ndim != 4 or images.shape[0] != num_prompts:
            raise ValueError(
                f"pixel_values has shape {tuple(images.shape)} for {num_prompts} prompts but must be "
                f"({num_prompts}, 3, height, width). Pass one image per prompt; patch_masks marks those without one."
            )
        if patch_masks is not None and patch_masks.shape != (num_prompts,):
            raise ValueError(
                f"patch_masks has shape {tuple(patch_masks.shape)} for {num_prompts} prompts but must be "
                f"({num_prompts},). Pass one flag per prompt, False where it has no image."
            )

    @staticmethod
    def _join_masks(text_mask: Tensor | None, has_image: Tensor | None, cells: tuple[int, int], text_length: int):
        """Masks over image cells and text as one `(batch, S)` int64 mask, or None if nothing is masked."""
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
        width = config.d_model
        if embed_tokens is None:
            embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self._make_position_tables(config.decoder_layers, config.decoder_attention_heads)
        self.self_pos_q_linear = OFALinear(width, width)
        self.self_pos_k_linear = OFALinear(width, width)
        self.cross_pos_q_linear = OFALinear(width, width)
        self.cross_pos_k_linear = OFALinear(width, width)
        rates = linear_rates(config.decoder_drop_path_rate, config.decoder_layers)
        self.layers = nn.ModuleList(OFADecoderLayer(config, index, rate) for index, rate in enumerate(rates))
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = OFALinear(width, config.vocab_size, bias=False)
        self.position_biases = DecoderBiases(self)
        self.gradient_checkpointing = False
        self.post_init()

    def embed(self, inputs_embeds: Tensor, code_masks: Tensor | None = None) -> Tensor:
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
        output_hidden_states: bool = False,
        skip_padding: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode `(rows, T)` tokens, where rows is a multiple of the encoder's batch: neighbors share an image.

        Args:
            attention_mask: `(rows, T)`, 0 = padding.
            skip_padding: do not compute the features of padding, which the caller does not use.

        Returns:
            `last_hidden_state`: features `(rows, T, d_model)` after the final LayerNorm.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass the text so far as exactly one of decoder_input_ids and decoder_inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        rows, num_tokens, _ = inputs_embeds.shape
        if rows % len(encoder_outputs.last_hidden_state):
            raise ValueError(
                f"{rows} decoder rows cannot be shared among {len(encoder_outputs.last_hidden_state)} encoder rows. "
                "Pass the same number of texts for every image, those of one image next to each other."
            )
        if output_attentions and torch.is_grad_enabled():  # otherwise the returned weights would not be those used
            encoder_outputs = encoder_outputs.repeat(rows // len(encoder_outputs.last_hidden_state))
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        real_tokens = None
        if skip_padding and is_padded_right(attention_mask):
            drops_rows = self.training and any(layer.drop_path_rate for layer in self.layers)  # all tokens at once
            real_tokens, attention_mask = None if drops_rows else find_real_tokens(attention_mask), None
        context = AttentionContext(
            cache=past_key_values,
            positions=torch.arange(num_tokens, device=inputs_embeds.device) + past,
            real_tokens=real_tokens,
            output_attentions=output_attentions,
        )
        biases = self._biases(past, rows, num_tokens, encoder_outputs, code_masks, past_key_values)
        hidden_states = self.embed(context.to_tokens(inputs_embeds), code_masks)
        if isinstance(past_key_values, StepCache):
            hidden_states = past_key_values.decode(hidden_states, *biases)
            return BaseModelOutputWithPastAndCrossAttentions(self.layer_norm(hidden_states))
        return self._run_layers(hidden_states, *biases, attention_mask, context, output_hidden_states)

    def _run_layers(
        self,
        hidden_states: Tensor,
        self_biases: tuple[Tensor, ...],
        encoder_states: Tensor,
        cross_bias: Tensor,
        attention_mask: Tensor | None,
        context: AttentionContext,
        output_hidden_states: bool,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        key_mask = drop_full_mask(attention_mask)
        if key_mask is not None:  # in a cache of fixed size, keys past the end are masked like later ones
            key_mask = nn.functional.pad(key_mask, (0, self_biases[0].shape[-1] - key_mask.shape[1]), value=1)
        all_states, all_weights, all_cross_weights = (), (), ()
        for layer, self_bias in zip(self.layers, self_biases, strict=True):
            all_states += (hidden_states,) if output_hidden_states else ()
            hidden_states, weights, cross_weights = layer(
                hidden_states, mask_keys(self_bias, key_mask), encoder_states, cross_bias, context
            )
            all_weights += (weights,)
            all_cross_weights += (cross_weights,)
        hidden_states = context.to_rows(self.layer_norm(hidden_states))
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            hidden_states=(*all_states, hidden_states) if output_hidden_states else None,
            attentions=all_weights if context.output_attentions else None,
            cross_attentions=all_cross_weights if context.output_attentions else None,
        )

    def _biases(self, past, rows: int, num_tokens: int, encoder_outputs: OFAEncoderOutput, code_masks, cache):
        """Biases of self-attention per layer, encoder states, and the bias of cross-attention to them."""
        is_fixed = cache is not None and cache.is_compileable
        num_keys = fixed_cache_length(cache.self_attention_cache) if is_fixed else past + num_tokens
        are_codes = code_masks is not None and bool(code_masks.all())  # image codes have positions on a grid instead
        self._check_text_length(0 if are_codes else num_keys, "decoder's")
        if cache is None or not any(cache.is_updated.values()):  # first step of a generation
            self.position_biases.check_weights()
        positions = encoder_outputs.position_embeddings[:1]
        self_biases, cross_bias = self.position_biases(past, num_tokens, num_keys, positions, code_masks)
        encoder_states, mask = encoder_outputs.last_hidden_state, encoder_outputs.attention_mask
        return self_biases, encoder_states, mask_keys(fold_rows(cross_bias, rows // len(encoder_states)), mask)


# -------------------------------------------------------------------------------------------------- model


def cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: int | Tensor | None = None, **kwargs) -> Tensor:
    """Mean cross entropy of the labels that are not ignored, or their sum divided by `num_items_in_batch`.

    Args:
        logits: `(rows, T, vocabulary)`.
        labels: `(rows, T)`, the token that each position should predict.
    """
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


class OFAForConditionalGeneration(OFAPreTrainedModel, OFAGenerationMixin):
    """Images and prompts → text, one or several per image.

    `OFAForConditionalGeneration.from_pretrained(folder).generate(input_ids, pixel_values=...)`

    Args of `forward`:
        input_ids: `(batch, T)` prompts; `attention_mask` `(batch, T)` has 0 for padding (default: every pad).
        pixel_values: `(batch, 3, height, width)`; None for text only. `patch_images` is its old name.
        patch_masks: `(batch,)`, False = this sample has no image.
        decoder_input_ids: `(rows, U)`; rows = batch × n, the n texts of one image next to each other.
        decoder_attention_mask: `(rows, U)`, 0 for padding; needed only for padding on the left.
        code_masks: `(rows,)`, True = this row's text is image codes, placed on a grid.
        encoder_outputs: the result of `get_encoder()`, instead of encoding again.
        labels: `(rows, U)`, −100 = ignored; shifted here, so `decoder_input_ids` can be left out.
        logits_to_keep: number of last positions, or a tensor of positions, whose logits are computed; 0 = all. An
            empty tensor skips padding and the logits, which need far more memory than the rest.
        image_embeds: the result of `embed_image_cells`, instead of `pixel_values`.
        cache: the name of `past_key_values` from transformers 5.24 on; the output has it under the same name.
        kwargs: for `loss_function`, such as the Trainer's `num_items_in_batch`.

    Raises:
        ValueError: no decoder input, a number of texts that does not fit the images, or sizes beyond the tables.
    """

    _tied_weights_keys = tied_weights_keys(
        {f"decoder.{name}.weight": "encoder.embed_tokens.weight" for name in ("embed_tokens", "output_projection")}
    )

    def __init__(self, config: OFAConfig):
        super().__init__(config)
        embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = OFAEncoder(config, embed_tokens)
        self.decoder = OFADecoder(config, embed_tokens)
        self.loss_function = cross_entropy
        self._encoder_is_locked, self._encoder_passes_gradients = False, True
        self._init_fast_paths(OFAForConditionalGeneration.forward, (OFADecoderLayer, OFAAttention))
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

    # -- LiT: a locked encoder

    def lock_encoder(self, train_embeddings: bool = False, through_encoder: bool = False) -> None:
        """Lock the encoder for LiT-tuning: no gradients, and permanent inference mode (no dropout, fixed BatchNorm).

        Args:
            train_embeddings: keep training the word embedding, which encoder, decoder and output share. The encoder
                still reads it, but passes no gradient to it.
            through_encoder: also let the gradient pass through the encoder, at the cost of its backward pass.

        Source: LiT, arXiv 2111.07991.
        """
        self._encoder_is_locked, self._encoder_passes_gradients = True, train_embeddings and through_encoder
        self.encoder.requires_grad_(False)
        self.encoder.embed_tokens.requires_grad_(train_embeddings)
        self.train(self.training)

    def unlock_encoder(self) -> None:
        """Undo `lock_encoder`."""
        self._encoder_is_locked, self._encoder_passes_gradients = False, True
        self.encoder.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "OFAForConditionalGeneration":
        super().train(mode)
        if self._encoder_is_locked:
            self.encoder.eval()
        return self

    # -- one pass

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """`(rows, T)` labels → decoder inputs: shifted right behind the start token, ignored labels as padding."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    @can_return_tuple
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
        logits_to_keep: int | torch.Tensor = 0,
        patch_images: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """One pass through encoder and decoder; the class explains the arguments."""
        wanted = self._wanted(output_attentions, output_hidden_states)
        if encoder_outputs is None:
            pixel_values = patch_images if pixel_values is None else pixel_values
            images = {"pixel_values": pixel_values, "patch_masks": patch_masks, "image_embeds": image_embeds}
            prompts = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
            encode = self.encoder if self._encoder_passes_gradients else self.encode
            encoder_outputs = encode(**prompts, **images, **wanted, return_dict=True)
        encoder_outputs = OFAEncoderOutput.of(encoder_outputs)
        past_key_values = self._choose_cache(past_key_values if cache is None else cache, use_cache, labels)
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        has_logits = isinstance(kept, slice) or len(kept) > 0
        is_lean = not has_logits and code_masks is None and past_key_values is None
        texts = {"input_ids": decoder_input_ids, "inputs_embeds": decoder_inputs_embeds, "code_masks": code_masks}
        texts |= {"attention_mask": decoder_attention_mask, "skip_padding": is_lean and not any(wanted.values())}
        decoded = self.decoder(**texts, **wanted, encoder_outputs=encoder_outputs, past_key_values=past_key_values)
        features, projection, loss = decoded.last_hidden_state, self.decoder.output_projection, None
        project = past_key_values.logits if isinstance(past_key_values, StepCache) else projection
        logits = project(features[:, kept]) if has_logits else None
        if labels is not None:
            kwargs |= {"features": features, "weight": projection.weight}  # for losses that never compute logits
            loss = self.loss_function(logits=logits, labels=labels, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: past_key_values},
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def _choose_cache(self, cache: EncoderDecoderCache | None, use_cache: bool | None, labels: Tensor | None):
        """The caller's cache, a new one, or None if no cache is used."""
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if use_cache and self.training and self.decoder.gradient_checkpointing:
            logger.warning_once("use_cache=True does not work with gradient checkpointing; no cache is kept.")
            use_cache = False
        if not use_cache:
            return None
        return EncoderDecoderCache(DynamicCache(), DynamicCache()) if cache is None else cache


class OFAModel(OFAForConditionalGeneration):
    """The class that `AutoModel` loads: the same network, which generates and returns logits, as in OFA-Chinese."""


OFAModelForCaption = OFAForConditionalGeneration  # the name in the OFA-Chinese article

# Without these calls, saving would write an auto_map but not the files that it names.
OFAForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
OFAModel.register_for_auto_class("AutoModel")
