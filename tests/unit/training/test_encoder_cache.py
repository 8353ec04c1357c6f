"""The locked encoder's work is done once, kept while it is valid, and changes nothing that is learnt."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_shop import NOISE, largest_difference, weights

from ofa_hf import fast_ofa
from ofa_hf.data import collator, load_muge
from ofa_hf.errors import UserError
from ofa_hf.models import load_model
from ofa_hf.training import encoder_cache
from ofa_hf.training.encoder_cache import CELLS, OUTPUTS, plan_caches
from ofa_hf.training.finetuning import refuse_impossible
from ofa_hf.training.locking import lock


CACHED = {"cache_encoder_outputs": True, "eval_strategy": "steps", "eval_steps": 4}
UNCACHED = {**CACHED, "cache_encoder_outputs": False}


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Ids of the images that the collator decodes, in order."""
    ids = []

    def open_row_image(row, plain=collator.open_row_image):
        ids.append(row["id"])
        return plain(row)

    monkeypatch.setattr(collator, "open_row_image", open_row_image)
    return ids


@pytest.fixture
def plan(parse, shop, tmp_path):
    """Plan a cache of the shop's training images for a model locked as the changes say."""
    rows = load_muge(shop["train_caption_file"], shop["train_image_file"])

    def plan(dtype=torch.float32, change=None, rows=rows, **changes):
        args, _ = parse(**changes)
        model, processor = load_model(args.model_name_or_path, device="cpu")
        lock(model, args)
        if change:
            change(model, processor)
        return plan_caches(model, processor, [rows], tmp_path / "cache", dtype)[0]

    return plan


def same_weights(first, second) -> bool:
    return largest_difference(first.folder, second.folder) == 0


@pytest.mark.parametrize(("freeze_word_embed", "workers"), [(True, 0), (False, 0), (True, 1)])
def test_a_run_with_the_cache_learns_the_very_weights_of_one_without(train, decoded, freeze_word_embed, workers):
    changes = {"freeze_word_embed": freeze_word_embed, "label_smoothing": 0.1}
    plain = train("plain", **UNCACHED, **changes)
    decoded.clear()
    cached = train("cached", **CACHED, **changes, dataloader_num_workers=workers)
    assert same_weights(plain, cached)
    assert cached.metrics["eval_loss"] == plain.metrics["eval_loss"]
    if not workers:
        assert len(decoded) <= 24 + 4, "the groups of one epoch of two, and one evaluation of three"


def test_the_word_embedding_is_trained_through_the_encoder_from_cached_cells_too(train):
    changes = {"embed_gradient_through_encoder": True, "max_steps": 4, "eval_strategy": "no"}
    plain, cached = train("plain", **changes), train("cached", **changes, cache_encoder_outputs=True)
    assert largest_difference(plain.folder, cached.folder, but=NOISE) < 2e-5  # BatchNorm is folded here


def test_a_second_run_with_the_same_cache_decodes_nothing(train, decoded, tmp_path):
    changes = {**CACHED, "freeze_word_embed": True, "encoder_cache_dir": str(tmp_path / "shared")}
    first = train("first", **changes)
    assert decoded
    decoded.clear()
    second = train("second", **changes, seed=8)
    assert decoded == []
    assert not same_weights(first, second)


def test_a_resumed_run_with_the_cache_ends_with_the_weights_of_one_that_was_not_stopped(train):
    changes = {"cache_encoder_outputs": True, "freeze_word_embed": True, "save_strategy": "steps", "save_steps": 3}
    before = weights(train("run", **changes).folder)
    folder = train("run", **changes, resume_from_checkpoint=True).folder
    for later in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(folder / later)
    after = weights(train("run", **changes, resume_from_checkpoint=True).folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_kept_depends_on_what_is_locked(plan):
    outputs, cells = plan(freeze_word_embed=True), plan()
    assert (outputs.kind, outputs.shape) == (OUTPUTS, (2 * 2 + 12, 16))  # 32 pixels and the prompt's tokens
    assert (cells.kind, cells.shape) == (CELLS, (2, 2, 16))
    assert outputs.num_bytes == 12 * 16 * 16 * 4
    assert plan(torch.bfloat16, freeze_word_embed=True).num_bytes == outputs.num_bytes / 2


def scale(name):
    def change(model, processor):
        with torch.no_grad():
            model.get_parameter(name).mul_(1.5)

    return change


def set_prompt(model, processor):
    processor.tasks["caption"]["prompt"] = "描述?"


def set_size(model, processor):
    processor.image_processor.size = {"height": 32, "width": 48}


def set_mean(model, processor):
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]


def move_statistics(model, processor):
    model.encoder.embed_images.bn1.running_mean.add_(1)


@pytest.mark.parametrize(
    ("freeze_word_embed", "change", "is_same"),
    [
        (True, None, True),
        (True, scale("encoder.layers.0.fc1.weight"), False),
        (True, scale("encoder.embed_tokens.weight"), False),
        (True, scale("decoder.layers.0.fc1.weight"), True),
        (True, move_statistics, False),
        (True, set_prompt, False),
        (True, set_size, False),
        (True, set_mean, False),
        (False, scale("encoder.image_proj.weight"), False),
        (False, scale("encoder.embed_tokens.weight"), True),
        (False, scale("encoder.layers.0.fc1.weight"), True),
        (False, set_prompt, True),
        (False, move_statistics, False),
    ],
)
def test_a_cache_is_valid_as_long_as_nothing_changes_that_it_depends_on(plan, freeze_word_embed, change, is_same):
    before, after = plan(freeze_word_embed=freeze_word_embed), plan(freeze_word_embed=freeze_word_embed, change=change)
    assert (before.folder == after.folder) == is_same


