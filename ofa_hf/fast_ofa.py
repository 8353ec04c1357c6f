"""Fast CPU code, and the only place that chooses it. Each function matches plain torch up to rounding.

On a CPU, torch sends float32 products to MKL, which is slow on AMD processors. oneDNN, which is also part of torch, is
about twice as fast there and as fast as MKL on Intel. Its operators are not part of torch's public interface, so each
is tested once on small numbers, and torch's own operators are used if that fails.

`fast_ofa.ENABLED = False` switches all of it off; everything is then computed by plain torch.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


ENABLED = True
FAST_DTYPES = (torch.float32, torch.bfloat16)
MANY_ROWS = 16  # with as many, converting half-precision weights to float32 pays off where half precision is slow
REUSED_BYTES = 20 * 2**20  # size of one tensor; the C library reuses memory only up to about 32 MiB
ROWS_PER_SUM = 768  # rows summed at a time in a weight's gradient; with more, oneDNN is a sixth slower
MOST_REAL = 0.9  # share of real tokens above which removing the padding costs more than it saves


# ------------------------------------------------------------------------------------------- which path runs


def common_cpu_dtype(*tensors: Tensor | None) -> torch.dtype | None:
    """The common dtype of the tensors if fast code can take them: plain CPU tensors, no autocast or compilation."""
    if not ENABLED or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    present = [tensor for tensor in tensors if tensor is not None]
    if not all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in present):
        return None
    dtype = present[0].dtype
    return dtype if all(tensor.dtype == dtype for tensor in present) else None


@lru_cache
def is_slow(dtype: torch.dtype | None) -> bool:
    """Whether this CPU lacks instructions for a half-precision dtype, so that matrix products are much slower."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    try:
        return supported is not None and not getattr(torch.ops.mkldnn, supported)()
    except (AttributeError, RuntimeError):  # a torch without oneDNN, which has kernels of its own
        return False


def fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a CPU computes numbers of this dtype fastest."""
    return torch.float32 if is_slow(dtype) else dtype


@lru_cache
def onednn_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has the oneDNN operators and their results match torch's."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 5), (4, 5), (4,), (1, 3, 6, 6), (4, 3, 3, 3))
    x, weight, bias, image, kernel = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    image, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (image, kernel))
    try:
        with torch.inference_mode(False), torch.no_grad():
            product = functional.linear(x, weight, bias)
            features = functional.conv2d(image, kernel, bias, 2, 1)
            pairs = [
                (onednn_linear(x, weight, bias), product),
                (onednn_linear(x, torch.ops.mkldnn._reorder_linear_weight(weight, None), bias), product),
                (onednn_linear(x, weight, bias, "gelu"), functional.gelu(product)),
                (_onednn_convolution(image, kernel, bias, 2, 1, None), features.relu()),
                (_onednn_convolution(image, kernel, bias, 2, 1, features.relu()), (features + features.relu()).relu()),
            ]
            tolerance = 8 * torch.finfo(dtype).eps * max(float(expected.abs().max()) for _, expected in pairs)
            return all(torch.allclose(found, expected, atol=tolerance) for found, expected in pairs)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def is_observed(module: nn.Module) -> bool:
    """Whether a module has hooks or a replaced `forward`, so that it must really be called."""
    is_replaced = getattr(module.forward, "__func__", None) is not type(module).forward
    return bool(is_replaced or module._forward_hooks or module._forward_pre_hooks)


# --------------------------------------------------------------------------------------------------- products


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """`x @ weight.T + bias` without any check of the arguments; `then` may be "gelu"."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.T, None) if wants_x else None,
            _weight_gradient(rows, x.flatten(0, -2)) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """`gradient.T @ x`: `(N, D)`, `(N, C)` → `(D, C)`."""
    parts = zip(gradient.split(ROWS_PER_SUM), x.split(ROWS_PER_SUM), strict=True)
    total, *others = (onednn_linear(left.T, right.T, None) for left, right in parts)
    for other in others:
        total += other
    return total


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: `(..., C)`, `(D, C)`, `(D,)` → `(..., D)`."""
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    dtype = common_cpu_dtype(x, weight, bias) if x.ndim > 1 else None
    if dtype is not None and not needs_gradient and x.numel() >= MANY_ROWS * x.shape[-1] and is_slow(dtype):
        return _linear_in_float32(x, weight, bias)
    if dtype in ((torch.float32,) if needs_gradient else FAST_DTYPES) and onednn_works(dtype):
        return (_OneDNNLinear.apply if needs_gradient else onednn_linear)(x, weight, bias)
    if not is_int8_product(x, weight):
        return functional.linear(x, weight, bias)
    return _int8_linear(x, weight, bias) if int8_works() else _linear_in_float32(x, _dequantize(weight), bias)


def _linear_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


class OFALinear(nn.Linear):
    """`nn.Linear` on the fastest kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def some_outputs(module: nn.Linear, x: Tensor, places: Tensor) -> Tensor:
    """`module(x)[..., places]`, without computing the rest, unless the module has hooks or adapters."""
    if type(module) is not OFALinear or is_observed(module):
        return module(x)[..., places]
    return linear(x, module.weight[places], None if module.bias is None else module.bias[places])


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) gelu in float32, as in the original, for any dtype of the input."""
    return functional.gelu(x.float()).to(x.dtype)


def linear_gelu(module: nn.Linear, x: Tensor) -> Tensor:
    """`gelu(module(x))`, fused into one pass unless the module has hooks."""
    dtype = common_cpu_dtype(x, module.weight, module.bias)
    fuses = type(module) is OFALinear and not is_observed(module) and not torch.is_grad_enabled()
    if fuses and dtype in FAST_DTYPES and onednn_works(dtype):
        return onednn_linear(x, module.weight, module.bias, "gelu")
    return gelu(module(x))


def can_reorder(*weights: Tensor) -> bool:
    """Whether `reorder_weight` works for these matrices."""
    common = common_cpu_dtype(*weights)
    return common is not None and fast_dtype(common) in FAST_DTYPES and onednn_works(fast_dtype(common))


def reorder_weight(weight: Tensor) -> Tensor:
    """Copy a matrix into the dtype and memory layout that oneDNN reads fastest; only `onednn_linear` takes it.

    Products of few rows are limited by reading the weights from memory, which is half as fast in the plain layout.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(fast_dtype(weight.dtype)), None)


