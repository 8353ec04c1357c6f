"""The notebook as its reader runs it: every cell, in small, in an interpreter of its own."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest


ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "finetune_on_your_images.ipynb"
RESULTS = """
print(json.dumps({
    "scores": scores, "status": status, "rehearsal": rehearsal, "said": said, "folder": str(FOLDER.absolute()),
    "finetuned": str(result.folder.absolute()), "steps": result.num_steps,
}, ensure_ascii=False))
"""


def run_cells() -> None:
    """What the fork does: run the cells in IPython, and write what each printed and showed into a file."""
    from forks import Forks, use_quick_strangers
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    use_quick_strangers(Forks(Path.cwd()), pytest.MonkeyPatch())
    shell, seen = InteractiveShell.instance(), []
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    for source in [*cells, RESULTS]:
        with capture_output() as captured:
            done = shell.run_cell(source, store_history=True)
        done.raise_error()
        shown = [one.data for one in captured.outputs]
        shown += [] if done.result is None else [shell.display_formatter.format(done.result)[0]]
        shown = [{kind: str(value)[:1000] for kind, value in data.items()} for data in shown]
        seen.append({"printed": captured.stdout, "shown": shown})
    Path("seen.json").write_text(json.dumps(seen), encoding="utf-8")


@pytest.fixture(scope="module")
def ran(forks, tmp_path_factory):
    """What the cells showed in a run with 20 images, and what they came to."""
    folder = tmp_path_factory.mktemp("reader")
    environment = {**os.environ, "OFA_NOTEBOOK_IMAGES": "20", "IPYTHONDIR": str(folder / "ipython")}
    ran = forks.run([sys.executable, __file__], cwd=folder, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *cells, results = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return cells, json.loads(results["printed"])


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
    shown = [data for cell in cells for data in cell["shown"]]
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


if __name__ == "__main__":
    run_cells()
