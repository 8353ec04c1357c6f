"""Drawn images are ranked as the official code ranks them: what CLIP reads and sees, features, cosines, order."""

import json
from functools import cache

import pytest
import torch
import transformers
from drawing_checkpoint import write_recorded_vqgan
from fixtures.codes import build_model, codes_of, encoded
from fixtures.recorded import FIXTURES, official_tensor, random_words
from PIL import Image

from ofa_hf.image_processing_ofa import images_of_codes, load_image_decoder
from ofa_hf.prediction.clip import ClipScorer, clip_text
from ofa_hf.prediction.text_to_image import ranked
from ofa_hf.tasks_ofa import TASKS


RECORDED = json.loads((FIXTURES / "recorded_rerank.json").read_text(encoding="utf-8"))
VQGAN = json.loads((FIXTURES / "recorded_vqgan.json").read_text(encoding="utf-8"))
OF_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OF_MODEL = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TOKENS = {  # ids that the official tokenizer gives these words
    "a photo of a dog": (320, 1125, 539, 320, 1929),
    "a brown dog runs across the wet sand .": (320, 2866, 1929, 5586, 2500, 518, 6682, 5094, 269),
}


def state_of_clip() -> dict[str, torch.Tensor]:
    """The recorded weights under transformers' names."""
    state = {"logit_scale": torch.tensor(1.0)}
    for name, shape in RECORDED["shapes"].items():
        tensor = torch.from_numpy(official_tensor(RECORDED["seed"], f"clip.{name}", tuple(shape)))
        if name in ("visual.proj", "text_projection"):
            state[f"{'visual' if name.startswith('visual') else 'text'}_projection.weight"] = tensor.T.contiguous()
        elif ".resblocks." in name:
            side = "vision_model" if name.startswith("visual") else "text_model"
            number, part = name.partition(".resblocks.")[2].split(".", 1)
            layer, kind = f"{side}.encoder.layers.{number}", part.rpartition(".")[2]
            if part.startswith("attn.in_proj"):
                for which, own in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{layer}.self_attn.{which}_proj.{part.rpartition('_')[2]}"] = own.clone()
            else:
                state[f"{layer}.{OF_LAYER[part.rpartition('.')[0]]}.{kind}"] = tensor
        else:
            state[OF_MODEL.get(name, name)] = tensor
    return state


def write_tokenizer(folder) -> None:
    """A tokenizer that gives the words above their ids; the pieces they are merged from get ids that no word has."""
    words = dict(pair for text, ids in TOKENS.items() for pair in zip(text.split(), ids, strict=True))
    vocabulary = {f"{word}</w>": number for word, number in words.items()}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    merges, free = [], iter(set(range(49406)) - set(words.values()))
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for piece in pieces:
            vocabulary.setdefault(piece, next(free))
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary.setdefault(pieces[0], next(free))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges), ""]), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """The small CLIP of the recordings, loaded as any other."""
    folder, sizes = tmp_path_factory.mktemp("clip"), RECORDED["config"]
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = {**text, "image_size": sizes["image_resolution"], "patch_size": sizes["vision_patch_size"]}
    text |= {"vocab_size": sizes["vocab_size"], "bos_token_id": 49406, "eos_token_id": 49407}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes["embed_dim"])
    model = transformers.CLIPModel(config)
    model.load_state_dict(state_of_clip(), strict=True)
    model.save_pretrained(folder)
    side = sizes["image_resolution"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    write_tokenizer(folder)
    return ClipScorer(str(folder))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """The small VQGAN of the recordings."""
    pytest.importorskip("diffusers", reason="needs diffusers")
    folder, config = tmp_path_factory.mktemp("vqgan"), VQGAN["configs"]["mini"]
    return load_image_decoder(str(write_recorded_vqgan(folder, VQGAN["seed"], config)))


def images_of(decoder, name: str) -> list[Image.Image]:
    return images_of_codes(decoder, torch.tensor(codes_in(name)).view(-1, 8, 8))


@cache
def codes_in(name: str) -> list[list[int]]:
    """Codes of a case's images; those of the second are searched here, and are the recorded ones."""
    if name == "given_codes":
        return (random_words(RECORDED["seed"], "codes|rerank", 6 * 64) % 8192).astype(int).reshape(6, 64).tolist()
    length, model, found = 64, build_model(64), RECORDED["beam5"]
    settings = {"num_beams": 5, "num_return_sequences": 5, "early_stopping": True, "max_length": length + 2}
    masks = torch.ones(1, dtype=torch.bool)
    processors = [codes_of(length)]
    ids = model.generate(**encoded(found["src"]), code_masks=masks, logits_processor=processors, **settings)
    codes = (ids[:, 1:-1] - codes_of(length).first_code).tolist()
    assert codes == found["codes"]
    return codes


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_images_of_codes_are_ranked_in_the_official_order(scorer, decoder, name):
    case, images = RECORDED["cases"][name], images_of(decoder, name)
    rows = [{"image": image, "number": number} for number, image in enumerate(images)]
    best_first = ranked(rows, case["text"], scorer)
    assert [one["number"] for one in best_first] == case["order"]
    # a pixel that is one level off moves a cosine by some 5e-5; the smallest gap is 1.3e-4
    assert [one["clip_score"] for one in best_first] == pytest.approx(case["sorted_scores"], abs=1e-4)


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_pixels_and_features_are_the_official_ones(scorer, decoder, name):
    case, images = RECORDED["cases"][name], images_of(decoder, name)
    pixels = scorer.pixels(images).flatten(1)[:, ::29]
    assert (pixels - torch.tensor(case["pixels"])).abs().max() < 0.02  # one grey level, of a color cut down elsewhere
    assert (scorer.image_features(images) - torch.tensor(case["image_features"])).abs().max() < 5e-3
    assert (scorer.text_features(case["text"]) - torch.tensor(case["text_features"])).abs().max() < 1e-4


@pytest.mark.parametrize(("text", "ids"), [(name, TOKENS[name]) for name in TOKENS])
def test_a_text_becomes_the_official_tokens(scorer, text, ids):
    assert scorer.read(text.capitalize().replace(" .", ".")).input_ids.tolist() == [[49406, *ids, 49407]]


def test_clip_reads_what_the_official_code_gives_it():
    for caption, expected in RECORDED["texts"].items():
        cleaned = TASKS["image_generation"].clean("text", caption)
        assert clip_text(cleaned) == expected, caption
    assert any("/" in caption for caption in RECORDED["texts"])


def test_a_text_with_more_tokens_than_clip_reads_is_refused_as_officially(scorer):
    words, limit = {text: length for text, length in RECORDED["tokens"].items() if length}, scorer.max_tokens
    assert (limit, max(words.values())) == (77, 66)
    assert scorer.read("a " * 75).input_ids.shape == (1, 77)
    with pytest.raises(ValueError, match="78 tokens for CLIP, which reads 77"):
        scorer.read("a " * 76)
