"""A run from its arguments to the folder it leaves."""

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from tiny_shop import largest_difference, weights
from transformers import AutoModelForImageTextToText, AutoProcessor

from ofa_hf.errors import UserError
from ofa_hf.training import finetuning
from ofa_hf.training.sources import refuse_text_tables


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs peft (pip install ofa-hf[lora])"
)
EVERY_TWO_STEPS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_run_leaves_a_hub_ready_folder_and_its_results(train):
    ran = train()
    names = {path.name for path in ran.folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"processor_config.json", "preprocessor_config.json", "modeling_ofa.py", "training_curve.png"} <= names
    assert "training_args.bin" not in names, "a pickle that may hold a token"
    results = json.loads((ran.folder / "finetune_results.json").read_text(encoding="utf-8"))
    assert results["steps"] == ran.num_steps == 8
    assert results["metrics"] == ran.metrics
    model = AutoModelForImageTextToText.from_pretrained(ran.folder, trust_remote_code=True)
    assert (
        AutoProcessor.from_pretrained(ran.folder, trust_remote_code=True).tokenizer.vocab_size
        == model.config.vocab_size
    )


def test_training_learns_the_captions(train):
    losses = [train(name, num_train_epochs=epochs).metrics["eval_loss"] for name, epochs in (("1", 1), ("2", 15))]
    assert losses[1] < losses[0] - 0.5


def test_every_checkpoint_is_a_hub_ready_folder(train):
    folder = train(save_strategy="steps", save_steps=4).folder / "checkpoint-4"
    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(train):
    whole = train("whole", save_strategy="steps", save_steps=3)
    for later in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(whole.folder / later)
    before = weights(whole.folder)
    resumed = train("whole", save_strategy="steps", save_steps=3, resume_from_checkpoint=True)
    after = weights(resumed.folder)
    assert resumed.num_steps == 8
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_best_checkpoint_by_cider_d_is_loaded_at_the_end(train, monkeypatch):
    scores = iter((0.1, 0.9, 0.3, 0.2, 0.9))
    monkeypatch.setattr(finetuning.OFATrainer, "_scores", lambda self, dataset: {"cider_d": next(scores)})
    folder = train(**EVERY_TWO_STEPS, load_best_model_at_end=True, save_total_limit=1).folder
    assert checkpoints(folder) == ["checkpoint-4"]
    assert largest_difference(folder, folder / "checkpoint-4") == 0


def test_training_stops_when_the_score_stays_behind(train, monkeypatch):
    scores = iter((0.5, 0.4, 0.3, 0.2, 0.1))
    monkeypatch.setattr(finetuning.OFATrainer, "_scores", lambda self, dataset: {"cider_d": next(scores)})
    ran = train(**EVERY_TWO_STEPS, load_best_model_at_end=True, early_stopping_patience=1)
    assert ran.num_steps == 4
    assert largest_difference(ran.folder, ran.folder / "checkpoint-2") == 0


EVERY_OPTION = {
    "dropout": 0.3,
    "encoder_drop_path_rate": 0.2,
    "decoder_drop_path_rate": 0.2,
    "resnet_drop_path_rate": 0.2,
    "label_smoothing": 0.1,
    "drop_worst_ratio": 0.1,
    "gradient_checkpointing": True,
    "freeze_encoder": False,
    "max_seq_length": 4,
    "generation_num_beams": 2,
    "generation_max_length": 6,
    "neftune_noise_alpha": 1.0,
}


def json_files(folder: Path) -> dict[str, dict]:
    """What a folder says of its model: the JSON files of model, processor and tokenizer."""
    run_files = {"finetune_results.json", "trainer_state.json"}
    paths = [path for path in folder.glob("*.json") if path.name not in run_files]
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    for name, token in found.get("special_tokens_map.json", {}).items():  # transformers 4: in two forms, by history
        found["special_tokens_map.json"][name] = token["content"] if isinstance(token, dict) else token
    return found


