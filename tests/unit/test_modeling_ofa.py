"""The network behaves as transformers' own do: inputs, outputs, weights; what it remembers is never stale."""

import copy
import hashlib
import pickle

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ofa_hf import fast_decoding_ofa as decoding
from ofa_hf import fast_ofa as kernels
from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.modeling_ofa import OFAForConditionalGeneration, OFAModel
from ofa_hf.modeling_ofa_positions import (
    code_position_ids,
    image_grid_positions,
    image_position_buckets,
    token_position_buckets,
)


CELLS = 16  # of a 64-pixel image
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")


def same(left: torch.Tensor, right: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def is_tied(model) -> bool:
    return (
        model.encoder.embed_tokens.weight
        is model.decoder.embed_tokens.weight
        is model.decoder.output_projection.weight
    )


@pytest.fixture(scope="module")
def inputs(tiny_batch):
    return {key: value for key, value in tiny_batch.items() if key != "labels"}


@pytest.fixture(scope="module")
def texts(tiny_model, tiny_batch):
    return tiny_model.prepare_decoder_input_ids_from_labels(tiny_batch["labels"])


@pytest.fixture(scope="module")
def reference(tiny_model, inputs, texts):
    """What everything else is compared with: all inputs at once, no cache."""
    with torch.no_grad():
        return tiny_model(**inputs, decoder_input_ids=texts, use_cache=False)


# ---------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("table", "digest"),
    [
        ("text", "20c31e82a79b5e99e560102fc14acca443cae87bcddffeb9021430a3dd46e46c"),
        ("image", "f982ef63073e509c2bee49d3c0fcd15ab78c40b214d286478c0f58bad925b756"),
        ("codes", "496289934acfa8ef488054743cbccd28b21c64fede539cca0bfb8d18daec9d38"),
    ],
)
def test_position_tables_equal_the_official_buffers_bit_for_bit(table, digest):
    text, grid = torch.arange(1024), torch.arange(42 * 42 + 1)
    computed = {
        "text": lambda: token_position_buckets(256, 1024)[text[:, None] - text + 1023],
        "image": lambda: image_position_buckets(grid, grid, 42),
        "codes": lambda: code_position_ids(128, 42, 1026),
    }[table]()
    assert hashlib.sha256(computed.contiguous().numpy().tobytes()).hexdigest() == digest


def test_cells_are_numbered_row_by_row_in_the_grid_of_the_checkpoint():
    assert image_grid_positions(2, 3, 8).tolist() == [1, 2, 3, 9, 10, 11]


# ------------------------------------------------------------------------------------------------- inputs


def test_default_mask_hides_the_padding_of_the_prompt(tiny_model, inputs, texts, reference):
    with torch.no_grad():
        said = tiny_model(**inputs, attention_mask=(inputs["input_ids"] != 1).long(), decoder_input_ids=texts)
        open_to_all = tiny_model(**inputs, attention_mask=torch.ones(3, 6), decoder_input_ids=texts)
    same(said.logits, reference.logits)
    assert (open_to_all.logits - reference.logits)[1:].abs().max() > 1e-3


def test_sample_of_a_padded_batch_equals_the_sample_alone(tiny_model, inputs, texts, reference):
    for row, length in enumerate((6, 3, 5)):
        with torch.no_grad():
            alone = tiny_model(
                input_ids=inputs["input_ids"][row : row + 1, :length],
                pixel_values=inputs["pixel_values"][row : row + 1],
                decoder_input_ids=texts[row : row + 1],
            )
        same(alone.logits, reference.logits[row : row + 1])


def test_text_behind_a_token_does_not_change_it(tiny_model, inputs, texts, reference):
    changed = texts.clone()
    changed[:, 3:] = 7
    with torch.no_grad():
        logits = tiny_model(**inputs, decoder_input_ids=changed).logits
    same(logits[:, :3], reference.logits[:, :3])
    assert (logits - reference.logits)[:, 3:].abs().max() > 1e-3


