"""Verifying notices what a stranger would; the fresh process itself is tested in `end_to_end`."""

import pytest
from safetensors.torch import load_file, save_file

from ofa_hf.conversion.convert import convert
from ofa_hf.errors import UserError
from ofa_hf.publishing import verify
from ofa_hf.publishing.bundle import bundle_of
from ofa_hf.publishing.push import publish_folder


def stranger(*captions):
    """Stands in for fresh processes that give these texts."""
    told = iter(captions)
    facts = {"transformers": "5", "huggingface_hub": "2", "equal_tensors": 3}
    return lambda folder, overlay: {**facts, "text": next(told)}


def test_weights_are_compared_with_their_source_number_by_number(model_folder, checkpoints, monkeypatch):
    monkeypatch.setattr(verify, "load_without_package", stranger("红", "红"))
    source = checkpoints / "tiny.pt"
    assert verify.verify_folder(model_folder, source)[0].equal_to_source == 326
    weights = load_file(model_folder / "model.safetensors")
    weights["encoder.layers.0.self_attn.k_proj.bias"][0] += 1e-7  # which no output could show
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"k_proj\.bias differs"):
        verify.verify_folder(model_folder, source)


def test_versions_that_caption_differently_are_an_error(model_folder, tmp_path, monkeypatch):
    (tmp_path / "overlay" / "transformers").mkdir(parents=True)
    monkeypatch.setattr(verify, "load_without_package", stranger("红", "绿"))
    with pytest.raises(UserError, match="different answers"):
        verify.verify_folder(model_folder, overlays=[tmp_path / "overlay"])


def test_what_cannot_draw_for_want_of_a_library_is_said_and_is_no_difference(model_folder, tmp_path, monkeypatch):
    (tmp_path / "overlay" / "transformers").mkdir(parents=True)
    told = iter([{"text": "image of 64 x 64 pixels"}, {"text": "", "not_asked": "Drawing needs diffusers"}])
    facts = {"transformers": "5", "huggingface_hub": "2", "equal_tensors": 3}
    monkeypatch.setattr(verify, "load_without_package", lambda folder, overlay: {**facts, **next(told)})
    drawn, loaded = verify.verify_folder(model_folder, overlays=[tmp_path / "overlay"])
    assert drawn.line().endswith("answer 'image of 64 x 64 pixels'")
    assert loaded.line().endswith("not asked: Drawing needs diffusers")


def test_answers_are_compared_without_their_scores():
    assert verify.text_of([{"generated_text": "红"}]) == "红"
    boxes = [{"score": 0.9, "label": "a", "box": {"xmin": 1.5}}, {"score": 0.1, "label": "b", "box": {"xmin": 2.0}}]
    assert verify.text_of(boxes) == '["a", {"xmin": 1.5}, "b", {"xmin": 2.0}]'


@pytest.mark.slow
@pytest.mark.usefixtures("quick_strangers")
def test_a_folder_of_another_task_is_asked_through_its_own_pipeline(checkpoints, tmp_path):
    convert(checkpoints / "tiny.pt", tmp_path / "boxes", checkpoints / "vocab.txt", task="grounding", verify=False)
    (report,) = verify.verify_folder(tmp_path / "boxes")
    assert "红色裙子" in report.text
    assert "xmin" in report.text


def test_the_image_shows_something():
    assert len(verify.draw_image().getcolors()) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick_strangers")
def test_a_folder_that_draws_goes_up_whole_and_draws_without_the_package(drawer, hub, tmp_path):
    bundle = bundle_of(drawer, "shop/drawer")
    names = {name for name in bundle.files if name.startswith("vqgan/")}
    assert names == {f"vqgan/{path.name}" for path in (drawer / "vqgan").iterdir()}
    assert len(names) == 3
    assert b"diffusers" in bundle.files["README.md"]
    publish_folder(drawer, "shop/drawer")
    assert {name for name in hub.files("shop/drawer") if name.startswith("vqgan/")} == names
    staged = bundle.stage(tmp_path / "bundle")
    (report,) = verify.verify_folder(staged)
    assert report.text == "image of 64 x 64 pixels"
    (staged / "vqgan" / "code_logits.safetensors").unlink()
    with pytest.raises(UserError, match="misses code_logits.safetensors, the VQGAN"):
        bundle_of(staged)
