"""Training: the loss in pieces, several captions per image, locking, recomputing, stochastic depth."""

import copy

import pytest
import torch
from torch import nn

from ofa_hf import modeling_ofa_kernels
from ofa_hf.modeling_ofa import FusedCrossEntropy, OFAForConditionalGeneration, token_losses


def smoothed_cross_entropy(features, weight, labels, smoothing):
    """The official formula, token by token, in float64."""
    log_probabilities = (features.double() @ weight.double().T).log_softmax(-1)
    spread = smoothing / (weight.shape[0] - 1)
    own = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    return (1 - smoothing - spread) * own - spread * log_probabilities.sum(-1)


def gradients(model) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(left, right, tolerance: float = 1e-4) -> None:
    """Equal up to a share of each tensor's norm; what cancels to nothing (k-projection biases) only stays small."""
    for name, gradient in left.items():
        assert (gradient is None) == (right[name] is None), name
        if gradient is not None:
            assert (gradient - right[name]).norm() <= tolerance * gradient.norm() + 1e-5, name


def trained(model, **batch) -> tuple[float, dict]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), gradients(model)


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


@pytest.fixture
def steady(tiny_config, tiny_model):
    """In training mode, without dropout."""
    config = copy.deepcopy(tiny_config)
    config.dropout = 0.0
    model = OFAForConditionalGeneration(config)
    model.load_state_dict(tiny_model.state_dict())
    return model.train()


# --------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tokens_per_chunk", [1, 4, 7, 512])
def test_fused_loss_equals_plain_cross_entropy_in_value_and_gradients(monkeypatch, dtype, smoothing, tokens_per_chunk):
    monkeypatch.setattr(FusedCrossEntropy, "tokens_per_chunk", tokens_per_chunk)
    features, weight = torch.randn(11, 8).to(dtype), torch.randn(23, 8).to(dtype)
    labels = torch.randint(0, 23, (11,))
    ours = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = FusedCrossEntropy.apply(*ours, labels, smoothing)
    losses = smoothed_cross_entropy(*theirs, labels, smoothing)
    (3 * loss).backward()
    (3 * losses.sum()).backward()
    exact = dtype == torch.float32
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-6 if exact else 1e-2)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad - other.grad).norm() < (1e-5 if exact else 2e-2) * other.grad.norm()
    assert (token_losses(features, weight, labels, smoothing) - losses).abs().max() < (1e-5 if exact else 0.1)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_fused_loss_computes_only_the_gradients_that_are_needed(needed):
    features, weight, labels = torch.randn(5, 4), torch.randn(9, 4), torch.randint(0, 9, (5,))
    tensors = [tensor.requires_grad_(need) for tensor, need in zip((features, weight), needed, strict=True)]
    FusedCrossEntropy.apply(*tensors, labels, 0.1).backward()
    assert tuple(tensor.grad is not None for tensor in tensors) == needed


def test_evaluating_the_loss_computes_no_gradients(model, tiny_batch, monkeypatch):
    expected = model(**tiny_batch).loss.item()
    monkeypatch.setattr(FusedCrossEntropy, "apply", lambda *_: pytest.fail("the training kernel ran"))
    with torch.no_grad():
        assert model(**tiny_batch).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_real_tokens(model, tiny_batch, smoothing):
    labels = tiny_batch["labels"]
    output = model(**tiny_batch, label_smoothing=smoothing, output_hidden_states=True)
    features = output.decoder_hidden_states[-1][labels != -100]
    weight = model.get_output_embeddings().weight
    expected = smoothed_cross_entropy(features, weight, labels[labels != -100], smoothing).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_smoothing_comes_from_the_config_unless_given(model, tiny_batch):
    plain, smoothed = (model(**tiny_batch, label_smoothing=one).loss.item() for one in (0.0, 0.2))
    model.config.label_smoothing = 0.2
    assert model(**tiny_batch).loss.item() == smoothed != plain
    assert model(**tiny_batch, label_smoothing=0.0).loss.item() == plain