# ------------------------------------------------------------------------------------------------------- int8

# torchao stores int8 weights as plain integers with one scale per row, quantizes each input row on the fly, and
# multiplies integers. Its kernels target torch.compile and GPUs; eagerly on a CPU they are slower than float32. Here
# the weights are packed once in oneDNN's layout. torchao itself is not imported.
INT8_LOWEST, INT8_LARGEST = -128, 127
INT8_ZERO = 128  # zero point of the unsigned inputs that the CPU instructions require
_packed_int8 = WeakIdKeyDictionary()  # by weight; a copy on another device or in another dtype is packed again


def is_int8_product(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a CPU product with torchao's int8 weights, with one scale per row of weights and of inputs."""
    if not ENABLED or type(weight).__name__ != "Int8Tensor" or {weight.device.type, x.device.type} != {"cpu"}:
        return False
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    settings = weight.act_quant_kwargs
    if (
        settings is None
        or settings.mapping_type.name != "SYMMETRIC"
        or type(settings.granularity).__name__ != "PerRow"
    ):
        return False
    fixed = (weight.act_quant_scale, weight.act_quant_zero_point, weight.act_pre_scale)
    is_per_row = weight.block_size[-1] == weight.shape[-1] and weight.scale.numel() == len(weight)
    return is_per_row and all(value is None for value in fixed)


def _int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, rows of `x` rounded to 8 bits: `(..., C)`, `(D, C)`, `(D,)` → `(..., D)`."""
    packed, scale, zeros = _packed(weight)
    rows = x.reshape(-1, x.shape[-1]).float()
    row_scale = rows.abs().amax(-1, keepdim=True) / ((INT8_LARGEST - INT8_LOWEST) / 2)
    row_scale.clamp_(min=torch.finfo(torch.float32).eps)
    rounded = (rows * row_scale.reciprocal()).round_().clamp_(INT8_LOWEST, INT8_LARGEST)
    product = _multiply_int8(rounded.add_(INT8_ZERO).to(torch.uint8), packed, scale, zeros)
    product = product.mul_(row_scale) if bias is None else torch.addcmul(bias.float(), product, row_scale)
    return product.to(x.dtype).view(*x.shape[:-1], -1)


def _dequantize(weight: Tensor) -> Tensor:
    return weight.qdata.float().mul_(weight.scale.view(-1, 1))


def _packed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight in oneDNN's layout, its scales and its zero points (all 0)."""
    source, packed = _packed_int8.get(weight, (None, None))
    if source != (weight.qdata.data_ptr(), weight.qdata._version):
        source, packed = (weight.qdata.data_ptr(), weight.qdata._version), _pack_int8(weight.qdata, weight.scale)
        _packed_int8[weight] = source, packed
    return packed


def _pack_int8(integers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
    return packed, scale.flatten().float(), torch.zeros(len(integers), dtype=torch.int32, device="cpu")


def _multiply_int8(rounded: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    no_extras = (None, 1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise(rounded, 1.0, INT8_ZERO, packed, scale, zeros, *no_extras)


@lru_cache
def int8_works() -> bool:
    """Whether this CPU has instructions for 8-bit products and torch's operators compute them exactly.

    The test includes the largest numbers: without these instructions, sums of two products overflow.
    """
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        x, weight = (torch.arange(size, device="cpu").view(-1, 64) * 37 % 255 - INT8_LARGEST for size in (192, 320))
        x[0], weight[0] = INT8_LARGEST, INT8_LARGEST
        with torch.inference_mode(False), torch.no_grad():
            packed = _pack_int8(weight.to(torch.int8), torch.ones(5, device="cpu"))
            return torch.equal(_multiply_int8((x + INT8_ZERO).to(torch.uint8), *packed), (x @ weight.T).float())
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


# -------------------------------------------------------------------------------------------------- attention


def attention_function(implementation: str, query: Tensor, bias: Tensor, dropout: float) -> Callable:
    """The function that computes attention: that of transformers, or a faster one with the same signature.

    Args:
        implementation: name in `ALL_ATTENTION_FUNCTIONS`, such as "sdpa".
        query: `(B, H, Q, D)`.
        bias: `(1 or B, H, Q, K)`, added to the scores.
    """
    if implementation == "sdpa" and ENABLED and query.device.type == "cpu" and not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            if bias.requires_grad and not dropout:  # torch's fast kernels give no gradient for the bias
                return trained_bias_attention
        elif query.dtype == torch.bfloat16 and query.shape[2] <= 64:  # for few queries, two plain products are faster
            return product_attention
    return ALL_ATTENTION_FUNCTIONS[implementation]


def product_attention(module, query, key, value, attention_mask, scaling, **kwargs) -> tuple[Tensor, None]:
    """Attention as two products, with the softmax in float32."""
    scores = query @ key.mT * scaling + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), None


def trained_bias_attention(module, query, key, value, attention_mask, scaling, **kwargs) -> tuple[Tensor, None]:
    """Attention with gradients for the bias."""
    return _TrainedBiasAttention.apply(query, key, value, attention_mask, scaling).transpose(1, 2), None


class _TrainedBiasAttention(torch.autograd.Function):
    """Saves only the attention weights for the backward pass, unlike torch's chain of small operations."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
        shape = query.shape
        query, key, value = (query * scaling).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(query, key.mT).unflatten(0, shape[:2])
        scores = scores.add_(bias) if bias.dtype == scores.dtype else scores + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype).flatten(0, 1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scaling, ctx.bias_shape, ctx.bias_dtype = scaling, bias.shape, bias.dtype
        return torch.bmm(weights, value).view(shape)

    @staticmethod
    @custom_bwd(device_type="cpu")  # even if autocast is on during the backward pass
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key, value, weights = ctx.saved_tensors
        batch_and_heads, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        of_value = torch.bmm(weights.mT, gradient)
        of_weights = torch.bmm(gradient, value.mT)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query, of_key = torch.bmm(of_scores, key).mul_(ctx.scaling), torch.bmm(of_scores.mT, query)
        of_bias = None
        if ctx.needs_input_grad[3]:
            of_bias = of_scores.unflatten(0, batch_and_heads).sum_to_size(ctx.bias_shape).to(ctx.bias_dtype)
        return *(one.unflatten(0, batch_and_heads) for one in (of_query, of_key, of_value)), of_bias, None


# --------------------------------------------------------------------------------------- texts without padding


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.size = index, states.shape[0]
        return states.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient.new_zeros(ctx.size, gradient.shape[1]).index_copy_(0, ctx.index, gradient), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.index = index
        return states.new_zeros(size, states.shape[1]).index_copy_(0, index, states)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient.index_select(0, ctx.index), None, None


class RealTokens:
    """Positions of the real tokens of `(rows, T)` padded texts, so that layers can leave out the padding.

    Args:
        mask: `(rows, T)`, 0 = padding.
    """

    def __init__(self, mask: Tensor):
        self.shape = mask.shape
        self.index = mask.flatten().nonzero()[:, 0]

    def gather(self, states: Tensor) -> Tensor:
        """`(rows, T, C)` → `(N, C)`, the real tokens only."""
        return _Gather.apply(states.flatten(0, 1), self.index)

    def scatter(self, states: Tensor) -> Tensor:
        """`(N, C)` → `(rows, T, C)`, zeros in place of padding."""
        return _Scatter.apply(states, self.index, self.shape.numel()).unflatten(0, self.shape)


def find_real_tokens(mask: Tensor) -> RealTokens | None:
    """The real tokens of a `(rows, T)` mask; None if there is too little padding or nothing but padding."""
    tokens = RealTokens(mask) if ENABLED else None
    return tokens if tokens is not None and 0 < len(tokens.index) <= MOST_REAL * mask.numel() else None


# ------------------------------------------------------------------------------------------ batches in parts


def in_parts(function: Callable[..., Any], inputs: dict[str, Any], bytes_per_row: int) -> list[Any]:
    """Call `function(**inputs)` on slices of the batch small enough that a CPU reuses the same memory for each.

    New memory pages cost about a tenth of the time. The results equal those of the whole batch, bit for bit.

    Args:
        inputs: tensors are sliced along their first dimension; other values are passed unchanged.
        bytes_per_row: size of the largest intermediate tensor of one row.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    first = next(iter(tensors.values()))
    if not ENABLED or first.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return [function(**inputs)]
    count = -(-len(first) // max(1, REUSED_BYTES // bytes_per_row))
    parts = zip(*(value.tensor_split(count) for value in tensors.values()), strict=True)
    return [function(**inputs | dict(zip(tensors, part, strict=True))) for part in parts]


# ------------------------------------------------------------------------------- results kept between calls


class WeightMemo:
    """Caches results computed from the weights of some modules until those weights change.

    Results are cached only while gradients are off: with gradients they must be part of the graph. Weights can
    change without a new version (fused optimizers and writes to `.data` do not increase it), so on a CPU `check`
    compares checksums of their bits. On other devices, where that would synchronize, it compares versions.

    Args:
        max_bytes: limit for all results together; results beyond it are computed each time.
    """

    # compared by type, since a subclass may be an adapter
    plain_modules = (nn.Linear, OFALinear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.BatchNorm2d)

    def __init__(self, max_bytes: int = 512 * 2**20):
        self.max_bytes = max_bytes
        self.entries: OrderedDict[tuple, tuple[Any, int, Tensor | None]] = OrderedDict()  # result, bytes, source
        self.fingerprint: tuple | None = None  # None: nothing can be cached
        self.lock = threading.Lock()

    def check(self, modules: Iterable[nn.Module]) -> bool:
        """Drop everything if the weights have changed since the last check. Called once per pass.

        Returns:
            Whether results can be cached.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        fingerprint = self._fingerprint(list(modules))
        with self.lock:
            if fingerprint is None or fingerprint != self.fingerprint:
                self.entries.clear()
            self.fingerprint = fingerprint
        return fingerprint is not None

    def get(self, key: tuple, compute: Callable[[], Any], source: Tensor | None = None) -> Any:
        """`compute()`, or its cached result for this key, these weights and this `source` tensor (by identity)."""
        if self.fingerprint is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        device = self.fingerprint[0].type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (*key, dtype, None if source is None else _identity(source))
        if (entry := self.entries.get(key)) is not None:
            return entry[0]
        with torch.inference_mode(False), torch.no_grad():  # usable later outside inference mode too
            result = compute()
        self._keep(key, result, source)
        return result

    def _keep(self, key: tuple, result: Any, source: Tensor | None) -> None:
        leaves = torch.utils._pytree.tree_leaves(result)
        num_bytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if num_bytes > self.max_bytes:
            return
        with self.lock:
            self.entries[key] = result, num_bytes, source  # holding the source keeps its address from being reused
            while sum(entry[1] for entry in self.entries.values()) > self.max_bytes:
                self.entries.popitem(last=False)

    def _fingerprint(self, modules: list[nn.Module]) -> tuple | None:
        """A fingerprint of the weights; None if they cannot be read or do not determine the results."""
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        if any(type(module) not in self.plain_modules for module in modules):
            return None
        if any(type(tensor) not in (nn.Parameter, Tensor) or tensor.is_meta for tensor in tensors):
            return None
        device = tensors[0].device
        if device.type != "cpu":
            return device, tensors[0].dtype, tuple(map(_identity, tensors))
        return device, tensors[0].dtype, tuple(torch.stack([_sum_of_bits(one.detach()) for one in tensors]).tolist())

    def __deepcopy__(self, memo):
        return type(self)(self.max_bytes)

    def __reduce__(self):
        return type(self), (self.max_bytes,)


def _identity(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _sum_of_bits(tensor: Tensor) -> Tensor:
    bits = tensor.reshape(-1)
    start, length = bits.storage_offset() * bits.element_size(), bits.numel() * bits.element_size()
    is_whole_words = start % 8 == length % 8 == 0
    return bits.view(torch.int64 if is_whole_words else torch.uint8).sum().cpu()


# -------------------------------------------------------------------------------------------- the image trunk


def trunk_features(resnet: nn.Module, pixel_values: Tensor, memo: WeightMemo | None) -> Tensor:
    """`resnet(pixel_values)` in inference mode, with BatchNorm folded into the convolutions.

    Args:
        resnet: an `OFAResNet`.
        memo: caches the folded weights for the next call. None: on a CPU each is dropped after use, which saves
            105 MiB and costs little time over the many images of a training step.
    """
    if not ENABLED or resnet.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return resnet(pixel_values)
    if not _can_fold(resnet, pixel_values.device):
        return resnet(pixel_values)
    pairs = resnet.convolutions()
    if memo is not None or pixel_values.device.type != "cpu":
        memo = memo or WeightMemo()
        memo.check(module for pair in pairs for module in pair)
        folded = iter(memo.get(("folded",), lambda: tuple(starmap(fold_batch_norm, pairs))))
    else:
        folded = starmap(fold_batch_norm, pairs)
    weight, bias = next(folded)
    pixels = pixel_values.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    features = resnet.maxpool(convolution_relu(pixels, weight, bias, stride=2, padding=3))
    for block in resnet.blocks():
        features = _folded_block(block, features, folded)
    return features.to(pixel_values.dtype)


def _can_fold(resnet: nn.Module, device: torch.device) -> bool:
    """Whether no module of an `OFAResNet` has hooks, adapters or offloading, so that none must really be called."""
    if any(type(one) is not nn.Conv2d or type(two) is not nn.BatchNorm2d for one, two in resnet.convolutions()):
        return False
    if any(is_observed(module) for module in resnet.modules()):
        return False
    return all(tensor.device == device for tensor in (*resnet.parameters(), *resnet.buffers()))


def _folded_block(block: nn.Module, features: Tensor, folded: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """The output of an `OFABottleneck` in inference mode, with weights and biases from `folded`."""
    stride = block.conv2.stride[0]
    residual = features if block.downsample is None else functional.conv2d(features, *next(folded), stride)
    features = convolution_relu(features, *next(folded), stride=1, padding=0)
    features = convolution_relu(features, *next(folded), stride=stride, padding=1)
    return convolution_relu(features, *next(folded), stride=1, padding=0, residual=residual)


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (channels last) and bias of the single convolution that equals both modules in inference mode."""
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    weight = convolution.weight.float() * scale[:, None, None, None]
    bias = norm.bias.float() - norm.running_mean.float() * scale
    dtype = fast_dtype(convolution.weight.dtype) if weight.device.type == "cpu" else convolution.weight.dtype
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)


def convolution_relu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None = None
) -> Tensor:
    """`relu(convolution(x) + residual)` without gradients: `(B, C, H, W)` → `(B, D, H', W')`."""
    dtype = common_cpu_dtype(x, weight, bias, residual)
    if dtype in FAST_DTYPES and onednn_works(dtype):
        return _onednn_convolution(x, weight, bias, stride, padding, residual)
    features = functional.conv2d(x, weight, bias, stride, padding)
    return (features if residual is None else features.add_(residual)).relu_()


def _onednn_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None):
    geometry = ([padding, padding], [stride, stride], [1, 1], 1)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "relu", [], "")
    convolution = torch.ops.mkldnn._convolution_pointwise.binary
    return convolution(x, residual, weight, bias, *geometry, "add", 1.0, "relu", [], "")
