"""Converted folders answer every task in a process without this package, on the transformers that runs the tests."""

import json
from pathlib import Path

import pytest
import small_checkpoints
import task_stranger
import transformers
from drawing_checkpoint import make_drawing_folder
from PIL import Image

from ofa_hf.configuration_ofa import PIPELINE_CLASSES
from ofa_hf.conversion.convert import convert
from ofa_hf.fresh_process import run_fresh
from ofa_hf.models import load_model
from ofa_hf.pipeline_ofa import OFATextToImagePipeline


ASKED = set(PIPELINE_CLASSES) - {"text-to-image"}  # which needs a VQGAN that pretraining did not have


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An English checkpoint as pretrained, which offers all tasks, and one of questions alone."""
    work = tmp_path_factory.mktemp("tasks")
    config = small_checkpoints.make_config(small_checkpoints.ENGLISH_VOCAB_SIZE)
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    vocabulary, arguments = (
        small_checkpoints.write_english_vocabulary(work / "BPE"),
        small_checkpoints.make_arguments(),
    )
    for name, arguments.task in (("all", "unify_task"), ("single", "vqa_gen")):
        file = small_checkpoints.write_official(work / f"{name}.pt", weights, arguments)
        convert(file, work / name, vocabulary, verify=False)
    return work


@pytest.mark.usefixtures("quick_strangers")
def test_each_pipeline_answers_without_the_package(folders, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.png")
    request = {"folder": str(folders / "all"), "single": str(folders / "single"), "image": str(tmp_path / "image.png")}
    seen = run_fresh(task_stranger.__file__, request, scratch=tmp_path, failure="{reason}")
    answers = seen["answers"]
    assert seen["version"] == transformers.__version__
    assert all(module.startswith("transformers_modules") for module in seen["modules"])
    assert set(answers) == {*ASKED, "single"}
    assert list(answers["image-to-text"][0]) == ["generated_text"]
    assert [list(one) for one in answers["visual-question-answering"]] == [["score", "answer"]] * 2
    boxes = [one["box"] for one in answers["zero-shot-object-detection"]]
    assert [list(box) for box in boxes] == [["xmin", "ymin", "xmax", "ymax"]] * 2
    assert list(answers["summarization"][0]) == ["summary_text"]
    labels = {name: {one["label"] for one in answers[name]} for name in ASKED if "class" in name}
    assert labels["zero-shot-image-classification"] == {"red", "what", "hat"}
    assert labels["text-classification"] == {"negative", "positive"}
    assert seen["name"] == "visual-question-answering"
    assert sum(one["score"] for one in answers["single"]) == pytest.approx(1, abs=1e-5)


def test_a_folder_lists_the_pipelines_of_its_tasks(folders):
    def pipelines(name: str) -> list[str]:
        return list(json.loads(Path(folders, name, "config.json").read_text(encoding="utf-8"))["custom_pipelines"])

    assert set(pipelines("all")) == ASKED
    assert pipelines("single") == ["visual-question-answering"]


STRANGER = """
def main(request):
    import sys, transformers
    from transformers import pipeline

    pipe = pipeline("text-to-image", model=request["folder"], trust_remote_code=True, device="cpu")
    images = pipe("red hat", num_images=2, seed=7)
    return {
        "version": transformers.__version__,
        "package": "ofa_hf" in sys.modules,
        "images": [one["image"].tobytes().hex() for one in images],
        "scores": [one["score"] for one in images],
    }
"""


def test_texts_are_drawn_without_the_package(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "stranger.py").write_text(STRANGER, encoding="utf-8")
    folder = make_drawing_folder(tmp_path)
    seen = run_fresh(tmp_path / "stranger.py", {"folder": str(folder)}, scratch=tmp_path, failure="{reason}")
    assert seen["version"] == transformers.__version__
    assert not seen["package"]
    model, processor = load_model(folder, device="cpu")
    images = OFATextToImagePipeline(model=model, processor=processor)("red hat", num_images=2, seed=7)
    assert seen["images"] == [one["image"].tobytes().hex() for one in images]
    assert seen["scores"] == pytest.approx([one["score"] for one in images])