def test_loss_without_logits_is_the_same_with_the_same_gradients(model, tiny_batch):
    with_logits = trained(model, **tiny_batch, label_smoothing=0.1)
    assert model(**tiny_batch, return_logits=False).logits is None
    without = trained(model, **tiny_batch, label_smoothing=0.1, return_logits=False)
    assert without[0] == pytest.approx(with_logits[0], rel=1e-6)
    assert_same_gradients(with_logits[1], without[1], 1e-6)


@pytest.mark.parametrize("number", [40, torch.tensor(40)])
def test_loss_is_divided_by_the_number_of_items_the_trainer_gives(model, tiny_batch, number):
    real = (tiny_batch["labels"] != -100).sum().item()
    mean, shared = model(**tiny_batch).loss, model(**tiny_batch, num_items_in_batch=number).loss
    assert shared.item() == pytest.approx(mean.item() * real / 40, rel=1e-6)


def test_worst_tokens_are_left_out_on_request(model, tiny_batch):
    labels = tiny_batch["labels"]
    output = model(**tiny_batch, drop_worst_ratio=0.3, output_hidden_states=True)
    features = output.decoder_hidden_states[-1][labels != -100]
    losses = smoothed_cross_entropy(features, model.get_output_embeddings().weight, labels[labels != -100], 0.0)
    kept = losses.sort().values[: int(len(losses) * 0.7)]
    assert output.loss.item() == pytest.approx(kept.mean().item(), rel=1e-5)


def test_several_captions_of_an_image_train_like_as_many_passes(model, tiny_batch):
    first, second = tiny_batch["labels"], torch.randint(4, 120, (3, 5))
    inputs = {key: value for key, value in tiny_batch.items() if key != "labels"}
    total = int((first != -100).sum() + second.numel())
    loss, together = trained(model, **inputs, labels=torch.stack([first, second], 1).flatten(0, 1))
    model.zero_grad()
    losses = [model(**inputs, labels=labels, num_items_in_batch=total).loss for labels in (first, second)]
    sum(losses).backward()
    assert loss == pytest.approx(sum(losses).item(), rel=1e-6)
    assert_same_gradients(together, gradients(model))


def test_every_parameter_of_captioning_gets_a_gradient(steady, tiny_batch):
    _, found = trained(steady, **tiny_batch)
    unused = {
        "decoder.embed_image_positions.weight",
        "decoder.image_pos_ln.weight",
        "decoder.image_pos_ln.bias",
        "decoder.code_layernorm_embedding.weight",
        "decoder.code_layernorm_embedding.bias",
        *(f"decoder.image_rel_pos_table_list.{layer}.weight" for layer in range(3)),
    }
    assert {name for name, gradient in found.items() if gradient is None} == unused
    assert all(found[name].abs().max() > 0 for name in found.keys() - unused)
    _, found = trained(steady, **tiny_batch, code_masks=torch.tensor([True, False, True]))
    assert all(found[name].abs().max() > 0 for name in unused)


# ------------------------------------------------------------------------------------------------- locking


def dropout_is_off(stack: nn.Module) -> bool:
    return not any(module.training for module in stack.modules())


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_locked_encoder_gets_no_gradient_and_nothing_in_it_moves(model, tiny_batch, train_embeddings):
    model.lock_encoder(train_embeddings=train_embeddings)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    assert dropout_is_off(model.encoder)
    assert model.decoder.training
    assert model.decoder.dropout.training
    _, found = trained(model, **tiny_batch)
    optimizer.step()
    assert [name for name, grad in found.items() if name.startswith("encoder.") and grad is not None] == (
        ["encoder.embed_tokens.weight"] if train_embeddings else []
    )
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == ({"embed_tokens.weight"} if train_embeddings else set())
    assert found["decoder.layers.0.cross_attn.k_proj.weight"].abs().max() > 0


