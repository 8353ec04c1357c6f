"""Fast decoding on a CPU: few operations per token, and a cache of keys and values that are never copied.

With the few rows of a decoding step, the time goes into reading weights from memory and into calling operations, not
into arithmetic. So weights are copied into the layout that is fastest to read, queries, keys and values are one
product, and no step copies the cache of earlier steps. The results match those of `OFADecoderLayer` up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .fast_ofa import OFALinear, WeightMemo, can_reorder, is_observed, onednn_linear, reorder_weight


ROOM = 32  # initial capacity of a cache in positions; doubled when it is full
MANY_TOKENS = 64  # tokens of a text from which on reading the cache dominates
FEW_IMAGES = 2  # captioned at once: steps then wait for memory, and copies of all weights pay
LARGEST_COPY = 2 * 2**30  # bytes; a large decoder has 830 MB in float32
PLAIN_MODULES = (nn.Linear, OFALinear, nn.LayerNorm, nn.Dropout, nn.ModuleList)
Product = tuple[Tensor, Tensor | None]  # weight, maybe reordered, and bias


# ----------------------------------------------------------------------------------------------------- layers


def step_modules(layer: nn.Module) -> list[nn.Linear]:
    """The products of an `OFADecoderLayer` that a step computes: queries, keys and values first, then in order."""
    own, cross = layer.self_attn, layer.cross_attn
    return [own.q_proj, own.k_proj, own.v_proj, own.out_proj, cross.q_proj, cross.out_proj, layer.fc1, layer.fc2]


def products_of(layer: nn.Module) -> list[Product]:
    return [(module.weight, module.bias) for module in step_modules(layer)]


def reordered_products_of(layer: nn.Module) -> list[Product]:
    """The same in the layout that is fastest to read, with one product for queries, keys and values."""
    products = products_of(layer)
    joined = (torch.cat([part.detach() for part in parts]) for parts in zip(*products[:3], strict=True))
    reordered = [(reorder_weight(weight), bias) for weight, bias in (joined, *products[3:])]
    return [(weight, bias.to(weight.dtype)) for weight, bias in reordered]


class StepLayer:
    """A decoder layer for one token of every text.

    Args:
        layer: an `OFADecoderLayer`.
        products: the result of `products_of` or `reordered_products_of` for this layer.
    """

    def __init__(self, layer: nn.Module, products: Sequence[Product]):
        own, cross = layer.self_attn, layer.cross_attn
        *self.joined, self.own_out, self.cross_query, self.cross_out, self.wide, self.narrow = products
        self.cross, self.dtype = cross, self.own_out[0].dtype
        self.num_heads, self.scaling = own.num_heads, own.scaling
        self.own_scales, self.cross_scales = (one.c_attn[:, None].to(self.dtype) for one in (own, cross))
        self.before_own, self.after_own = map(self._norm, (layer.self_attn_layer_norm, layer.self_attn_mid_layer_norm))
        self.before_cross = self._norm(layer.cross_attn_layer_norm)
        self.after_cross = self._norm(layer.cross_attn_mid_layer_norm)
        self.before_wide, self.inside_wide = map(self._norm, (layer.final_layer_norm, layer.ffn_layer_norm))

    def _norm(self, norm: nn.LayerNorm) -> tuple:
        """Arguments of `torch.layer_norm` after the input."""
        return (norm.weight.shape[0],), norm.weight.to(self.dtype), norm.bias.to(self.dtype), norm.eps, False

    def encode(self, encoder_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of cross-attention: `(B, S, C)` → twice `(B, H, S, D)`."""
        both = (project(encoder_states).to(self.dtype) for project in (self.cross.k_proj, self.cross.v_proj))
        return tuple(states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).contiguous() for states in both)

    def __call__(
        self,
        states: Tensor,
        own: tuple[Tensor, Tensor, Tensor],
        own_bias: Tensor,
        cross: tuple[Tensor, Tensor],
        cross_bias: Tensor,
    ) -> Tensor:
        """`(B * n, C)` → the same, for n texts of each of B images.

        Args:
            own: where to write this step's keys and values, `(2, B, H, n, D)`, and all keys and values so far. Texts
                that keep their tokens apart count as texts of B * n images here.
            own_bias, cross_bias: `(B * H, n, keys)`, added to the scores, in the dtype of the keys.
        """
        new, keys, values = own
        batch_size, texts = keys.shape[0], new.shape[3]

        normed = torch.layer_norm(states, *self.before_own)
        three = torch.cat([onednn_linear(normed, *product) for product in self.joined], dim=-1)
        three = three.view(batch_size, texts, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        new.copy_(three[1:])
        heads = self._attend(three[0].to(keys.dtype), keys, values, own_bias, self.own_scales).to(self.dtype)
        states = states + torch.layer_norm(onednn_linear(heads, *self.own_out), *self.after_own)

        query = onednn_linear(torch.layer_norm(states, *self.before_cross), *self.cross_query)
        query = query.view(cross[0].shape[0], -1, self.num_heads, query.shape[-1] // self.num_heads).transpose(1, 2)
        heads = self._attend(query, *cross, cross_bias, self.cross_scales)
        states = states + torch.layer_norm(onednn_linear(heads, *self.cross_out), *self.after_cross)

        inside = onednn_linear(torch.layer_norm(states, *self.before_wide), *self.wide, "gelu")
        return states + onednn_linear(torch.layer_norm(inside, *self.inside_wide), *self.narrow)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scales: Tensor) -> Tensor:
        """`(B, H, n, D)` queries, `(B, H, keys, D)` keys and values → `(B * n, H * D)`."""
        batch_size, heads, texts, width = query.shape
        scores = torch.baddbmm(bias, query.flatten(0, 1), keys.flatten(0, 1).mT, alpha=self.scaling)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        attended = torch.bmm(weights, values.flatten(0, 1)).view(batch_size, heads, texts, width).transpose(1, 2)
        out = query.new_empty(batch_size, texts, heads, width)
        return torch.mul(attended, scales, out=out).view(batch_size * texts, heads * width)


# ----------------------------------------------------------------------------------------------------- caches


class TextCache(Cache):
    """Keys and values of all tokens so far, which are never moved.

    The tokens of all texts of an image are stored together, and each text attends to all of them: the bias says which
    are its own. When a search reorders its texts, only the bias changes.

    Args:
        apart: texts keep their tokens apart instead, which is faster where each row continues only itself.
        room: tokens per text that there will be; 0 = unknown, and memory grows. Those of many tokens are kept in
            float32, since products of bfloat16 copy them at every step: what is kept has gaps for the tokens to come.
    """

    is_compileable = False

    def __init__(self, apart: bool = False, room: int = 0):
        self.layers: list = []  # none of the parent class
        self.apart, self.room = apart, room
        self.dtype = torch.float32 if room > MANY_TOKENS else None  # None: that of the first keys
        self.length = 0
        self.kept: Tensor | None = None  # (layers, 2, B, H, room * n, D): keys and values
        self.owners: Tensor | None = None  # (B * n, length): which of its image's texts kept a text's token

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i continues row `beam_idx[i]` of the same image."""
        if self.apart:
            self.kept = self.kept.index_select(2, beam_idx)
        self.owners = self.owners.index_select(0, beam_idx)

    def crop(self, max_length: int) -> None:
        """Drop all tokens from a position on; a negative number drops that many."""
        length = self.length + max_length if max_length < 0 else max_length
        if length < self.length:
            self.length, self.owners = length, self.owners[:, :length]

    def add_token(self, like: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Make room for one more token of each text.

        Args:
            like: a tensor of the dtype of keys and values.
            shape: layers, B, H, n, D.

        Returns:
            per layer where to write the new keys and values, `(2, B, H, n, D)`, and all of them including these.
        """
        num_layers, batch_size, heads, texts, width = shape
        begin, end = self.length * texts, (self.length + 1) * texts
        if self.kept is None or self.kept.shape[4] < end:
            with torch.inference_mode(False):  # so that it can also be used outside of inference mode
                room = max((self.room or ROOM) * texts, 2 * begin)
                larger = like.new_empty(num_layers, 2, batch_size, heads, room, width, dtype=self.dtype)
            if self.dtype is not None:  # allocate now: a lack of memory shows at the first step, not at the last
                larger.zero_()
            if self.kept is not None:
                larger[:, :, :, :, :begin] = self.kept
            self.kept = larger
        newest = torch.arange(texts, device=like.device).repeat(batch_size)[:, None]
        self.owners = newest if self.owners is None else torch.cat([self.owners, newest], dim=1)
        self.length += 1
        keys, values = self.kept[:, :, :, :, :end].unbind(1)
        return zip(self.kept[:, :, :, :, begin:end].unbind(), keys.unbind(), values.unbind(), strict=True)

    def biases(self, bias: Tensor, batch_size: int) -> tuple[Tensor, ...]:
        """`(layers, 1, H, 1, keys)` → per layer `(B * H, n, keys * n)`, tokens of other texts forbidden."""
        if self.apart:
            return bias.expand(-1, batch_size, -1, -1, -1).flatten(1, 2).unbind()
        texts = self.owners.shape[0] // batch_size
        own = self.owners.view(batch_size, 1, texts, self.length, 1) == torch.arange(texts, device=bias.device)
        bias = bias[..., None].expand(*bias.shape, texts)
        return torch.where(own, bias, torch.finfo(bias.dtype).min).flatten(4).flatten(1, 2).unbind()


class StepCache(EncoderDecoderCache):
    """The cache of one generation: of its texts and, once per image, of its images; with the layers that read it.

    Args:
        layers: of the decoder.
        vocabulary: returns the reordered weight of the output projection, or its rows for some words.
        apart, room: of the `TextCache`.
    """

    def __init__(
        self, layers: Sequence[StepLayer], vocabulary: Callable[..., Tensor], apart: bool = False, room: int = 0
    ):
        super().__init__(TextCache(apart, room), DynamicCache())
        self._layers, self._vocabulary = layers, vocabulary
        self._words, self._weight = (), None

    def crop(self, max_length: int) -> None:
        self.self_attention_cache.crop(max_length)

    def logits(self, features: Tensor, words: tuple[int, ...] = ()) -> Tensor:
        """`(rows, T, C)` → `(rows, T, vocabulary)`, or `(rows, T, words)` of some words, ids in ascending order."""
        if self._weight is None or words is not self._words:
            self._words, self._weight = words, self._vocabulary(words)
        return onednn_linear(features.to(self._weight.dtype), self._weight, None)

    def decode(
        self, states: Tensor, own_biases: Sequence[Tensor], encoder_states: Tensor, cross_bias: Tensor
    ) -> Tensor:
        """Run all layers: `(rows, T, C)` embedded tokens → `(rows, T, C)`, token by token.

        Args:
            own_biases: per layer `(1, H, T, keys)`.
            cross_bias: `(1 or batch, H, n * T, S)`.
        """
        for number, layer in enumerate(self._layers):
            if not self.is_updated.get(number):
                self.cross_attention_cache.update(*layer.encode(encoder_states), number)
                self.is_updated[number] = True
        batch_size, num_tokens, dtype = encoder_states.shape[0], states.shape[1], self._layers[0].dtype
        cross_bias = cross_bias.to(dtype).expand(batch_size, -1, -1, -1)
        steps = []
        for number in range(num_tokens):
            seen = self.get_seq_length() + 1
            own_bias = torch.stack([bias[:, :, number : number + 1, :seen] for bias in own_biases])
            own_bias = own_bias.to(self.self_attention_cache.dtype or dtype)
            of_step = cross_bias[:, :, number::num_tokens].flatten(0, 1)
            steps.append(self._step(states[:, number].to(dtype), own_bias, of_step, batch_size))
        return torch.stack(steps, dim=1).to(states.dtype)

    def _step(self, states: Tensor, own_bias: Tensor, cross_bias: Tensor, batch_size: int) -> Tensor:
        """One token of every text: `(B * n, C)`, `(layers, 1, H, 1, keys)`, `(B * H, n, S)` → `(B * n, C)`."""
        texts, of_images = self.self_attention_cache, self.cross_attention_cache.layers
        _, heads, _, width = of_images[0].keys.shape
        batch_size = states.shape[0] if texts.apart else batch_size
        shape = (len(self._layers), batch_size, heads, states.shape[0] // batch_size, width)
        places = texts.add_token(states, shape)
        biases = texts.biases(own_bias, batch_size)
        for layer, own, bias, image in zip(self._layers, places, biases, of_images, strict=True):
            states = layer(states, own, bias, (image.keys, image.values), cross_bias)
        return states


# ----------------------------------------------------------------------------------------- whether steps serve


class DecodingWeights:
    """Copies of a decoder's weights in the layout that is fastest to read, renewed when a weight changes.

    Args:
        forward: the model's method that steps replace; a subclass that overrides it is run as it is.
        modules: classes of its decoder layers and their parts.
    """

    def __init__(self, forward: Callable, modules: tuple[type, ...]):
        self.forward, self.plain_modules = forward, (*PLAIN_MODULES, *modules)
        self.of_vocabulary, self.of_layers = WeightMemo(LARGEST_COPY), WeightMemo(LARGEST_COPY)

    def make_cache(self, model: nn.Module, num_images: int, apart: bool = False, room: int = 0) -> StepCache | None:
        """A cache whose steps compute what the model's decoder does; None if the plain layers must run.

        With few images, all weights are copied. With many, steps are limited by arithmetic rather than memory, and in
        float32 only a copy of the vocabulary pays off. `apart` and `room` are of the `TextCache`.
        """
        decoder, vocabulary = model.decoder, model.decoder.output_projection
        if not self._serve(model):
            return None
        modules = [module for layer in decoder.layers for module in step_modules(layer)]
        if not self._fits([vocabulary]) or not self.of_vocabulary.check([vocabulary]):
            return None

        def reordered(words: tuple[int, ...]) -> Tensor:
            key = ("vocabulary", *words[:1], *words[-1:], len(words))
            rows = list(words) if words else slice(None)
            return self.of_vocabulary.get(key, lambda: reorder_weight(vocabulary.weight[rows]))

        products = [products_of(layer) for layer in decoder.layers]
        if num_images <= FEW_IMAGES or vocabulary.weight.dtype != torch.float32:
            if not self._fits(modules) or not self.of_layers.check(modules):
                return None
            products = self.of_layers.get(
                ("layers",), lambda: [reordered_products_of(layer) for layer in decoder.layers]
            )
        layers = [StepLayer(*pair) for pair in zip(decoder.layers, products, strict=True)]
        return StepCache(layers, reordered, apart, room)

    @staticmethod
    def _fits(modules: list[nn.Linear]) -> bool:
        return sum(module.weight.nbytes for module in modules) <= LARGEST_COPY

    def _serve(self, model: nn.Module) -> bool:
        """Whether the model's decoder is unmodified, without hooks, and in inference mode."""
        config, decoder = model.config, model.decoder
        if model.training or torch.is_grad_enabled() or config._attn_implementation != "sdpa":
            return False
        if config.output_attentions or config.output_hidden_states or type(model).forward is not self.forward:
            return False
        inside = [decoder.output_projection, *decoder.layers.modules()]
        if not all(type(module) in self.plain_modules for module in inside):
            return False
        if any(is_observed(module) for module in (model, *decoder.modules())):
            return False
        weights = [module.weight for layer in decoder.layers for module in step_modules(layer)]
        return can_reorder(decoder.output_projection.weight, *weights)
