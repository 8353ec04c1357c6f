"""Every example of docs/tasks.md runs as printed, on tiny checkpoints of the shapes it names."""

import csv
import json

import pytest
import small_checkpoints
import transformers
from documents import blocks, run
from PIL import Image

import ofa_hf
from ofa_hf import OFAProcessor
from ofa_hf.configuration_ofa import PIPELINE_CLASSES
from ofa_hf.conversion.convert import convert
from ofa_hf.models import load_model


PAGE = "docs/tasks.md"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Both pretrained checkpoints, converted, and a few images."""
    folder = tmp_path_factory.mktemp("tasks_page")
    vocabularies = {
        "ofa_cn_base": small_checkpoints.write_vocabulary(folder / "vocab.txt"),
        "ofa_base": small_checkpoints.write_english_vocabulary(folder / "BPE"),
    }
    arguments = small_checkpoints.make_arguments()
    arguments.task, arguments.max_source_positions, arguments.max_target_positions = "unify_task", 200, 200
    sizes = {"ofa_cn_base": small_checkpoints.VOCAB_SIZE, "ofa_base": small_checkpoints.ENGLISH_VOCAB_SIZE}
    for name, size in sizes.items():
        config = small_checkpoints.make_config(size)
        config.max_position_embeddings = 200
        weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
        file = small_checkpoints.write_official(folder / f"{name}.pt", weights, arguments)
        convert(file, folder / name.replace("_", "-"), vocabularies[name], verify=False)
    (folder / "photos").mkdir()
    for number, color in enumerate(("#cc2222", "#22aa44")):
        Image.new("RGB", (90, 60), color).save(folder / "photos" / f"{number}.jpg")
    Image.new("RGB", (90, 60), "#cc2222").save(folder / "photo.jpg")
    return folder


@pytest.fixture
def quick_pipeline(monkeypatch):
    """`transformers.pipeline` with this package's classes; `test_tasks_without_package.py` runs the real one."""

    def pipeline(task: str, *, model: str, trust_remote_code: bool):  # no more than the real one takes
        assert trust_remote_code
        loaded = load_model(model, device="cpu")
        kind = getattr(ofa_hf, PIPELINE_CLASSES[task])
        return kind(model=loaded.model, processor=loaded.processor, max_new_tokens=6)

    monkeypatch.setattr(transformers, "pipeline", pipeline)


@pytest.mark.slow
def test_every_example_runs(workplace, quick_pipeline, monkeypatch, capsys):
    todo = blocks(PAGE)
    assert len(todo) > 14
    monkeypatch.chdir(workplace)
    for language, code in todo:
        run(language, code)
    assert "Traceback" not in capsys.readouterr().err
    for table in ("captions", "texts", "answers", "entailed", "labels"):
        with open(workplace / f"{table}.csv", encoding="utf-8-sig") as file:
            assert len(list(csv.reader(file))) == 3, table
    assert len(list((workplace / "drawn").glob("*.jpg"))) == 2
    boxes = json.loads((workplace / "boxes.json").read_text(encoding="utf-8"))
    assert len(boxes["annotations"]) + boxes["info"]["boxes_without_area"] == 2
    assert set(OFAProcessor.from_pretrained("ofa-base").tasks) > {"vqa", "rte", "region_caption"}