def test_locked_encoder_gives_the_states_of_inference_while_training(model, tiny_batch):
    inputs = {key: value for key, value in tiny_batch.items() if key != "labels"}
    with torch.no_grad():
        expected = model.encoder(**inputs).last_hidden_state
    model.lock_encoder()
    for mode in (True, False, True):
        model.train(mode)
        torch.testing.assert_close(model(**tiny_batch).encoder_last_hidden_state, expected, rtol=0, atol=2e-5)


def test_embedding_of_a_locked_encoder_is_trained_by_the_decoder_alone(model, tiny_batch):
    only_in_prompts = 14
    assert (tiny_batch["input_ids"] == only_in_prompts).any()
    model.lock_encoder(train_embeddings=True)
    inputs = {key: value for key, value in tiny_batch.items() if key != "labels"}
    with torch.no_grad():
        encoded = model.encoder(**inputs)
    _, ours = trained(model, **tiny_batch)
    _, alone = trained(model, encoder_outputs=encoded, labels=tiny_batch["labels"])
    assert_same_gradients(ours, alone, 1e-6)


def test_embedding_may_also_be_trained_through_the_locked_encoder(model, tiny_batch):
    _, unlocked = trained(model, **tiny_batch)
    model.lock_encoder(train_embeddings=True, through_encoder=True)
    _, found = trained(model, **tiny_batch)
    decoder_and_embedding = {name for name in found if not name.startswith("encoder.")} | {
        "encoder.embed_tokens.weight"
    }
    assert all(found[name] is None for name in found.keys() - decoder_and_embedding)
    names = decoder_and_embedding - {name for name, gradient in unlocked.items() if gradient is None}
    assert_same_gradients({name: unlocked[name] for name in names}, found, 1e-5)


def test_cells_in_the_place_of_images_give_the_same_states_and_train_the_same(model, tiny_batch):
    model.lock_encoder(train_embeddings=True, through_encoder=True)
    with torch.no_grad():
        cells = model.encoder.embed_image_cells(tiny_batch["pixel_values"])
    assert cells.shape == (3, 4, 4, 32)
    loss, from_images = trained(model, **tiny_batch)
    others = {name: value for name, value in tiny_batch.items() if name != "pixel_values"}
    again, from_cells = trained(model, **others, image_embeds=cells)
    assert again == loss
    assert_same_gradients(from_images, from_cells, 0.0)
    with pytest.raises(ValueError, match="beside 3 prompts"):
        model(**others, image_embeds=cells[:2])


def test_unlocked_encoder_trains_again(model, tiny_batch):
    model.train()
    model.lock_encoder()
    model.unlock_encoder()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.encoder.training
    statistics = model.encoder.embed_images.bn1.running_mean.clone()
    _, found = trained(model, **tiny_batch)
    assert found["encoder.embed_images.conv1.weight"].abs().max() > 0
    assert not torch.equal(model.encoder.embed_images.bn1.running_mean, statistics)


# --------------------------------------------------------------------------------------------- recomputing


def calls_of(modules: list[nn.Module], compute) -> list[int]:
    """How often each module runs during `compute`."""
    counts = [0] * len(modules)

    def count(index):
        def hook(*_):
            counts[index] += 1

        return hook

    hooks = [module.register_forward_hook(count(index)) for index, module in enumerate(modules)]
    compute()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("is_locked", [False, True])
@pytest.mark.parametrize("extra", [{}, {"use_cache": True}], ids=["", "cache asked for"])
def test_recomputing_gives_the_same_gradients(steady, tiny_batch, use_reentrant, is_locked, extra):
    if is_locked:
        steady.lock_encoder()
    steady.encoder.embed_images.eval()  # statistics of a batch would move twice
    watched = [steady.encoder.layers[1].fc1, steady.decoder.layers[2].fc1]
    plain = {}
    assert calls_of(watched, lambda: plain.update(zip("lg", trained(steady, **tiny_batch), strict=True))) == [1, 1]
    steady.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert steady.is_gradient_checkpointing
    again = {}
    counts = calls_of(watched, lambda: again.update(zip("lg", trained(steady, **tiny_batch, **extra), strict=True)))
    assert counts == [1 if is_locked else 2, 2]
    assert again["l"] == pytest.approx(plain["l"], rel=1e-6)
    assert_same_gradients(plain["g"], again["g"], 1e-5)
    steady.gradient_checkpointing_disable()
    assert calls_of(watched, lambda: trained(steady, **tiny_batch)) == [1, 1]