def test_a_cache_is_of_its_images_and_precision_alone(plan, shop, tmp_path):
    rows = load_muge(shop["train_caption_file"], shop["train_image_file"])
    folders = {plan().folder, plan(torch.bfloat16).folder, plan(rows=rows.select(range(11))).folder}
    folders.add(plan(rows=rows.select(range(11, -1, -1))).folder)
    assert len(folders) == 4
    assert plan(rows=load_muge(shop["train_caption_file"], shop["train_image_file"])).folder in folders


def test_images_that_lie_in_files_are_known_by_their_time_of_change(plan, tmp_path):
    from datasets import Dataset

    from ofa_hf.data.shards import row_features

    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    row = {"id": "a", "image": {"bytes": None, "path": str(image)}, "targets": ["红"]}
    rows = Dataset.from_list([row], features=row_features())
    before = plan(rows=rows).folder
    image.write_bytes(b"another")
    assert plan(rows=rows).folder != before


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_before_training(train, monkeypatch):
    monkeypatch.setattr(encoder_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"needs 0\.0 GB more, but the disk .* encoder_dtype bfloat16"):
        train(cache_encoder_outputs=True, freeze_word_embed=True)


def test_a_disk_that_fills_up_during_training_is_reported(train, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoder_cache.RowStore, "write", full)
    with pytest.raises(UserError, match=r"encoder cache in .* cannot be written"):
        train(cache_encoder_outputs=True)


def test_a_checkpoint_of_another_base_model_is_not_resumed_with_this_cache(train, shop, tmp_path):
    changes = {"cache_encoder_outputs": True, "save_strategy": "steps", "save_steps": 4}
    folder = train(**changes).folder
    shutil.rmtree(folder / "checkpoint-8")
    from ofa_hf import OFAForConditionalGeneration

    other = tmp_path / "other"
    shutil.copytree(shop["model_name_or_path"], other)
    model = OFAForConditionalGeneration.from_pretrained(other)
    scale("encoder.image_proj.weight")(model, None)
    model.save_pretrained(other)
    with pytest.raises(UserError, match="another encoder than model_name_or_path"):
        train(**changes, model_name_or_path=str(other), resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache_encoder_outputs": True, "freeze_encoder": False}, "cache_encoder_outputs needs a locked encoder"),
        ({"encoder_dtype": "bfloat16", "freeze_encoder": False}, "encoder_dtype needs a locked encoder"),
        ({"encoder_dtype": "bfloat16", "embed_gradient_through_encoder": True}, "Drop one of them"),
        ({"encoder_dtype": "int8"}, "must be one of float32, bfloat16"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(train, changes, words):
    with pytest.raises(UserError, match=words):
        train(**changes)


def test_weights_that_are_spread_over_processes_cannot_encode_by_themselves(parse):
    args, trainer_args = parse(cache_encoder_outputs=True)
    trainer_args.fsdp = ["full_shard"]  # set late: transformers 4 would leave it in the environment
    with pytest.raises(UserError, match="fsdp spreads its weights"):
        refuse_impossible(args, trainer_args)


@pytest.mark.parametrize("change", ["unlocked", "no resize"])
def test_what_has_no_fixed_outputs_is_not_cached(plan, change):
    def make(model, processor):
        if change == "unlocked":
            model.unlock_encoder()
        processor.image_processor.do_resize = change != "no resize"

    with pytest.raises(UserError, match="drop cache_encoder_outputs"):
        plan(change=make)


@pytest.mark.parametrize(("freeze_word_embed", "is_cached"), [(True, False), (False, True)])
def test_the_encoder_may_compute_in_half_precision_while_the_decoder_does_not(
    train, freeze_word_embed, is_cached, monkeypatch
):
    monkeypatch.setattr(fast_ofa, "is_slow", lambda dtype: False)
    changes = {"freeze_word_embed": freeze_word_embed, "max_steps": 4}
    full = train("full", **changes)
    half = train("half", **changes, encoder_dtype="bfloat16", cache_encoder_outputs=is_cached)
    assert 0 < largest_difference(full.folder, half.folder) < 5e-3
    assert half.metrics["eval_loss"] == pytest.approx(full.metrics["eval_loss"], rel=1e-2)


def test_the_summary_says_what_is_kept_and_how_large_it_is(train, capsys):
    train(cache_encoder_outputs=True, freeze_word_embed=True, max_steps=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cache")]
    assert "encoder outputs, 16 × 16 float32" in line
    assert "× 12 images = 0.00 GB, 0 images present" in line


def test_adapters_in_the_decoder_leave_the_encoder_cacheable(train):
    pytest.importorskip("peft", reason="needs peft (pip install ofa-hf[lora])")
    changes = {"lora_rank": 2, "max_steps": 4}
    plain, cached = train("plain", **changes), train("cached", **changes, cache_encoder_outputs=True)
    assert same_weights(plain, cached)
    (kept,) = (cached.folder / "encoder_cache").iterdir()
    assert kept.name.startswith("encoder-outputs-")
