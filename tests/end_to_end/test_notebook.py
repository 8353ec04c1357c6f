"""The notebook as its reader runs it: every cell, in small, in a kernel of its own."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "finetune_on_your_images.ipynb"
RESULTS = """
import json
print(json.dumps({
    "scores": scores, "status": status, "rehearsal": rehearsal, "said": said, "folder": str(FOLDER.absolute()),
    "finetuned": str(result.folder.absolute()), "steps": result.num_steps,
}, ensure_ascii=False))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The cells after a run with 20 images, and what they came to."""
    folder = tmp_path_factory.mktemp("reader")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    environment = {**os.environ, "OFA_NOTEBOOK_IMAGES": "20", "OMP_NUM_THREADS": "1"}
    environment |= {name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    streams = [output for output in notebook.cells[-1].outputs if output.get("name") == "stdout"]
    return notebook.cells, json.loads("".join(output.text for output in streams))


@pytest.mark.slow
def test_the_notebook_leads_from_images_to_a_model_that_captions(ran):
    _, results = ran
    folder, finetuned = Path(results["folder"]), Path(results["finetuned"])
    assert len(list((folder / "train").glob("*.jpg"))) == 20
    assert (folder / "train.csv").read_text(encoding="utf-8").startswith("image,caption\n00000.jpg,")
    assert results["steps"] == 4  # 20 images × 10 captions in batches of 50
    assert results["scores"].keys() == {"cider_d", "bleu_4", "rouge_l"}
    assert {"config.json", "model.safetensors", "modeling_ofa.py"} <= {path.name for path in finetuned.iterdir()}
    assert len(results["said"]) == 3
    assert all(row["generated_text"] and row["score"] < 0 for row in results["said"])


@pytest.mark.slow
def test_the_notebook_compares_and_rehearses_publishing(ran):
    _, results = ran
    assert (results["status"], results["rehearsal"]) == (0, 0)
    folder = Path(results["folder"])
    assert (folder / "compare.html").read_text(encoding="utf-8").count("<img ") == 20
    assert "| Image | start | my-captioner |" in (folder / "compare.md").read_text(encoding="utf-8")
    assert next((folder / "publish").rglob("bundle/config.json"))


@pytest.mark.slow
def test_the_notebook_shows_images_scores_and_a_curve(ran):
    cells, _ = ran
    shown = [output.get("data", {}) for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/jpeg" in data for data in shown) == 2
    assert sum("image/png" in data for data in shown) == 1
    assert any("cider_d" in data.get("text/plain", "") for data in shown)


def test_the_notebook_is_committed_without_results_and_in_both_languages():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        else:
            assert any("一" <= sign <= "鿿" for sign in cell.source), cell.source
            assert any(sign.isascii() and sign.isalpha() for sign in cell.source), cell.source