# ------------------------------------------------------------------------------------------ stochastic depth


def test_stochastic_depth_rises_from_nothing_and_acts_in_training_alone(tiny_config, tiny_batch):
    config = copy.deepcopy(tiny_config)
    config.dropout, config.encoder_drop_path_rate, config.decoder_drop_path_rate = 0.0, 0.4, 0.6
    model = OFAForConditionalGeneration(config)
    assert [layer.drop_path_rate for layer in model.encoder.layers] == pytest.approx([0.0, 0.4])
    assert [layer.drop_path_rate for layer in model.decoder.layers] == pytest.approx([0.0, 0.3, 0.6])
    model.eval()
    assert model(**tiny_batch).loss.item() == model(**tiny_batch).loss.item()
    model.train()
    assert len({model(**tiny_batch).loss.item() for _ in range(4)}) > 1


def test_a_dropped_sample_loses_all_its_tokens_at_once(tiny_config, tiny_model):
    layer = copy.deepcopy(tiny_model.encoder.layers[1]).train()
    layer.dropout.p, layer.drop_path_rate = 0.0, 0.5
    states, bias = torch.randn(1, 5, 32).expand(64, -1, -1), torch.zeros(1, 4, 5, 5)
    with torch.no_grad():
        changed, _ = layer(states, bias)
    outcomes = {tuple(one.flatten().mul(1e3).round().tolist()) for one in changed}
    assert len(outcomes) == 4  # attention kept or dropped × feed-forward kept or dropped


# ---------------------------------------------------------------------------------------------- precision


def in_bfloat16(model, batch) -> tuple[float, dict]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), gradients(model)


def test_autocast_is_passed_over_where_the_processor_has_no_half_precision(model, tiny_batch, slow_halves):
    loss, found = in_bfloat16(model, tiny_batch)
    found = {name: None if gradient is None else gradient.clone() for name, gradient in found.items()}
    expected_loss, expected = trained(model, **tiny_batch)
    assert loss == expected_loss
    assert all(found[name] is None or torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_what_was_computed_in_half_precision_before_is_taken_too(model, tiny_batch, slow_halves):
    images = {name: tiny_batch[name] for name in ("input_ids", "pixel_values")}
    encoded = model.encode(**images)
    half = (encoded.last_hidden_state.bfloat16(), encoded.position_embeddings, encoded.attention_mask)
    loss, _ = in_bfloat16(model, {"encoder_outputs": half, "labels": tiny_batch["labels"]})
    assert loss == pytest.approx(model(**images, labels=tiny_batch["labels"]).loss.item(), rel=1e-2)


def test_autocast_around_a_half_precision_model_is_passed_over_too(model, tiny_batch, slow_halves):
    model.bfloat16()
    images = {"input_ids": tiny_batch["input_ids"], "pixel_values": tiny_batch["pixel_values"].bfloat16()}
    encoded = model.encode(**images)
    batch = {"encoder_outputs": tuple(encoded.to_tuple()), "labels": tiny_batch["labels"]}
    loss, _ = in_bfloat16(model, batch)
    assert loss == model(**batch).loss.item()


def test_autocast_stays_where_the_processor_has_half_precision(model, tiny_batch, monkeypatch):
    monkeypatch.setattr(modeling_ofa_kernels, "is_slow", lambda dtype: False)
    loss, _ = in_bfloat16(model, tiny_batch)
    expected, _ = trained(model, **tiny_batch)
    assert loss != expected
    assert loss == pytest.approx(expected, rel=2e-2)