def test_padding_on_the_left_of_a_text_is_not_seen(tiny_model, inputs, texts):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    other = texts.masked_fill(mask == 0, 33)
    with torch.no_grad():
        masked, changed = (
            tiny_model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits for ids in (texts, other)
        )
        seen = tiny_model(**inputs, decoder_input_ids=other).logits
    same(masked[mask == 1], changed[mask == 1])
    assert (seen - changed)[::2, 2:].abs().amax((1, 2)).min() > 1e-3


def test_sample_without_image_equals_text_alone(tiny_model, inputs, texts, reference):
    with torch.no_grad():
        logits = tiny_model(**inputs, decoder_input_ids=texts, patch_masks=torch.tensor([True, False, True])).logits
        text_alone = tiny_model(inputs["input_ids"][1:2], decoder_input_ids=texts[1:2]).logits
    same(logits[1:2], text_alone)
    same(logits[::2], reference.logits[::2])
    assert (logits - reference.logits)[1].abs().max() > 1e-3


def test_old_name_of_the_images_still_works(tiny_model, inputs, texts, reference):
    with torch.no_grad():
        output = tiny_model(inputs["input_ids"], patch_images=inputs["pixel_values"], decoder_input_ids=texts)
        encoded = tiny_model.encoder(inputs["input_ids"], patch_images=inputs["pixel_values"])
    same(output.logits, reference.logits)
    same(encoded.last_hidden_state, reference.encoder_last_hidden_state)


def test_embeddings_equal_the_ids_they_stand_for(tiny_model, inputs, texts, reference):
    embed, ids = tiny_model.get_input_embeddings(), inputs["input_ids"]
    with torch.no_grad():
        output = tiny_model(
            pixel_values=inputs["pixel_values"],
            inputs_embeds=embed(ids),
            attention_mask=ids != 1,
            decoder_inputs_embeds=embed(texts),
        )
    same(output.logits, reference.logits)


@pytest.mark.parametrize("form", ["output", "dict", "tuple"])
def test_encoder_outputs_may_be_given(tiny_model, inputs, texts, reference, form):
    with torch.no_grad():
        encoded = tiny_model.get_encoder()(**inputs, return_dict=form != "tuple")
        encoded = dict(encoded) if form == "dict" else encoded
        output = tiny_model(encoder_outputs=encoded, decoder_input_ids=texts)
    same(output.logits, reference.logits)


def test_labels_are_shifted_behind_the_start_token(tiny_model, tiny_batch, texts, reference):
    assert texts[:, 0].tolist() == [0, 0, 0]
    assert texts[1].tolist() == [0, *tiny_batch["labels"][1, :3].tolist(), 1]
    with torch.no_grad():
        output = tiny_model(**tiny_batch)
    same(output.logits, reference.logits)


@pytest.mark.parametrize("code_masks", [None, torch.tensor([True, True, True]), torch.tensor([False, True, False])])
def test_past_key_values_in_pieces_give_the_logits_of_all_at_once(tiny_model, inputs, texts, code_masks):
    with torch.no_grad():
        whole = tiny_model(**inputs, decoder_input_ids=texts, code_masks=code_masks, use_cache=False)
        assert whole.past_key_values is None
        cache, pieces = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
        for piece in texts.split([2, 1, 2], dim=1):
            output = tiny_model(**inputs, decoder_input_ids=piece, code_masks=code_masks, past_key_values=cache)
            pieces.append(output.logits)
            assert output.past_key_values is cache
    assert cache.get_seq_length() == 5
    same(torch.cat(pieces, dim=1), whole.logits)


def test_code_masks_are_a_flag_a_sample(tiny_model, inputs, texts, reference):
    with torch.no_grad():
        codes = tiny_model(**inputs, decoder_input_ids=texts, code_masks=torch.ones(3, dtype=torch.bool)).logits
        mixed = tiny_model(**inputs, decoder_input_ids=texts, code_masks=torch.tensor([False, True, False])).logits
    same(mixed[1], codes[1])
    same(mixed[::2], reference.logits[::2])
    assert (codes - reference.logits).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("left_padded", [False, True])
