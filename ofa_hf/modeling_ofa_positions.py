"""Positions in attention: position numbers, buckets of distances, and the biases computed from them.

OFA adds two position terms to every attention score: absolute positions, whose embeddings are projected and multiplied
separately from the content, and relative positions, looked up in tables per layer. Both depend only on shapes, not on
the content of a batch, so they are computed once per shape.

Source: OFA `models/ofa/unify_transformer.py`.
"""

import math

import torch
from torch import Tensor, nn

from .fast_ofa import WeightMemo


PIXELS_PER_CELL = 16  # stride of the image trunk
PIXELS_PER_CODE = 8  # pixels a side of a cell of a generated image
BEYOND_CODE_GRID = 1024  # OFA's position of image codes beyond the window
STEPS_PER_TABLE = 64  # step by which tables of decoding steps grow


# ------------------------------------------------------------------------------------------ places and buckets


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

    Position 0 is outside the grid and has three buckets of its own, after those of the offsets.

    Source: OFA `make_image_bucket_position` (as in BEiT), computed for the positions in use instead of for all.
    """
    side = 2 * bucket_size - 1
    rows, columns = (query_ids - 1) // bucket_size, (query_ids - 1) % bucket_size
    key_rows, key_columns = (key_ids - 1) // bucket_size, (key_ids - 1) % bucket_size
    offset = (rows[:, None] - key_rows + bucket_size - 1) * side + columns[:, None] - key_columns + bucket_size - 1
    from_outside, to_outside = (query_ids == 0)[:, None], (key_ids == 0)[None, :]
    offset = torch.where(to_outside, side * side + 1, torch.where(from_outside, side * side, offset))
    return torch.where(from_outside & to_outside, side * side + 2, offset)


def num_image_buckets(bucket_size: int) -> int:
    """Number of values of `image_position_buckets`: all offsets, and three for positions outside the grid."""
    return (2 * bucket_size - 1) ** 2 + 3


def code_position_ids(code_image_size: int, bucket_size: int, length: int) -> Tensor:
    """Grid position of each decoder step when the text is an image's codes, 8 × 8 pixels per code.

    Returns:
        `(length,)` int64: 0 for the start token, then the code window row by row, then `BEYOND_CODE_GRID`.
    """
    window = code_image_size // PIXELS_PER_CODE
    grid = image_grid_positions(window, window, bucket_size, torch.device("cpu"))
    positions = torch.full((max(length, len(grid) + 1),), min(BEYOND_CODE_GRID, bucket_size**2), device="cpu")
    positions[0], positions[1 : len(grid) + 1] = 0, grid
    return positions[:length]


# ----------------------------------------------------------------------------------------------------- biases


def absolute_position_bias(queries: Tensor, keys: Tensor, num_heads: int, scaling: float) -> Tensor:
    """Score positions against positions: `(B, Q, C)`, `(B, K, C)` → `(B, num_heads, Q, K)`."""
    queries = queries.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    keys = keys.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return (queries * scaling) @ keys.mT


def relative_position_bias(table: nn.Embedding, buckets: Tensor) -> Tensor:
    """Look up a learned score per head: `(Q, K)` buckets → `(num_heads, Q, K)`, on the device of the buckets."""
    return table(buckets).permute(2, 0, 1).to(buckets.device)  # a device map may place the tables elsewhere


def mask_keys(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Mask keys: `(1 or B, H, Q, K)` bias, `(B, K)` mask with 0 = masked → `(B, H, Q, K)`."""
    if mask is None:
        return bias
    return bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(bias.dtype).min)


def fold_rows(bias: Tensor, rows_per_image: int) -> Tensor:
    """Move the texts of one image into the query length: `(1 or rows, H, T, S)` → `(1 or batch, H, n * T, S)`."""
    if rows_per_image == 1:
        return bias
    if bias.shape[0] == 1:
        return bias[:, :, None].expand(-1, -1, rows_per_image, -1, -1).flatten(2, 3)
    return bias.unflatten(0, (-1, rows_per_image)).transpose(1, 2).flatten(2, 3)


