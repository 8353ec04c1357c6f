"""Training: the loss, several texts per image, locking, recomputing, stochastic depth."""

import copy

import pytest
import torch
from torch import nn

from ofa_hf.modeling_ofa import OFAForConditionalGeneration


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


def test_loss_is_the_mean_over_real_tokens(model, tiny_batch):
    labels = tiny_batch["labels"]
    output = model(**tiny_batch)
    expected = nn.functional.cross_entropy(output.logits[labels != -100], labels[labels != -100])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_function_can_be_replaced(model, tiny_batch):
    seen = {}
    model.loss_function = lambda **kwargs: seen.update(kwargs) or kwargs["features"].sum()
    output = model(**tiny_batch, output_hidden_states=True, my_option=3)
    assert torch.equal(output.loss, output.decoder_hidden_states[-1].sum())
    assert seen["weight"] is model.get_output_embeddings().weight
    assert torch.equal(seen["labels"], tiny_batch["labels"])
    assert torch.equal(seen["logits"], output.logits)
    assert seen["my_option"] == 3


def test_logits_are_computed_where_they_are_kept(model, tiny_batch):
    everything = model(**tiny_batch).logits
    inputs = {key: value for key, value in tiny_batch.items() if key != "labels"}
    inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(tiny_batch["labels"])
    for kept, expected in ((1, everything[:, -1:]), (torch.tensor([0, 2]), everything[:, [0, 2]])):
        torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, expected, rtol=0, atol=1e-5)
    assert model(**inputs, logits_to_keep=torch.empty(0, dtype=torch.long)).logits is None


@pytest.mark.parametrize("number", [40, torch.tensor(40)])
def test_loss_is_divided_by_the_number_of_items_the_trainer_gives(model, tiny_batch, number):
    real = (tiny_batch["labels"] != -100).sum().item()
    mean, shared = model(**tiny_batch).loss, model(**tiny_batch, num_items_in_batch=number).loss
    assert shared.item() == pytest.approx(mean.item() * real / 40, rel=1e-6)


def test_several_texts_of_an_image_train_like_as_many_passes(model, tiny_batch):
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


@pytest.mark.parametrize("texts_per_image", [1, 2])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_gradients_reach_every_state_and_attention_that_is_returned(
    model, tiny_batch, texts_per_image, implementation, recomputes
):
    model.set_attn_implementation(implementation)
    if recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    labels = tiny_batch["labels"].repeat_interleave(texts_per_image, dim=0)
    output = model(**{**tiny_batch, "labels": labels}, output_attentions=True, output_hidden_states=True)
    kinds = ("encoder_hidden_states", "decoder_hidden_states")
    kinds += ("encoder_attentions", "decoder_attentions", "cross_attentions")
    kept = {f"{kind}.{place}": tensor for kind in kinds for place, tensor in enumerate(output[kind])}
    kept |= {"logits": output.logits, "encoder_last_hidden_state": output.encoder_last_hidden_state}
    for tensor in kept.values():
        tensor.retain_grad()
    output.loss.backward()
    assert len(kept) == 3 + 4 + 2 + 3 + 3 + 2
    assert [name for name, tensor in kept.items() if tensor.grad is None or not tensor.grad.abs().max() > 0] == []


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


def test_embedding_of_a_locked_encoder_is_trained_by_the_decoder_only(model, tiny_batch):
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


def test_image_embeds_instead_of_images_give_the_same_states_and_train_the_same(model, tiny_batch):
    model.lock_encoder(train_embeddings=True, through_encoder=True)
    with torch.no_grad():
        cells = model.encoder.embed_image_cells(tiny_batch["pixel_values"])
    assert cells.shape == (3, 4, 4, 32)
    loss, from_images = trained(model, **tiny_batch)
    others = {name: value for name, value in tiny_batch.items() if name != "pixel_values"}
    again, from_cells = trained(model, **others, image_embeds=cells)
    assert again == loss
    assert_same_gradients(from_images, from_cells, 0.0)
    with pytest.raises(ValueError, match="for 3 prompts"):
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


def test_stochastic_depth_rises_from_zero_and_acts_only_in_training(tiny_config, tiny_batch):
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
