"""A card tells what the files beside it back, and nothing else."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from ofa_hf.catalogue.published import CATALOGUE
from ofa_hf.errors import UserError
from ofa_hf.model_card.card import MARKER, current_card, model_card, write_card
from ofa_hf.model_card.facts import read_folder, trainer_facts


RESULTS = {
    "base_model": "shop/base",
    "arguments": {"test_caption_file": "/data/IC_valid.jsonl", "eval_rows": 50, "freeze_encoder": True},
    "trainer_arguments": {"learning_rate": 5e-5, "num_train_epochs": 3},
    "metrics": {"eval_cider_d": 51.25, "eval_bleu_4": 26.5, "eval_rouge_l": 58.75, "train_loss": 0.47},
    "steps": 120,
    "versions": {"transformers": "5.23.0"},
}


def write_results(folder, **changes):
    (folder / "finetune_results.json").write_text(json.dumps({**RESULTS, **changes}), encoding="utf-8")


def test_a_converted_folder_has_metadata_settings_proof_and_no_score(model_folder):
    text = current_card(model_folder, "shop/tiny")
    data = ModelCard(text).data
    assert (data.language, data.library_name, data.pipeline_tag) == ("zh", "transformers", "image-to-text")
    assert data.license == "unknown"
    assert data.eval_results is None
    for words in ("sha256", "59 renamed", "96 × 96", "switched off", "Not measured: no score", "## Limits and biases"):
        assert words in text, words


def test_each_task_stands_in_the_card_with_its_prompt_pipeline_and_metric(model_folder):
    path = model_folder / "processor_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {
        "tasks": {"caption": {}, "grounding": {"prompt": CATALOGUE["refcoco_cn_base"].defaults.prompt}, "ocr": {}},
        "default_task": "grounding",
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    text = current_card(model_folder, "shop/tiny")
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert 'pipeline("zero-shot-object-detection", model="shop/tiny"' in snippet
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `([\w-]+)` \| (.+?) \|$", text, re.MULTILINE)
    assert [(name, pipeline, metric) for name, _, pipeline, metric in rows] == [
        ("grounding", "zero-shot-object-detection", "Accuracy at IoU 0.5"),
        ("caption", "image-to-text", "CIDEr-D"),
        ("ocr", "image-to-text", "Accuracy"),
    ]
    assert "{text}" in rows[0][1]
    assert "a box for every phrase" in text
    assert ModelCard(text).data.pipeline_tag == "zero-shot-object-detection"


def test_a_metric_that_only_the_folder_knows_is_named_and_has_no_scores(model_folder):
    path = model_folder / "processor_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {"tasks": {"caption": {}, "ocr": {"metric": "taste"}}, "default_task": "ocr"}
    path.write_text(json.dumps(values), encoding="utf-8")
    write_results(model_folder, metrics={"eval_taste": 7.0, "eval_caption_cider_d": 51.25})
    text = current_card(model_folder)
    assert re.search(r"^\| `ocr` \| .* \| taste \|$", text, re.MULTILINE)
    assert "51.25" in text
    assert "7.0" not in text.partition("## Results")[2]


def test_a_verified_conversion_shows_its_figures(model_folder):
    path = model_folder / "conversion.json"
    account = json.loads(path.read_text(encoding="utf-8"))
    account["proof"] = {"max_difference": 0.0, "logits_shape": [2, 12, 9], "equal_tensors": 326, "load_seconds": 1.0}
    account["proof"]["transformers"] = "5.23.0"
    path.write_text(json.dumps(account), encoding="utf-8")
    assert "326 equal tensors" in current_card(model_folder)
    assert "from the source's is 0.0" in current_card(model_folder)


def test_published_scores_name_their_page_and_stay_out_of_the_metadata(model_folder):
    path = model_folder / "conversion.json"
    account = json.loads(path.read_text(encoding="utf-8"))
    account["published"] = CATALOGUE["caption_cn_base"].facts()
    path.write_text(json.dumps(account), encoding="utf-8")
    text = current_card(model_folder)
    assert "CIDEr-D 50.70" in text
    assert "checkpoints_cn.md" in text
    assert "Not measured here: these are the authors'" in text
    assert ModelCard(text).data.eval_results is None


def test_a_finetuned_folder_has_base_model_data_arguments_scores_and_curve(model_folder):
    write_results(model_folder)
    (model_folder / "training_curve.png").write_bytes(b"png")
    text = current_card(model_folder, "shop/tiny")
    data = ModelCard(text).data
    assert data.base_model == "shop/base"
    scores = {result.metric_name: result.metric_value for result in data.eval_results}
    assert scores == {"CIDEr-D": 51.25, "BLEU-4": 26.5, "ROUGE-L": 58.75}
    assert {result.dataset_name for result in data.eval_results} == {"IC_valid.jsonl, at most 50 images"}
    for words in ("| Steps | 120 |", "| `learning_rate` | 5e-05 |", "training_curve.png", "transformers 5.23.0"):
        assert words in text, words


def test_without_an_evaluation_it_says_not_measured_and_the_hub_shows_no_score(model_folder):
    write_results(model_folder, metrics={"train_loss": 0.5})
    text = current_card(model_folder)
    assert "Not measured: no score" in text
    assert "model-index" not in text
    assert "training_curve.png" not in text


def test_a_base_model_that_is_a_local_folder_is_no_name_of_the_hub(model_folder):
    write_results(model_folder, base_model=str(model_folder))
    text = current_card(model_folder)
    assert ModelCard(text).data.base_model is None
    assert str(model_folder.parent) not in text


def test_scores_of_a_later_evaluation_count_when_their_file_is_there(model_folder):
    result = {"scores": {"cider_d": 40.0, "num_images": 7}, "run": {"captions": "/x/own.jsonl"}}
    (model_folder / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
    results = ModelCard(current_card(model_folder)).data.eval_results
    assert [(one.dataset_name, one.metric_value) for one in results] == [("own.jsonl, 7 images", 40.0)]


def test_arguments_that_did_nothing_are_not_told(model_folder):
    arguments = {"lora_alpha": 16.0, "lora_rank": 0, "image_column": "image", "freeze_resnet": False, "dropout": 0.2}
    write_results(model_folder, arguments=arguments)
    text = current_card(model_folder)
    assert "`dropout`" in text
    assert not [name for name in ("lora_alpha", "lora_rank", "image_column", "freeze_resnet") if f"`{name}`" in text]


def test_a_local_base_model_is_told_by_what_it_was_made_from(model_folder):
    write_results(model_folder, base_model="/x/base", base_source={"name": "caption_cn_base.pt", "sha256": "ab12"})
    assert "`base`, a local folder, made from `caption_cn_base.pt`, sha256 `ab12`" in current_card(model_folder)


def test_the_trainers_arguments_become_plain_values():
    from transformers import SchedulerType

    given = SimpleNamespace(learning_rate=1e-4, lr_scheduler_type=SchedulerType.COSINE, max_steps=-1, seed=7)
    assert trainer_facts(given) == {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "seed": 7}


def test_a_score_that_is_no_number_is_no_score(model_folder):
    write_results(model_folder, metrics={"eval_cider_d": float("nan")})
    assert "model-index" not in current_card(model_folder)


def test_a_card_made_ones_own_stays_and_ours_is_renewed(model_folder):
    assert 'model="shop/a"' in write_card(model_folder, "shop/a").read_text(encoding="utf-8")
    text = write_card(model_folder, "shop/b").read_text(encoding="utf-8")
    assert 'model="shop/b"' in text
    (model_folder / "README.md").write_text(text.replace(MARKER, "My words."), encoding="utf-8")
    assert 'model="shop/b"' in write_card(model_folder, "shop/c").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["---\nlanguage: [zh\n---\n", "---\nlanguage: zh\n", "---\n- a\n- b\n---\n"])
def test_broken_metadata_is_refused(model_folder, text):
    (model_folder / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="broken metadata"):
        current_card(model_folder)


def test_an_account_that_is_not_ours_is_an_error_and_no_traceback(model_folder):
    (model_folder / "conversion.json").write_text('{"source": 3}')
    with pytest.raises(UserError, match="conversion.json"):
        current_card(model_folder)


def test_the_license_given_stands_in_metadata_and_text(model_folder):
    text = model_card(read_folder(model_folder), "shop/tiny", "cc-by-4.0")
    assert ModelCard(text).data.license == "cc-by-4.0"
    assert "The weights: cc-by-4.0." in text


def test_a_card_whose_writing_is_cut_short_does_not_become_the_owners_own(model_folder, monkeypatch):
    whole = write_card(model_folder, "shop/tiny").read_text(encoding="utf-8")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_card(model_folder, "shop/other")
    monkeypatch.undo()
    assert (model_folder / "README.md").read_text(encoding="utf-8") == whole
    assert not list(model_folder.glob("*.draft"))
    assert "shop/other" in current_card(model_folder, "shop/other")


def write_half(path, data):
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")
