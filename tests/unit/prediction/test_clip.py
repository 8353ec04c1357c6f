"""Any CLIP of transformers ranks images, English or Chinese; what is none is refused, and runs nothing."""

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clip import write_clip

from ofa_hf.errors import UserError
from ofa_hf.prediction import text_to_image
from ofa_hf.prediction.clip import ClipScorer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def chinese_clip(tmp_path_factory):
    """A small Chinese CLIP, whose text side is a BERT."""
    folder = tmp_path_factory.mktemp("chinese_clip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红色裙子蓝"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ChineseCLIPConfig(
        text_config={**sizes, "vocab_size": len(words), "max_position_embeddings": 12},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.ChineseCLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.ChineseCLIPImageProcessor(size=side, crop_size=side).save_pretrained(folder)
    return folder


def test_a_chinese_clip_ranks_too(chinese_clip):
    scorer = ClipScorer(str(chinese_clip))
    images = [Image.effect_noise((64, 64), 10 + 40 * number).convert("RGB") for number in range(3)]
    cosines = scorer("红色裙子", images)
    model, tokens = scorer.model, scorer.tokenizer("红色裙子", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**tokens, pixel_values=scorer.pixels(images))
    cosine = torch.nn.functional.cosine_similarity(outputs.text_embeds, outputs.image_embeds)
    assert cosines == pytest.approx(cosine.tolist(), abs=1e-6)
    assert cosines != pytest.approx(scorer("蓝色裙子", images), abs=1e-6)
    best = text_to_image.ranked([{"image": image} for image in images], "红色裙子", scorer)
    assert [one["clip_score"] for one in best] == sorted(cosines, reverse=True)
    with pytest.raises(ValueError, match="tokens for CLIP, which reads 12"):
        scorer("红" * 11, images)


def test_a_model_that_is_no_clip_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a model of the kind 'bert', not a CLIP"):
        ClipScorer(str(tmp_path))


def test_a_clip_that_is_damaged_is_refused_and_code_that_comes_with_it_is_not_run(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for name in ("partial", "junk", "foreign", "broken", "mute"):
        shutil.copytree(clip, tmp_path / name)
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "mute" / file).unlink(missing_ok=True)
    weights = load_file(clip / "model.safetensors")
    save_file(
        {**weights, "logit_scale": torch.tensor(torch.nan)},
        tmp_path / "broken" / "model.safetensors",
        {"format": "pt"},
    )
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    (tmp_path / "junk" / "model.safetensors").write_bytes(b"junk" * 100)
    config = json.loads((clip / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "other_clip", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "foreign" / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')", encoding="utf-8")
    messages = {
        "partial": "lacks weights, such as text_projection",
        "junk": "SafetensorError",
        "foreign": "custom code",
        "broken": "has weights that are no numbers, such as logit_scale",
        "mute": "The tokenizer of the CLIP .* knows no words|TypeError",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            ClipScorer(str(tmp_path / name))
    assert not (tmp_path / "mark").exists()