class PositionBiases:
    """Base of the two classes below.

    Args:
        stack: the `OFAEncoder` or `OFADecoder` whose embeddings, projections and tables are read.
        projections: names of the stack's position projections.
    """

    projections: tuple[str, ...]

    def __init__(self, stack: nn.Module):
        self.stack, self.memo = stack, WeightMemo()

    def check_weights(self) -> None:
        """Drop results of earlier weights. Called once per pass."""
        stack = self.stack
        embeddings = [stack.embed_positions, stack.embed_image_positions, stack.pos_ln, stack.image_pos_ln]
        tables = [*stack.token_rel_pos_table_list, *stack.image_rel_pos_table_list]
        self.memo.check([*embeddings, *(getattr(stack, name) for name in self.projections), *tables])

    def text_buckets(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Bucket of the distance between text positions: `(Q,)`, `(K,)` → `(Q, K)`."""
        return self.stack.text_buckets[query_ids[:, None] - key_ids + self.stack.config.max_position_embeddings - 1]

    def absolute(self, queries: Tensor, keys: Tensor, query_proj: nn.Module, key_proj: nn.Module) -> Tensor:
        """Bias of position embeddings `(1, Q, C)` and `(1, K, C)` → `(1, H, Q, K)`."""
        attention = self.stack.layers[0].self_attn
        return absolute_position_bias(query_proj(queries), key_proj(keys), attention.num_heads, attention.scaling)


class EncoderBiases(PositionBiases):
    """Position embeddings and attention biases of the encoder: image cells first, then text."""

    projections = ("pos_q_linear", "pos_k_linear")

    def __call__(self, grid: tuple[int, int] | None, text_length: int) -> tuple[Tensor, list[Tensor]]:
        """Biases of a feature map of `grid` cells (None: no image) and a prompt.

        Returns:
            normalized position embeddings `(1, S, C)` and, per layer, the bias `(1, H, S, S)`.
        """
        self.check_weights()
        return self.memo.get((grid, text_length), lambda: self.compute(grid, text_length))

    def compute(self, grid: tuple[int, int] | None, text_length: int) -> tuple[Tensor, list[Tensor]]:
        stack, device, num_cells = self.stack, self.stack.text_buckets.device, 0
        text_ids = torch.arange(text_length, device=device)
        embeddings = stack.pos_ln(stack.embed_positions(text_ids))
        if grid is not None:
            num_cells, bucket_size = grid[0] * grid[1], stack.config.image_bucket_size
            image_ids = image_grid_positions(*grid, bucket_size, device)
            image_buckets = image_position_buckets(image_ids, image_ids, bucket_size)
            embeddings = torch.cat([stack.image_pos_ln(stack.embed_image_positions(image_ids)), embeddings])
        embeddings = embeddings[None]
        absolute = self.absolute(embeddings, embeddings, stack.pos_q_linear, stack.pos_k_linear)
        text_buckets, biases = self.text_buckets(text_ids, text_ids), []
        tables = zip(stack.token_rel_pos_table_list, stack.image_rel_pos_table_list, strict=True)
        for text_table, image_table in tables:
            bias = absolute.clone()
            bias[:, :, num_cells:, num_cells:] += relative_position_bias(text_table, text_buckets)
            if grid is not None:  # the tables apply within the text and within the image, not between them
                bias[:, :, :num_cells, :num_cells] += relative_position_bias(image_table, image_buckets)
            biases.append(bias)
        return embeddings, biases


class DecoderBiases(PositionBiases):
    """Attention biases of the decoder's steps, as text or as codes of an image."""

    projections = ("self_pos_q_linear", "self_pos_k_linear", "cross_pos_q_linear", "cross_pos_k_linear")

    def __call__(self, past: int | Tensor, num_tokens: int, num_keys: int, encoder_positions: Tensor, code_masks):
        """Biases of the decoding steps from `past` on.

        Args:
            encoder_positions: `(1, S, C)`, from `EncoderBiases`.
            code_masks: `(rows,)`, True = this row's text is image codes; or None.

        Returns:
            per layer the bias `(1 or rows, H, num_tokens, num_keys)` of self-attention, later steps masked, and
            the bias `(1 or rows, H, num_tokens, S)` of cross-attention, which is the same in every layer.
        """
        steps = (past, num_tokens, num_keys, encoder_positions)
        if code_masks is None or not bool(code_masks.any()):
            return self._of_steps(*steps, as_codes=False)
        codes = self._of_steps(*steps, as_codes=True)
        if bool(code_masks.all()):
            return codes
        text, is_code = self._of_steps(*steps, as_codes=False), code_masks[:, None, None, None]
        own = tuple(torch.where(is_code, code, plain) for code, plain in zip(codes[0], text[0], strict=True))
        return own, torch.where(is_code, codes[1], text[1])

    def _of_steps(self, past: int | Tensor, num_tokens: int, num_keys: int, encoder_positions: Tensor, as_codes: bool):
        """Biases of steps that are all text or all codes; without gradients, rows of cached tables."""
        device = self.stack.text_buckets.device
        query_ids = torch.arange(num_tokens, device=device) + past
        has_no_tables = as_codes or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if has_no_tables:  # tables for the thousand codes of an image would be large, and each row is used only once
            key_ids = torch.arange(num_keys, device=device)
            own = self.compute_self(query_ids, key_ids, as_codes)
            return own, self.compute_cross(query_ids, encoder_positions, as_codes, num_keys)
        limit = self.stack.config.max_position_embeddings
        length = min(STEPS_PER_TABLE * math.ceil(num_keys / STEPS_PER_TABLE), limit)
        ids = torch.arange(length, device=device)
        own = self.memo.get(("self", length, as_codes), lambda: self.compute_self(ids, ids, as_codes))
        cross = self.memo.get(
            ("cross", length, as_codes),
            lambda: self.compute_cross(ids, encoder_positions, as_codes, length),
            encoder_positions,
        )
        rows = slice(past, past + num_tokens) if isinstance(past, int) else query_ids
        return tuple(table[:, :, rows, :num_keys] for table in own), cross[:, :, rows]

    def embeddings(self, ids: Tensor) -> Tensor:
        """Normalized position embeddings `(1, L, C)` of decoding steps that are text."""
        return self.stack.pos_ln(self.stack.embed_positions(ids))[None]

    def heads(self, states: Tensor) -> Tensor:
        """`(1, L, C)` → `(1, H, L, D)`."""
        return states.unflatten(-1, (self.stack.layers[0].self_attn.num_heads, -1)).transpose(1, 2).contiguous()

    def codes(self, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position terms of decoding steps that are codes: grid positions `(L,)`, and `(1, H, L, D)` queries and keys
        of self-attention and queries of cross-attention, queries scaled; L is `length` or more."""
        config = self.stack.config
        length = max(length, (config.code_image_size // PIXELS_PER_CODE) ** 2 + 1)
        return self.memo.get(("codes", length), lambda: self.compute_codes(length))

    def compute_codes(self, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stack, config = self.stack, self.stack.config
        grid = code_position_ids(config.code_image_size, config.image_bucket_size, length)
        grid = grid.to(stack.text_buckets.device)
        embeddings = stack.image_pos_ln(stack.embed_image_positions(grid))[None]
        scaling = stack.layers[0].self_attn.scaling
        queries, keys = (
            self.heads(stack.self_pos_q_linear(embeddings)),
            self.heads(stack.self_pos_k_linear(embeddings)),
        )
        return grid, queries * scaling, keys, self.heads(stack.cross_pos_q_linear(embeddings)) * scaling

    def compute_self(self, query_ids: Tensor, key_ids: Tensor, as_codes: bool) -> tuple[Tensor, ...]:
        """Per layer the bias `(1, H, Q, K)` of self-attention, later steps masked."""
        stack = self.stack
        if as_codes:
            grid, queries, keys, _ = self.codes(len(key_ids))
            # with all keys: oneDNN keeps code for each shape of a product in half precision, half a MiB per step
            absolute = (queries[:, :, query_ids] @ keys.mT)[..., : len(key_ids)]
            buckets = image_position_buckets(grid[query_ids], grid[key_ids], stack.config.image_bucket_size)
            tables = stack.image_rel_pos_table_list
        else:
            queries, keys = self.embeddings(query_ids), self.embeddings(key_ids)
            absolute = self.absolute(queries, keys, stack.self_pos_q_linear, stack.self_pos_k_linear)
            buckets, tables = self.text_buckets(query_ids, key_ids), stack.token_rel_pos_table_list
        is_later, lowest = key_ids > query_ids[:, None], torch.finfo(absolute.dtype).min
        biases = (absolute + relative_position_bias(table, buckets) for table in tables)
        return tuple(bias.masked_fill(is_later, lowest) for bias in biases)

    def compute_cross(self, query_ids: Tensor, encoder_positions: Tensor, as_codes: bool, length: int) -> Tensor:
        """The bias `(1, H, Q, S)` of cross-attention, for steps below `length`."""
        stack = self.stack
        if as_codes:
            queries = self.codes(length)[3][:, :, query_ids]
            keys = self.memo.get(
                ("cross keys",), lambda: self.heads(stack.cross_pos_k_linear(encoder_positions)), encoder_positions
            )
            return queries @ keys.mT
        queries = self.embeddings(query_ids)
        return self.absolute(queries, encoder_positions, stack.cross_pos_q_linear, stack.cross_pos_k_linear)
