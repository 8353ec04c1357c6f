"""Loading: a checkpoint without its word embedding is refused however it is stored, and weights may be offloaded."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageTextToText

from ofa_hf.modeling_ofa import OFAForConditionalGeneration, OFAModel
from ofa_hf.versions_ofa import TRANSFORMERS_5


TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")


def write_safetensors(folder, state) -> None:
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def write_bin(folder, state) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def write_shards(folder, state) -> None:
    files = {name: f"model-0000{1 + name.startswith('decoder')}-of-00002.safetensors" for name in state}
    for file in set(files.values()):
        shard = {name: tensor for name, tensor in state.items() if files[name] == file}
        save_file(shard, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture(scope="module")
def incomplete(tiny_model, tmp_path_factory):
    """Folders without the word embedding, by the way they are stored."""
    state = {name: tensor for name, tensor in tiny_model.state_dict().items() if name not in TIED}
    folders = {}
    for write in (write_safetensors, write_bin, write_shards):
        folder = folders[write.__name__] = tmp_path_factory.mktemp(write.__name__)
        tiny_model.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        write(folder, state)
    return folders


WAYS = {
    "plain": {},
    "report": {"output_loading_info": True},
    "half": {"dtype": torch.bfloat16},
    "automatic": {"device_map": "auto"},
    "one device": {"device_map": {"": "cpu"}},
}
if TRANSFORMERS_5:  # 4 does not load a model whose weights are all on the disk
    WAYS["disk"] = {"device_map": {"encoder": "disk", "decoder": "disk"}}


@pytest.mark.parametrize("stored", ["write_safetensors", "write_bin", "write_shards"])
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_without_its_word_embedding_is_refused_by_name(incomplete, tmp_path, stored, way):
    extra = {"offload_folder": tmp_path} if way == "disk" else {}
    with pytest.raises(ValueError, match=f"{incomplete[stored].name} lacks encoder.embed_tokens.weight"):
        OFAForConditionalGeneration.from_pretrained(incomplete[stored], **WAYS[way], **extra)


@pytest.mark.parametrize("auto_class", [OFAModel, AutoModel, AutoModelForImageTextToText])
def test_every_class_refuses_a_checkpoint_without_its_word_embedding(incomplete, auto_class):
    extra = {} if auto_class is OFAModel else {"trust_remote_code": True}
    with pytest.raises(ValueError, match=r"lacks encoder.embed_tokens.weight"):
        auto_class.from_pretrained(incomplete["write_safetensors"], **extra)


def test_weights_given_as_a_state_dict_must_have_the_word_embedding(tiny_model):
    state = {name: tensor for name, tensor in tiny_model.state_dict().items() if name not in TIED}
    with pytest.raises(ValueError, match=r"lacks encoder.embed_tokens.weight"):
        OFAForConditionalGeneration.from_pretrained(None, config=tiny_model.config, state_dict=state)


@pytest.mark.parametrize("kept", TIED[:2])
def test_the_word_embedding_may_be_stored_under_its_name_in_the_decoder(tiny_model, tmp_path, kept):
    state = {name: tensor for name, tensor in tiny_model.state_dict().items() if name == kept or name not in TIED}
    tiny_model.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path, state)
    model = OFAForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(model.state_dict()[name], state[kept]) for name in TIED)


@pytest.mark.parametrize("share", [0.2, 0.6] if TRANSFORMERS_5 else [0.6])
def test_weights_on_the_disk_give_the_same_texts_and_scores(tiny_model, tiny_batch, tmp_path, share):
    tiny_model.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in tiny_model.parameters())
    memory = {"device_map": "auto", "max_memory": {"cpu": int(share * size)}, "offload_folder": tmp_path / "offload"}
    model = OFAForConditionalGeneration.from_pretrained(tmp_path, **memory)
    assert "disk" in model.hf_device_map.values()
    inputs = {name: value[:1] for name, value in tiny_batch.items() if name != "labels"}
    texts, expected = (one.generate(**inputs, max_new_tokens=2) for one in (model, tiny_model))
    assert torch.equal(texts, expected)
    scores, exact = (one.sequence_scores(texts, **inputs) for one in (model, tiny_model))
    torch.testing.assert_close(scores, exact, rtol=1e-4, atol=1e-5)
    choices, exact = (one.score_choices([[5], [9, 7]], **inputs) for one in (model, tiny_model))
    torch.testing.assert_close(choices, exact, rtol=1e-4, atol=1e-5)


def assert_fast_paths_follow(model, texts, inputs) -> torch.Tensor:
    """Scores of texts and logits of a first step equal what a plain pass gives; returns the scores."""
    start = torch.zeros(len(texts), 1, dtype=torch.long)
    logits = model(**inputs, decoder_input_ids=torch.cat([start, texts[:, :-1]], dim=1)).logits.detach()
    exact = logits.log_softmax(-1).gather(-1, texts[..., None])[..., 0].mean(1)
    scores = model.sequence_scores(torch.cat([start, texts], dim=1), **inputs)
    torch.testing.assert_close(scores, exact, rtol=1e-3, atol=1e-4)
    choices = model.score_choices([[5], [9], [70]], **inputs)
    torch.testing.assert_close(choices, logits[:, 0, [5, 9, 70]].log_softmax(-1), rtol=1e-3, atol=1e-3)
    output = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(output.logits[0], logits[:, 0], rtol=1e-3, atol=1e-3)
    return scores


@pytest.mark.parametrize("target", ["conv2", "fc2", "pos_q_linear", "output_projection"])
def test_an_adapter_is_never_passed_by(tiny_model, tiny_batch, target):
    """The fast paths read weights directly, and keep what they computed from them."""
    peft = pytest.importorskip("peft")
    inputs = {name: value for name, value in tiny_batch.items() if name != "labels"}
    model, texts = copy.deepcopy(tiny_model), torch.randint(4, 120, (3, 4))
    before = assert_fast_paths_follow(model, texts, inputs)
    settings = peft.LoraConfig(target_modules=[target], init_lora_weights=False, r=2, lora_alpha=8)
    adapted = peft.get_peft_model(model, settings).eval()
    scores = assert_fast_paths_follow(model, texts, inputs)
    assert (scores - before).abs().max() > 1e-3
    if target != "output_projection":  # merged, it changes the word embedding too
        merged = assert_fast_paths_follow(adapted.merge_and_unload(), texts, inputs)
        torch.testing.assert_close(merged, scores, rtol=1e-3, atol=1e-4)
