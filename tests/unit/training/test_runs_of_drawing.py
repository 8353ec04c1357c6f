"""Runs that learn to draw, from images and texts to a folder that draws."""

import base64
import csv
import io
import json
import shutil
import signal
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_shop import weights, write_model

from ofa_hf.data.codes import ImageEncoder
from ofa_hf.errors import UserError
from ofa_hf.models import load_processor
from ofa_hf.prediction.text_to_image import DrawRequest, draw_files
from ofa_hf.training import finetune, finetuning, parse_arguments
from ofa_hf.training.image_codes import CodeMaker
from ofa_hf.training.locking import TEXT_PARTS


FEATURES = Features({"image": ImageFeature(), "text": [Value("string")]})
TEXTS = {"red": "#cc2222", "what": "#22aa44", "hat": "#2244cc", "red hat": "#ddcc22"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A table of texts and a folder of images."""
    folder = tmp_path_factory.mktemp("pairs")
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "text"])
        for number, (text, color) in enumerate(TEXTS.items()):
            Image.new("RGB", (64 + number, 64), color).save(folder / f"{number}.png")
            lines.writerow([f"{number}.png", text])
    return folder


@pytest.fixture
def write_arguments(drawer, pairs, tmp_path):
    """Write a file of arguments, changed, for a run into a folder of its own."""

    def write(name: str = "out", **changes):
        files = {f"{part}_caption_file": str(pairs / "pairs.csv") for part in ("train", "test")}
        files |= {f"{part}_image_file": str(pairs) for part in ("train", "test")}
        values = {
            "model_name_or_path": str(drawer),
            "output_dir": str(tmp_path / name),
            "cache_dir": str(tmp_path / "cache"),
            **files,
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "seed": 7,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            **changes,
        }
        (tmp_path / "args.json").write_text(json.dumps(values), encoding="utf-8")
        return tmp_path / "args.json"

    return write


@pytest.fixture
def learn(write_arguments):
    """Learn to draw with changed arguments."""
    return lambda *name, **changes: finetune(*parse_arguments(write_arguments(*name, **changes)))


def test_a_model_learns_to_draw_resumes_and_draws_then(learn, drawer, tmp_path, capsys):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"load_best_model_at_end": True, "label_smoothing": 0.1, "dropout": 0.1, "save_total_limit": 3}
    ran = learn(**options)
    messages = capsys.readouterr().err
    assert "4 rows with 4 targets, no problems" in messages
    state = json.loads((ran.folder / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert losses[1] < losses[0]
    assert state["best_model_checkpoint"].endswith("checkpoint-4"), "the lowest loss is the best"
    assert ran.metrics["eval_loss"] == pytest.approx(losses[1])

    before, after = weights(drawer), weights(ran.folder)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert not any("code_layernorm_embedding" in name or "decoder.image_rel_pos" in name for name in kept)
    assert {name.split(".")[1] for name in kept if name.startswith("decoder.")} == set(TEXT_PARTS)
    assert any(name.startswith("encoder.embed_images") for name in kept)
    assert "encoder.layers.0.fc1.weight" not in kept

    for folder in (ran.folder, ran.folder / "checkpoint-2"):
        request = DrawRequest(["red hat"], str(folder), str(tmp_path / f"drawn-{folder.name}"), num_images=1)
        assert draw_files(request) == 0
    shutil.rmtree(ran.folder / "checkpoint-4")
    learn(**options, resume_from_checkpoint=True)
    again = weights(ran.folder)
    assert all(torch.equal(after[name], again[name]) for name in after)


KILLED = """
import os, signal
from ofa_hf.cli import main
from ofa_hf.training.row_store import RowStore

write = RowStore.write

def write_and_die(store, *given):
    write(store, *given)
    store.flush()
    os.kill(os.getpid(), signal.SIGKILL)

RowStore.write = write_and_die
main(["finetune", {arguments!r}])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_that_is_killed_while_images_become_codes_is_continued(learn, write_arguments, forks, monkeypatch):
    killed = forks.run([sys.executable, "-c", KILLED.format(arguments=str(write_arguments()))])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    counts, encode = [], ImageEncoder.codes_of_pixels
    monkeypatch.setattr(
        ImageEncoder,
        "codes_of_pixels",
        lambda own, pixels, *rest: counts.append(len(pixels)) or encode(own, pixels, *rest),
    )
    ran = learn()
    assert sum(counts) == len(TEXTS) - 2  # those of one batch were on the disk
    assert ran.metrics["eval_loss"] > 0


def test_the_loss_is_among_codes_and_a_smaller_window_can_be_learned(learn, monkeypatch):
    batches, original = [], finetuning.OFATrainer.compute_loss

    def compute_loss(self, model, inputs, *rest, **named):
        batches.append(dict(inputs))
        return original(self, model, inputs, *rest, **named)

    monkeypatch.setattr(finetuning.OFATrainer, "compute_loss", compute_loss)
    ran = learn(image_size=32, per_device_train_batch_size=3, max_steps=3)  # the last of four texts comes alone
    first, number = load_processor(ran.folder).codes()
    assert len(batches) == 3
    for batch in batches:
        assert batch["code_masks"].tolist() == [True] * 3
        assert batch["labels"].shape == (3, 17)
        assert batch["word_sets"].tolist() in ([[0, 1, 2, 3, *range(first, first + number)]], [[-1]])
    processor = load_processor(ran.folder)
    assert processor.find_task().image["size"] == 32
    config = json.loads((ran.folder / "config.json").read_text(encoding="utf-8"))
    assert config["code_image_size"] == 32


def test_a_data_set_is_learned_from_and_every_text_of_an_image_counts(learn, tmp_path, capsys):
    images = [Image.new("RGB", (70, 64), color) for color in TEXTS.values()]
    texts = [["red", "a red hat"], ["what"], [""], ["hat"]]
    parts = {"image": images, "text": texts}
    DatasetDict(train=Dataset.from_dict(parts, features=FEATURES)).save_to_disk(tmp_path / "set")
    nothing = dict.fromkeys(f"{part}_{kind}_file" for part in ("train", "test") for kind in ("image", "caption"))
    ran = learn(**nothing, dataset_name=str(tmp_path / "set"), eval_split="train")
    assert "4 rows with 4 targets; skipped: 1 × empty target, 1 × no targets" in capsys.readouterr().err
    assert ran.metrics["eval_loss"] > 0


def base64_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def test_files_of_the_original_need_no_vqgan(learn, drawer, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(drawer, bare, ignore=shutil.ignore_patterns("vqgan"))
    codes = [" ".join(str(17 * number + place) for place in range(64)) for number in range(3)]
    three, four, two = tmp_path / "three.tsv", tmp_path / "four.tsv", tmp_path / "two.tsv"
    wrong = f"7\t1 2 3\ttoo few\n8\t{'9000 ' * 64}\tunknown\n"
    three.write_text("".join(f"{n}\t{one}\tred hat\n" for n, one in enumerate(codes)) + wrong, encoding="utf-8")
    image = base64_of(Image.new("RGB", (8, 8)))
    four.write_text("".join(f"{n}\t{image}\tred hat\t{one}\n" for n, one in enumerate(codes)), encoding="utf-8")
    two.write_text("0\tred hat\n", encoding="utf-8")
    nothing = {"train_image_file": None, "test_image_file": None, "model_name_or_path": str(bare)}
    ran = learn(**nothing, train_caption_file=str(three), test_caption_file=str(four))
    assert "3 rows with 3 targets; skipped: 2 × unfit answer" in capsys.readouterr().err
    assert ran.metrics["eval_loss"] > 0
    assert not (ran.folder / "vqgan").exists()
    with pytest.raises(UserError, match="has the columns id, text and nothing to learn"):
        learn("other", **nothing, train_caption_file=str(two), test_caption_file=None)


def test_drawing_and_captioning_share_a_run(learn, pairs):
    tasks = {"image_generation": {"weight": 2}, "caption": {}}
    ran = learn(tasks=tasks, max_steps=3, image_column="image", target_column="text")
    assert ran.metrics["eval_mean_score"] == ran.metrics["eval_caption_cider_d"]
    assert (ran.folder / "vqgan").is_dir()
    generation = load_processor(ran.folder).find_task("caption").generation
    assert (generation["do_sample"], generation["max_length"]) == (False, 60), "not those of codes"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image_size": 60}, "would draw images of 60 pixels. Accepted: one size, a multiple of 8 up to 64"),
        ({"image_size": 72}, "a multiple of 8 up to 64"),
        ({"task": "caption", "image_size": 64}, "image_size is the size of images to draw, but no task"),
        ({"train_caption_file": None, "dataset_name": "x", "streaming": True}, "become codes before the training"),
        ({"train_image_file": None}, "train_image_file is missing: the task image_generation needs images"),
        ({"cache_encoder_outputs": True}, "freeze_encoder is false"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_a_model_is_loaded(learn, monkeypatch, changes, why):
    monkeypatch.setattr(finetuning, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    monkeypatch.setattr(CodeMaker, "__call__", lambda *args: pytest.fail("images were encoded"))
    nothing = (
        dict.fromkeys(("train_image_file", "test_image_file", "test_caption_file"))
        if "dataset_name" in changes
        else {}
    )
    with pytest.raises(UserError, match=why):
        learn(**nothing, **changes)


def test_a_model_without_a_vqgan_is_refused_before_data_is_read(learn, drawer, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(drawer, bare, ignore=shutil.ignore_patterns("vqgan"))
    monkeypatch.setattr("ofa_hf.training.sources.load_task_files", lambda *args: pytest.fail("data was read"))
    with pytest.raises(UserError, match="has no vqgan/code_logits.safetensors.*--vqgan last.ckpt"):
        learn(model_name_or_path=str(bare))
    with pytest.raises(UserError, match="no prompt in the language 'zh'"):
        learn(model_name_or_path=str(write_model(tmp_path / "zh")), task="image_generation")