def test_several_texts_of_an_image_equal_images_repeated(tiny_model, inputs, implementation, left_padded):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation(implementation)
    texts = torch.randint(4, 120, (6, 4))
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]] * 3) if left_padded else None
    codes = torch.tensor([True, False, False, False, True, True])
    rest = {"decoder_input_ids": texts, "decoder_attention_mask": mask, "code_masks": codes}
    with torch.no_grad():
        folded = model(**inputs, **rest, output_attentions=implementation == "eager")
        repeated = model(**{key: value.repeat_interleave(2, dim=0) for key, value in inputs.items()}, **rest)
    same(folded.logits, repeated.logits)


@pytest.mark.parametrize(("height", "width"), [(50, 70), (16, 128), (1, 33)])
def test_images_need_not_be_square_nor_multiples_of_16(tiny_model, inputs, height, width):
    with torch.no_grad():
        states = tiny_model.encoder(inputs["input_ids"], pixel_values=torch.randn(3, 3, height, width))
    assert states.last_hidden_state.shape == (3, -(-height // 16) * -(-width // 16) + 6, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 129, 64)}, "9×4 cells.*8×8.*at most 128 pixels"),
        ({"pixel_values": torch.zeros(3, 3, 64, 144)}, "4×9 cells.*at most 128 pixels"),
        ({"input_ids": torch.full((3, 65), 7)}, "prompt's text has 65 tokens.*at most 64"),
        ({"decoder_input_ids": torch.full((3, 65), 7)}, "decoder's text has 65 tokens.*at most 64"),
        ({"decoder_input_ids": torch.full((4, 5), 7)}, "4 decoder rows.*3 encoder rows"),
        ({"pixel_values": torch.zeros(2, 3, 64, 64)}, r"\(2, 3, 64, 64\) for 3 prompts.*\(3, 3, height, width\)"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\) for 3 prompts"),
        ({"patch_masks": torch.tensor([True])}, r"\(1,\) for 3 prompts"),
        ({"inputs_embeds": torch.zeros(3, 6, 32)}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
        ({"decoder_inputs_embeds": torch.zeros(3, 5, 32)}, "exactly one of decoder_input_ids"),
        ({"decoder_input_ids": None}, "exactly one of decoder_input_ids"),
        ({"encoder_outputs": (torch.zeros(3, 22, 32),)}, "no position_embeddings.*get_encoder"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_would(tiny_model, inputs, texts, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**{**inputs, "decoder_input_ids": texts, **changes})


# ------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("extra", [{}, {"output_hidden_states": True, "output_attentions": True, "use_cache": False}])
def test_tuple_and_dict_outputs_hold_the_same(tiny_model, tiny_batch, extra):
    with torch.no_grad():
        as_dict = tiny_model(**tiny_batch, **extra)
        as_tuple = tiny_model(**tiny_batch, **extra, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(as_dict.to_tuple()) == (8 if extra else 3)
    flat = torch.utils._pytree.tree_leaves
    for left, right in zip(flat(as_tuple), flat(as_dict.to_tuple()), strict=True):
        same(left, right)


def test_hidden_states_and_attentions_come_on_request_with_their_shapes(tiny_model, inputs, reference):
    texts = torch.randint(4, 120, (6, 5))  # two an image
    with torch.no_grad():
        output = tiny_model(**inputs, decoder_input_ids=texts, output_hidden_states=True, output_attentions=True)
    size = CELLS + 6
    assert [state.shape for state in output.encoder_hidden_states] == [(3, size, 32)] * 3
    assert [state.shape for state in output.decoder_hidden_states] == [(6, 5, 32)] * 4
    assert [weights.shape for weights in output.encoder_attentions] == [(3, 4, size, size)] * 2
    assert [weights.shape for weights in output.decoder_attentions] == [(6, 2, 5, 5)] * 3
    assert [weights.shape for weights in output.cross_attentions] == [(6, 2, 5, size)] * 3
    same(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    same(output.decoder_hidden_states[-1] @ tiny_model.get_output_embeddings().weight.T, output.logits)
    for weights in (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions):
        same(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert output.cross_attentions[0][2:4, :, :, CELLS + 3 :].abs().max() == 0  # the second prompt's padding
    assert output.decoder_attentions[0].triu(1).abs().max() == 0  # the future
    assert reference.encoder_hidden_states is reference.decoder_attentions is reference.cross_attentions is None


def test_config_may_ask_for_hidden_states(tiny_model, inputs, texts):
    model = copy.deepcopy(tiny_model)
    model.config.output_hidden_states = True
    with torch.no_grad():
        output = model(**inputs, decoder_input_ids=texts)
    assert len(output.encoder_hidden_states) == 3
    assert len(output.decoder_hidden_states) == 4


@pytest.mark.parametrize("patch_masks", [None, torch.tensor([True, False, True])])
def test_eager_and_sdpa_attention_agree(tiny_model, inputs, texts, patch_masks):
    logits = {}
    for implementation in ("eager", "sdpa"):
        model = copy.deepcopy(tiny_model)
        model.set_attn_implementation(implementation)
        assert model.encoder.layers[0].self_attn.config._attn_implementation == implementation
        with torch.no_grad():
            logits[implementation] = model(**inputs, decoder_input_ids=texts, patch_masks=patch_masks).logits
    same(logits["eager"], logits["sdpa"])


def test_model_compiles_into_one_graph(tiny_config, inputs, texts):
    config = copy.deepcopy(tiny_config)
    config.encoder_layers = config.decoder_layers = 1  # more would only take time
    model = OFAForConditionalGeneration(config).eval()
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=texts, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        same(compiled(**inputs, decoder_input_ids=texts, use_cache=False).logits, expected)


# ------------------------------------------------------------------------------------------------ weights


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model.save_pretrained(folder)
    return folder


def load(folder, **kwargs):
    """Model, in inference mode, and what loading reported."""
    return OFAForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)


def nothing_amiss(report: dict) -> bool:
    return not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}])
def test_what_is_saved_is_loaded_bit_for_bit(tiny_model, saved, inputs, texts, reference, device_map):
    model, report = load(saved, device_map=device_map)
    assert nothing_amiss(report)
    assert is_tied(model)
    assert not model.training
    ours, theirs = tiny_model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        same(model(**inputs, decoder_input_ids=texts).logits, reference.logits)


def test_constants_are_not_saved_and_are_right_directly_after_loading(tiny_model, saved):
    assert not any("bucket" in name for name in tiny_model.state_dict())
    model, _ = load(saved)
    for stack in (model.encoder, model.decoder):
        assert torch.equal(stack.text_buckets, token_position_buckets(16, 64))
        stack.text_buckets.fill_(-1)
        stack._init_weights(stack)
        assert torch.equal(stack.text_buckets, token_position_buckets(16, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_loads_and_runs_in_half_precision(saved, inputs, texts, reference, dtype):
    model, _ = load(saved, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=texts).logits
    assert logits.dtype == dtype
    error = (logits.float() - reference.logits).norm() / reference.logits.norm()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_old_state_dict_with_duplicates_and_constants_loads_with_nothing_amiss(tiny_model, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    for name in TIED:
        state[name] = state[TIED[0]].clone()
    for side in ("encoder", "decoder"):
        state[f"{side}.version"] = torch.tensor([3.0])
        state[f"{side}.token_rp_bucket"] = torch.zeros(64, 64, dtype=torch.long)
        state[f"{side}.image_rp_bucket"] = torch.zeros(65, 65, dtype=torch.long)
    state["decoder.image_position_idx"] = torch.zeros(66, dtype=torch.long)
    tiny_model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, report = load(tmp_path)
    assert nothing_amiss(report)
    assert is_tied(model)
    ours, theirs = tiny_model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class EightBit(torch.nn.Module):
    """A linear layer as quantizers leave it: whole numbers in `weight`."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.scale, self.bias = linear.weight.detach().abs().max() / 127, linear.bias
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)

    def forward(self, states):
        assert states.is_floating_point()
        return torch.nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def test_linear_layers_may_be_quantized(tiny_model, inputs, texts, reference):
    model = copy.deepcopy(tiny_model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and child.bias is not None:
                setattr(module, name, EightBit(child))
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=texts).logits
    assert 0 < (logits - reference.logits).norm() / reference.logits.norm() < 0.1
    assert model.generate(**inputs, max_new_tokens=3).shape == (3, 4)


def test_auto_model_class_generates_and_shares_the_weights_format(tiny_model, saved, inputs, texts, reference):
    model = OFAModel.from_pretrained(saved)
    with torch.no_grad():
        same(model(**inputs, decoder_input_ids=texts).logits, reference.logits)
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 3


def test_tied_weights_stay_tied_when_moved_copied_or_trained(tiny_model):
    model = copy.deepcopy(tiny_model)
    assert is_tied(model)
    assert is_tied(model.to(torch.bfloat16).to(torch.float32).to("cpu"))
    assert len({id(parameter) for parameter in model.parameters()}) == len(list(model.parameters()))
    model.load_state_dict(tiny_model.state_dict())
    assert is_tied(model)


@pytest.mark.parametrize("size", [130, 110])
def test_vocabulary_grows_and_shrinks_and_stays_tied(tiny_model, inputs, reference, texts, tmp_path, size):
    model = copy.deepcopy(tiny_model)
    model.resize_token_embeddings(size, mean_resizing=False)
    kept = min(size, 120)
    assert is_tied(model)
    assert model.config.vocab_size == model.get_output_embeddings().out_features == size
    assert torch.equal(model.get_input_embeddings().weight[:kept], tiny_model.get_input_embeddings().weight[:kept])
    texts = texts.clamp(max=kept - 1)
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=texts).logits
        before = tiny_model(**inputs, decoder_input_ids=texts).logits
    assert logits.shape == (3, 5, size)
    same(logits[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    loaded, report = load(tmp_path)
    assert nothing_amiss(report)
    assert is_tied(loaded)
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_fresh_weights_are_sensible(tiny_config, tiny_batch):
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(tiny_config)
    parameters = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    for name in ("encoder.layers.1.fc1.weight", "decoder.embed_positions.weight", "encoder.embed_tokens.weight"):
        assert parameters[name].std().item() == pytest.approx(0.02, rel=0.1), name
    convolution = parameters["encoder.embed_images.layer2.0.conv2.weight"]
    assert convolution.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.1)
    assert parameters["encoder.embed_tokens.weight"][1].abs().max() == 0  # padding
    ones = ("c_attn", "norm.weight", "ln.weight", "bn1.weight", "layernorm_embedding.weight")
    assert all(bool((tensor == 1).all()) for name, tensor in parameters.items() if name.endswith(ones))
    assert all(bool((tensor == 0).all()) for name, tensor in parameters.items() if name.endswith(".bias"))
    loss = model(**tiny_batch).loss  # in training mode
    assert loss.item() == pytest.approx(torch.tensor(120.0).log().item(), rel=0.1)


# --------------------------------------------------------------------------------- remembered position scores


def fused_step(model) -> None:
    """One step of a fused optimizer, which leaves the version counters of the parameters as they are."""
    parameters = [*model.encoder.pos_q_linear.parameters(), *model.decoder.cross_pos_k_linear.parameters()]
    parameters += [model.decoder.token_rel_pos_table_list[1].weight]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.3, fused=True).step()


def in_place(model) -> None:
    with torch.no_grad():
        model.encoder.image_rel_pos_table_list[0].weight.add_(0.5)
        model.decoder.self_pos_q_linear.weight.mul_(1.5)


def through_data(model) -> None:
    model.encoder.pos_ln.weight.data.mul_(1.5)
    model.decoder.embed_positions.weight.data[3:] += 0.7


def other_weights(model) -> None:
    state = {name: tensor + 0.3 if "pos" in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def replaced_parameter(model) -> None:
    model.encoder.pos_k_linear.weight = torch.nn.Parameter(torch.randn(32, 32))
    model.decoder.pos_ln.bias.data = torch.randn(32)


def rounded(model) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def other_precision(model) -> None:
    model.to(torch.float64)


def parts_of_one_buffer(model) -> None:
    """As distributed training keeps them: views at any offset of one buffer, which is what gets updated."""
    weight, table = model.encoder.pos_q_linear.weight, model.decoder.token_rel_pos_table_list[0].weight
    buffer = torch.cat([torch.zeros(1), weight.detach().flatten(), table.detach().flatten()])
    weight.data = buffer[1 : 1 + weight.numel()].view_as(weight)
    table.data = buffer[1 + weight.numel() :].view_as(table)
    with torch.no_grad():
        model(torch.tensor([[0, 5, 2]]), decoder_input_ids=torch.tensor([[0]]))
    buffer.mul_(1.5)


class Switchable(torch.nn.Module):
    """An adapter that can be turned off, so outputs change while no weight does."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.on = base, True

    def forward(self, states):
        return self.base(states) * (3 if self.on else 1)


@pytest.mark.parametrize(
    "change",
    [
        fused_step,
        in_place,
        through_data,
        other_weights,
        replaced_parameter,
        parts_of_one_buffer,
        rounded,
        other_precision,
    ],
    ids=lambda change: change.__name__,
)
def test_remembered_scores_follow_every_change_of_weights(tiny_model, inputs, texts, change):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        before = model(**inputs, decoder_input_ids=texts).logits
        assert model.encoder.position_biases.memo.entries
        assert model.decoder.position_biases.memo.entries
    change(model)
    with torch.no_grad():
        after = model(**inputs, decoder_input_ids=texts).logits
        fresh = copy.deepcopy(model)
        assert not fresh.encoder.position_biases.memo.entries
        same(after, fresh(**inputs, decoder_input_ids=texts).logits)
    if change is not other_precision:
        assert (after - before).abs().max() > 1e-4


def test_scores_behind_an_adapter_are_not_remembered(tiny_model, inputs, texts, reference):
    model = copy.deepcopy(tiny_model)
    model.encoder.pos_q_linear = Switchable(model.encoder.pos_q_linear)
    model.decoder.cross_pos_q_linear = Switchable(model.decoder.cross_pos_q_linear)
    with torch.no_grad():
        with_adapter = model(**inputs, decoder_input_ids=texts).logits
        assert (with_adapter - reference.logits).abs().max() > 1e-3
        model.encoder.pos_q_linear.on = model.decoder.cross_pos_q_linear.on = False
        same(model(**inputs, decoder_input_ids=texts).logits, reference.logits)


def test_scores_remembered_in_inference_mode_serve_training_afterwards(tiny_model, tiny_batch, reference):
    model = copy.deepcopy(tiny_model)
    with torch.inference_mode():
        model(**tiny_batch)
    with torch.no_grad():
        encoded = model.encoder(tiny_batch["input_ids"], pixel_values=tiny_batch["pixel_values"])
    model(encoder_outputs=encoded, labels=tiny_batch["labels"]).loss.backward()
    assert model.decoder.cross_pos_k_linear.weight.grad.abs().max() > 0
    model.zero_grad()
    output = model(**tiny_batch)
    output.loss.backward()
    same(output.logits, reference.logits)
    assert model.encoder.pos_q_linear.weight.grad.abs().max() > 0


def test_copies_and_pickles_remember_nothing(tiny_model, inputs, texts, reference):
    assert tiny_model.encoder.position_biases.memo.entries
    for other in (copy.deepcopy(tiny_model), pickle.loads(pickle.dumps(tiny_model))):
        assert not other.encoder.position_biases.memo.entries
        with torch.no_grad():
            same(other(**inputs, decoder_input_ids=texts).logits, reference.logits)


def test_scores_are_computed_once_a_shape(tiny_model, inputs, texts, monkeypatch):
    model, computed = copy.deepcopy(tiny_model), []
    biases, compute = model.encoder.position_biases, model.encoder.position_biases.compute
    monkeypatch.setattr(biases, "compute", lambda *shape: computed.append(shape) or compute(*shape))
    with torch.no_grad():
        for _ in range(3):
            model(**inputs, decoder_input_ids=texts)
        model.encoder(inputs["input_ids"])
    assert computed == [((4, 4), 6), (None, 6)]


def test_memory_keeps_within_its_bound_and_forgets_the_oldest(tiny_model, inputs, monkeypatch):
    model, sizes = copy.deepcopy(tiny_model), (32, 48, 64, 80)
    model.encoder.position_biases.memo.max_bytes = 25_000
    with torch.no_grad():
        for side in sizes:
            pixels = torch.randn(3, 3, side, side)
            encoded = model.encoder(inputs["input_ids"], pixel_values=pixels)
            same(
                encoded.last_hidden_state,
                copy.deepcopy(model).encoder(inputs["input_ids"], pixel_values=pixels).last_hidden_state,
            )
            kept = model.encoder.position_biases.memo.entries.values()
            held = sum(tensor.nbytes for (value, *_) in kept for tensor in torch.utils._pytree.tree_leaves(value))
            assert held <= 25_000
    assert 0 < len(model.encoder.position_biases.memo.entries) < len(sizes)


@pytest.mark.parametrize("number", [1, 3])
def test_packed_copies_follow_every_change_of_a_weight(tiny_model, inputs, number):
    model, settings = copy.deepcopy(tiny_model), {"max_new_tokens": 6, "output_logits": True}
    settings |= {"return_dict_in_generate": True, "do_sample": False, "num_beams": 1}
    inputs, decoder = {name: value[:number] for name, value in inputs.items()}, model.decoder
    if not kernels.onednn_works():
        pytest.skip("torch has no oneDNN operators here")
    before = model.generate(**inputs, **settings)
    copies = model._decoding_weights
    assert [bool(memo.entries) for memo in (copies.of_vocabulary, copies.of_layers)] == [True, number < 3]
    decoder.layers[0].fc2.weight.data[0, 0] += 5  # leaves no trace in version counters
    decoder.output_projection.weight.data[7, 0] += 5
    after = model.generate(**inputs, **settings)
    fresh = copy.deepcopy(model).generate(**inputs, **settings)
    assert not torch.equal(before.logits[0], after.logits[0])
    assert all(torch.equal(one, other) for one, other in zip(after.logits, fresh.logits, strict=True))


def test_copies_that_would_be_too_large_are_not_made(tiny_model, inputs, monkeypatch):
    model = copy.deepcopy(tiny_model)
    monkeypatch.setattr(decoding, "LARGEST_COPY", 1000)
    with torch.no_grad():
        assert model._decoding_weights.make_cache(model, 1) is None
    expected = tiny_model.generate(**inputs, max_new_tokens=5, num_beams=3)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, num_beams=3), expected)


def test_scores_of_one_source_are_never_given_for_another():
    memory, embedding = kernels.WeightMemo(), torch.nn.Embedding(2, 4)
    with torch.no_grad():
        memory.check([embedding])
        for number in range(20):  # each source would come to lie where the one before it lay
            source = torch.full((64, 64), float(number))
            (found,) = memory.get(("cross",), lambda source=source: (source[0, 0] * 2,), source)
            assert found.item() == 2 * number
            del source


def test_default_configuration_is_the_base_size():
    with torch.device("meta"):
        model = OFAForConditionalGeneration(OFAConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 159_865_160