def test_nothing_of_a_run_is_left_in_what_it_saves_and_publishes(train, shop):
    from ofa_hf.publishing import bundle_of

    ran = train(**EVERY_OPTION, **EVERY_TWO_STEPS, max_steps=2)
    base = json_files(Path(shop["model_name_or_path"]))
    assert base.keys() >= {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json"}
    for folder in (ran.folder, ran.folder / "checkpoint-2"):
        assert json_files(folder) == base, folder.name
    card = (ran.folder / "README.md").read_text(encoding="utf-8")
    assert "`use_cache" not in card
    assert {str(name) for name in bundle_of(ran.folder, "me/model").files} >= set(base)


def test_merged_data_trains_on_everything_and_scores_nothing(train):
    ran = train(merge_test=True)
    assert ran.num_steps == 12, "16 images × 4 captions, 12 a step, 2 epochs"
    assert not any(name.startswith("eval_") for name in ran.metrics)


NO_FILES = dict.fromkeys(("train_caption_file", "train_image_file", "test_caption_file", "test_image_file"))


@pytest.fixture
def saved_rows(shop, tmp_path) -> str:
    """The shop's rows as a folder of the `datasets` library."""
    from datasets import DatasetDict

    from ofa_hf.data import load_muge

    rows = load_muge(shop["train_caption_file"], shop["train_image_file"]).rename_column("targets", "caption")
    DatasetDict(train=rows, valid=rows.select(range(3))).save_to_disk(tmp_path / "rows")
    return str(tmp_path / "rows")


def test_a_data_set_by_name_trains_like_files(train, saved_rows):
    ran = train(**NO_FILES, dataset_name=saved_rows, eval_split="valid", max_steps=2)
    assert "eval_cider_d" in ran.metrics


def test_a_csv_as_a_data_set_is_refused_since_its_loader_would_change_texts(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,NA\n", encoding="utf-8")
    for name in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(UserError, match=r"NA and 00123.*train_caption_file .*t\.csv"):
            refuse_text_tables(str(name))
    refuse_text_tables("shop/owner")


def test_a_streamed_data_set_trains_for_as_many_steps_as_asked(train, saved_rows, capsys):
    changes = {**NO_FILES, "dataset_name": saved_rows, "streaming": True, "max_steps": 7}  # 4 an epoch
    ran, again = train("1", eval_split="valid", **changes), train("2", **changes)
    assert ran.num_steps == 7
    assert "eval_cider_d" in ran.metrics
    assert largest_difference(ran.folder, again.folder) == 0
    assert "data       streamed, not counted" in capsys.readouterr().err


def test_a_streamed_run_resumed_in_its_second_pass_ends_with_the_same_weights(train, saved_rows):
    changes = {**NO_FILES, "dataset_name": saved_rows, "streaming": True, "max_steps": 7}  # 4 a pass
    saving = {**changes, "save_strategy": "steps", "save_steps": 6}
    straight, folder = train("1", **changes).folder, train("2", **saving).folder
    shutil.rmtree(folder / "checkpoint-7")
    train("2", resume_from_checkpoint="true", **saving)
    assert largest_difference(straight, folder) == 0


@pytest.mark.parametrize("changes", [{"max_steps": -1}, {"max_steps": 2, "cache_encoder_outputs": True}])
def test_streaming_without_a_number_of_steps_or_with_a_cache_is_refused(train, saved_rows, changes):
    with pytest.raises(UserError, match="needs dataset_name and max_steps, and keeps no encoder cache"):
        train(**NO_FILES, dataset_name=saved_rows, streaming=True, **changes)


def test_targets_that_are_cut_are_counted(train, caplog):
    ran = train(max_seq_length=4, max_steps=4, test_caption_file=None, test_image_file=None)
    assert ran.cut_targets == 48
    assert train("2", max_steps=4).cut_targets == 0


def test_half_precision_trains_and_scores(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # transformers 4 leaves its choice there
    ran = train(bf16=True, **EVERY_TWO_STEPS, max_steps=4)
    assert weights(ran.folder)["decoder.layer_norm.weight"].dtype == torch.float32
    assert ran.metrics["eval_loss"] == pytest.approx(train("2", max_steps=4).metrics["eval_loss"], rel=1e-2)


@pytest.mark.parametrize(("name", "why"), [("fp16", "fp16 needs a GPU"), ("bf16", "This CPU has no bf16")])
def test_half_precision_that_a_cpu_lacks_is_switched_off_with_a_warning(train, parse, monkeypatch, caplog, name, why):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # transformers 4 leaves its choice there
    monkeypatch.setattr(finetuning, "is_slow", lambda dtype: dtype == torch.bfloat16)
    args, trainer_args = parse(**{name: True})
    assert not getattr(finetuning.adapt(args, trainer_args), name)
    assert getattr(trainer_args, name), "the caller's arguments stay as they are"
    caplog.clear()
    plain, half = train("plain", max_steps=2), train("half", max_steps=2, **{name: True})
    assert largest_difference(plain.folder, half.folder) == 0
    assert sum(why in record.getMessage() for record in caplog.records) == 1


@needs_peft
@pytest.mark.parametrize("frozen", [True, False])
def test_lora_leaves_one_merged_model_that_loads_like_any_other(train, shop, frozen):
    ran = train(lora_rank=2, freeze_encoder=frozen, learning_rate=0.1)
    assert not (ran.folder / "adapter_config.json").exists()
    assert weights(ran.folder).keys() == weights(Path(shop["model_name_or_path"])).keys()
    assert largest_difference(ran.folder, Path(shop["model_name_or_path"])) > 1e-3
    AutoModelForImageTextToText.from_pretrained(ran.folder, trust_remote_code=True)


@needs_peft
def test_lora_leaves_an_adapter_that_gives_the_merged_model_on_its_base(train, shop):
    from peft import PeftModel

    changes = {"lora_rank": 2, "learning_rate": 0.1, "max_steps": 4}
    merged, alone = train("merged", **changes), train("alone", **changes, merge_lora=False)
    assert not (alone.folder / "model.safetensors").exists()
    base = AutoModelForImageTextToText.from_pretrained(shop["model_name_or_path"], trust_remote_code=True)
    joined = PeftModel.from_pretrained(base, alone.folder).merge_and_unload().state_dict()
    for name, tensor in weights(merged.folder).items():
        torch.testing.assert_close(joined[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@needs_peft
def test_lora_resumes(train):
    changes = {"lora_rank": 2, "save_strategy": "steps", "save_steps": 4}
    whole = train("whole", **changes)
    before = weights(whole.folder)
    shutil.rmtree(whole.folder / "checkpoint-8")
    after = weights(train("whole", **changes, resume_from_checkpoint=True).folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_lora_without_peft_says_what_to_install(train, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"ofa-hf\[lora\]"):
        train(lora_rank=2)


def test_tensorboard_gets_the_losses_if_it_is_installed(train, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.chdir(tmp_path)
    train(report_to="tensorboard", max_steps=2)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_a_finished_folder_is_pushed_once_without_checkpoints(train, monkeypatch):
    from ofa_hf.publishing import bundle_of

    calls = []

    def publish(folder, repository, *, token, **_):
        assert token == "secret"
        calls.append((repository, {str(name) for name in bundle_of(folder, repository).files}))
        return "https://hub/me/shop-model"

    monkeypatch.setattr(finetuning, "connect", lambda name, token: None)
    monkeypatch.setattr(finetuning, "prepare_repository", lambda api, destination: f"me/{destination.repo_id}")
    monkeypatch.setattr(finetuning, "publish_folder", publish)
    train("shop-model", save_strategy="steps", save_steps=4, push_to_hub=True, hub_token="secret")
    ((repository, files),) = calls
    assert repository == "me/shop-model"
    assert {"model.safetensors", "config.json", "modeling_ofa.py", "tokenizer.json", "README.md"} <= files
    assert not {name for name in files if "/" in name or name == "training_args.bin"}, files


def test_a_hub_that_cannot_be_reached_is_reported_before_training(train, tmp_path):
    with pytest.raises(UserError, match="Hub|reach|connection|offline"):
        train(push_to_hub=True, hub_token="hf_nobody")  # tests have no network
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets_per_row": 40}, "a batch holds 12 targets"),
        ({"eval_strategy": "steps", "merge_test": True}, "nothing to evaluate on"),
        ({"early_stopping_patience": 2}, "needs load_best_model_at_end"),
        ({"train_image_file": None}, "train_image_file is missing: the task caption needs images"),
        ({"task": "fortune_telling"}, "cannot be trained for the task fortune_telling: .*Accepted"),
        ({"report_to": "no_such_tracker"}, "cannot be set up|no_such_tracker"),
        ({"model_name_or_path": "/nowhere/at/all"}, "The model /nowhere/at/all is neither a folder"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(train, changes, words):
    with pytest.raises(UserError, match=words):
        train(**changes)


@pytest.mark.parametrize("change", [{"freeze_encoder": False}, {"freeze_word_embed": True}])
def test_a_run_that_locks_other_parts_cannot_be_resumed(train, change):
    folder = train(save_strategy="steps", save_steps=4).folder
    shutil.rmtree(folder / "checkpoint-8")
    with pytest.raises(UserError, match=r"Cannot resume from .*checkpoint-4.*locked the same parts"):
        train(save_strategy="steps", save_steps=4, resume_from_checkpoint=True, **change)


def test_a_damaged_optimizer_file_is_reported(train):
    folder = train(save_strategy="steps", save_steps=4).folder
    (folder / "checkpoint-8/optimizer.pt").write_bytes(b"")
    with pytest.raises(UserError, match="Cannot resume from .*checkpoint-8"):
        train(save_strategy="steps", save_steps=4, resume_from_checkpoint=True)


def test_captions_of_other_images_are_refused(train, shop):
    with pytest.raises(UserError, match="do not belong to the images"):
        train(train_caption_file=shop["test_caption_file"])


@pytest.mark.parametrize(
    "reason",
    [
        "DataLoader worker (pid(s) 12) exited unexpectedly",
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory.",
    ],
)
def test_a_killed_data_loader_worker_is_one_line_with_what_to_do(reason):
    clear = r"\(DataLoader worker .*\), most likely .* Use fewer dataloader_num_workers"
    with pytest.raises(UserError, match=clear), finetuning.explain_dead_workers():
        raise RuntimeError(reason)
    with pytest.raises(RuntimeError, match="shape"), finetuning.explain_dead_workers():
        raise RuntimeError("shape mismatch")


def test_a_worker_killed_while_it_hands_over_a_batch_is_reported_the_same(monkeypatch):
    looks = iter([None, "DataLoader worker (pid 12) is killed by signal: Killed. "])

    def look():
        if found := next(looks, None):
            raise RuntimeError(found)

    monkeypatch.setattr(torch._C, "_error_if_any_worker_fails", look)
    reported = pytest.raises(
        UserError, match=r"\(DataLoader worker \(pid 12\) is killed by signal: Killed\), most likely"
    )
    with reported, finetuning.explain_dead_workers():
        raise ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ConnectionResetError), finetuning.explain_dead_workers():
        raise ConnectionResetError(104, "of a tracker")

    def sleep(seconds: float):  # torch looks when a process ends, whatever this one does
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    monkeypatch.setattr(time, "sleep", sleep)
    with reported, finetuning.explain_dead_workers():
        raise ConnectionResetError(104, "Connection reset by peer")
