"""Texts become images: one pipeline, one command, a folder that continues an interrupted run."""

import json
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
import transformers
from drawing_checkpoint import write_drawing_files
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clip import write_clip

from ofa_hf import image_processing_ofa
from ofa_hf.cli import main
from ofa_hf.conversion.convert import convert
from ofa_hf.errors import UserError
from ofa_hf.evaluation.metrics import metric_of
from ofa_hf.image_processing_ofa import load_image_decoder
from ofa_hf.models import load_model, read_tasks
from ofa_hf.pipeline_ofa import OFATextToImagePipeline
from ofa_hf.prediction import text_to_image
from ofa_hf.prediction.clip import ClipScorer
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.processes import Processes
from ofa_hf.prediction.questions import Inputs, find_rows
from ofa_hf.prediction.text_to_image import DrawRequest, draw_files, sheet
from ofa_hf.tasks_ofa import TASKS, Task


pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipe(drawer):
    model, processor = load_model(drawer, device="cpu")
    return OFATextToImagePipeline(model=model, processor=processor)


def same(first, second) -> bool:
    return [one["image"].tobytes() for one in first] == [one["image"].tobytes() for one in second]


# ---------------------------------------------------------------------------------------------------- pipeline


def test_a_text_becomes_images_best_first(pipe):
    images = pipe("red hat", num_images=3, seed=7)
    assert [(one["image"].size, one["image"].mode) for one in images] == [((64, 64), "RGB")] * 3
    scores = [one["score"] for one in images]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_a_seed_draws_the_same_images_whatever_was_drawn_before_and_leaves_the_generator_alone(pipe):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    alone = pipe("red hat", num_images=2, seed=7)
    assert torch.equal(torch.rand(2), expected)
    both = pipe(["what", "red hat"], num_images=2, seed=7)
    assert same(both[1], alone)
    assert not same(pipe("red hat", num_images=2, seed=8), alone)
    assert not same(pipe("red hat"), pipe("red hat"))


def test_the_best_code_at_each_place_and_beams_need_no_seed(pipe):
    assert same(pipe("red hat", do_sample=False), pipe("red hat", do_sample=False))
    greedy, beams = pipe("red hat", do_sample=False), pipe("red hat", num_beams=3, num_images=2)
    assert len(beams) == 2
    assert beams[0]["score"] >= greedy[0]["score"] - 1e-5
    for options in ({"num_beams": 2}, {"do_sample": False}):
        with pytest.raises(ValueError, match="num_images=3, but a search with . beams finds no more"):
            pipe("red hat", num_images=3, **options)


def test_what_other_pipelines_take_is_taken_here(pipe):
    expected = pipe("red hat", num_images=2, seed=7)
    assert same(pipe("red hat", num_return_sequences=2, seed=7), expected)
    settings = transformers.GenerationConfig(do_sample=True, top_k=256, num_beams=1)
    assert same(pipe("red hat", num_images=2, seed=7, generation_config=settings, on_step=print), expected)
    assert pipe([]) == []


def test_each_step_is_told_and_may_end_the_work(pipe):
    told = []
    alone = pipe("red hat", num_images=2, seed=7, on_step=lambda *step: told.append(step))
    assert told == [(step, 66) for step in range(1, 67)]  # the start token, 64 codes, the end
    assert same(pipe("red hat", num_images=2, seed=7), alone)
    told.clear()
    beams = pipe("red hat", num_beams=2, on_step=lambda *step: told.append(step))
    assert told == [(step, 66) for step in range(1, 67)]
    assert same(pipe("red hat", num_beams=2), beams)

    def leave(done, total):
        if done == 5:
            raise KeyError("left")

    for options in ({}, {"num_beams": 2}):
        with pytest.raises(KeyError, match="left"):
            pipe("red hat", on_step=leave, **options)


def test_the_score_of_an_image_is_that_of_its_codes_whichever_loop_draws_it(pipe, monkeypatch):
    expected = pipe("red hat", do_sample=False)
    monkeypatch.setattr(type(pipe.model), "_sample", transformers.GenerationMixin._sample)  # gives no scores
    found = pipe("red hat", do_sample=False)
    assert same(found, expected)
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a text"),
        (None, "got None"),
        ("hat " * 65, "65 words"),
        ("x" * 60, "tokens, its prompt included. The model reads at most 60"),
    ],
)
def test_texts_that_cannot_be_drawn_are_refused(pipe, text, message):
    with pytest.raises(ValueError, match=message):
        pipe(text)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_a_number_of_images_that_is_none_is_refused(pipe, number):
    with pytest.raises(ValueError, match="num_images=.* Accepted: a whole number from 1"):
        pipe("red hat", num_images=number)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "7", True])
def test_a_seed_that_is_none_is_refused(pipe, seed):
    with pytest.raises(ValueError, match="seed=.* Accepted: a whole number from 0"):
        pipe("red hat", seed=seed)


def test_a_window_that_the_model_has_no_places_for_is_refused(pipe, monkeypatch):
    monkeypatch.setitem(pipe.processor.tasks["image_generation"], "image", {"size": 128})
    with pytest.raises(ValueError, match="draws images of 128 × 128 pixels, but the model has places for .*=64"):
        pipe("red hat")


def test_the_processor_takes_the_steps_one_by_one(pipe):
    processor = pipe.processor
    inputs = processor(text=["red hat", "what"], task="image_generation")
    assert inputs["code_masks"].tolist() == [True, True]
    sequences = pipe.model.generate(**inputs, **processor.generation_kwargs("image_generation"))
    assert sequences.shape == (2, 66)
    images = processor.post_process(sequences, task="image_generation")
    assert [image.size for image in images] == [(64, 64)] * 2
    with pytest.raises(ValueError, match="8 × 8 codes"):
        processor.post_process(sequences[:, :40], task="image_generation")
    with pytest.raises(ValueError, match="takes no text_target"):
        processor(text="red hat", text_target="what", task="image_generation")


# -------------------------------------------------------------------------------------------------- conversion


def test_a_converted_folder_says_what_it_holds(drawer):
    card = (drawer / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-to-image" in card
    assert "`vqgan/` is the VQGAN" in card
    assert 'pipe("a red dress", num_images=4, seed=7)[0]["image"]' in card
    account = json.loads((drawer / "conversion.json").read_text(encoding="utf-8"))["vqgan"]
    assert account["weights"] == {"renamed": 211, "code logits": 2}
    tasks, default, _ = read_tasks(drawer)
    assert (default, tasks[default].answer, tasks[default].image) == ("image_generation", "image", {"size": 64})
    assert list(json.loads((drawer / "config.json").read_text(encoding="utf-8"))["custom_pipelines"]) == [
        "text-to-image"
    ]


def test_the_published_archive_is_converted_as_it_is_and_nothing_is_left_of_it(drawer, tmp_path):
    checkpoint, vocabulary, vqgan, settings = write_drawing_files(tmp_path)
    archive = tmp_path / "image_gen_large_best.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(checkpoint, "image_gen_large_best/image_gen_large_best.pt")
        file.write(vqgan, "image_gen_large_best/vqgan/last.ckpt")
        file.write(settings, "image_gen_large_best/vqgan/model.yaml")
    convert(archive, tmp_path / "out" / "large", vocabulary, verify=False)
    assert (tmp_path / "out" / "large" / "vqgan" / "config.json").is_file()
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["large"]
    with pytest.raises(UserError, match="holds an earlier conversion"):
        convert(archive, tmp_path / "out" / "large", vocabulary)
    with pytest.raises(UserError, match="has its VQGAN with it. Leave out --vqgan"):
        convert(archive, tmp_path / "other", vocabulary, vqgan=vqgan, vqgan_config=settings)
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("a.pt", "last.ckpt", "model.yaml"):
            file.writestr(name, b"junk" * 100)
    with pytest.raises(UserError, match=r"best.zip/a.pt cannot be converted"):
        convert(archive, tmp_path / "other", vocabulary)


def test_a_search_may_be_the_way_a_checkpoint_draws(tmp_path):
    checkpoint, vocabulary, vqgan, settings = write_drawing_files(tmp_path)
    options = {"vqgan": vqgan, "vqgan_config": settings, "verify": False}
    convert(checkpoint, tmp_path / "out", vocabulary, generation={"num_beams": 2}, **options)
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert (kept["num_beams"], kept.get("do_sample", False), kept["max_length"]) == (2, False, 66)
    assert "top_k" not in kept
    model, processor = load_model(tmp_path / "out", device="cpu")
    pipe = OFATextToImagePipeline(model=model, processor=processor)
    assert same(pipe("red hat", seed=1), pipe("red hat", seed=2))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prompt": "draw"}, "has no slot"),
        ({"prompt": "{a} and {b}"}, "has 2 slots"),
        ({"generation": {"num_beams": 0}}, "0 beams"),
        ({"image_size": 0}, "Images of 0 pixels cannot be drawn .* multiples of 8 up to 64"),
        ({"image_size": 128}, "Images of 128 pixels cannot be drawn .* multiples of 8 up to 64"),
    ],
)
def test_choices_with_which_nothing_can_be_drawn_are_refused(tmp_path, option, message):
    checkpoint, vocabulary, vqgan, settings = write_drawing_files(tmp_path)
    with pytest.raises(UserError, match=message):
        convert(checkpoint, tmp_path / "out", vocabulary, vqgan=vqgan, vqgan_config=settings, **option)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_draws_is_not_converted_without_its_vqgan(tmp_path):
    checkpoint, vocabulary, vqgan, settings = write_drawing_files(tmp_path)
    with pytest.raises(UserError, match="needs its VQGAN: add --vqgan"):
        convert(checkpoint, tmp_path / "out", vocabulary)
    with pytest.raises(UserError, match="which needs no VQGAN"):
        convert(checkpoint, tmp_path / "out", vocabulary, task="caption", vqgan=vqgan, vqgan_config=settings)
    assert not (tmp_path / "out").exists()


def test_a_published_checkpoint_is_downloaded_only_if_it_can_be_converted(tmp_path, monkeypatch):
    *_, vqgan, settings = write_drawing_files(tmp_path)
    for module in ("convert", "sources"):
        monkeypatch.setattr(f"ofa_hf.conversion.{module}.download_file", lambda url: pytest.fail(f"downloaded {url}"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    cases = [
        ("image_gen_base_best", {}, "needs its VQGAN: add --vqgan"),
        ("image_gen_base_best", {"vqgan": settings, "vqgan_config": settings}, "cannot be converted"),
        ("image_gen_large_best", {"vqgan": vqgan, "vqgan_config": settings}, "has its VQGAN with it"),
        ("image_gen_large_best", {"out": tmp_path / "full"}, "holds other files"),
    ]
    for name, options, message in cases:
        with pytest.raises(UserError, match=message):
            convert(name, **{"out": tmp_path / "out", **options})
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"ofa-hf\[draw\]"):
        convert("image_gen_large_best", tmp_path / "out")


# ------------------------------------------------------------------------------------------------- the command


def files_of(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_command_draws_and_continues(drawer, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["draw", "red hat", "what", "--model", str(drawer), "--num-images", "2", "--output", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}/0001-1.png\tred hat", f"{out}/0002-1.png\twhat"]
    names = [f"{number}-{kind}.png" for number in ("0001", "0002") for kind in ("1", "2", "sheet")]
    assert files_of(out) == [*names, "images.jsonl", "settings.json"]
    assert Image.open(out / "0001-sheet.png").size == (136, 64)
    before = {name: (out / name).read_bytes() for name in names}
    first, second = (out / "images.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "images.jsonl").write_text(f"{first}\n{second[:20]}", encoding="utf-8")  # as a crash leaves it
    (out / "0002-1.png").unlink()
    assert main([*command, "--json"]) == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    assert [line["text"] for line in lines_of(out)] == ["red hat", "what"]
    streams = capsys.readouterr()
    assert "1 of 2 texts drawn, 0 not, 1 drawn before." in streams.err
    line = json.loads(streams.out.splitlines()[0])
    assert (line["number"], line["text"], line["image"]) == ("1", "red hat", "0001-1.png")
    assert [one["image"] for one in line["images"]] == ["0001-1.png", "0001-2.png"]
    assert line["images"][0]["score"] >= line["images"][1]["score"]
    (out / "0001-2.png").unlink()  # by mistake
    assert main(command) == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    assert len(lines_of(out)) == 2


def test_one_beam_takes_the_best_codes(drawer, pipe, tmp_path):
    out = tmp_path / "out"
    options = ["--num-images", "1", "--num-beams", "1", "--output", str(out)]
    assert main(["draw", "red hat", "--model", str(drawer), *options]) == 0
    greedy = pipe("red hat", do_sample=False)[0]["image"]
    assert Image.open(out / "0001-1.png").tobytes() == greedy.tobytes()


def test_what_a_full_disk_interrupts_is_continued(drawer, tmp_path, monkeypatch):
    request = DrawRequest(["red hat", "what"], str(drawer), str(tmp_path / "out"), num_images=2)
    assert draw_files(DrawRequest(**{**vars(request), "output": str(tmp_path / "whole")})) == 0
    write = text_to_image.write_image

    def fill(path, *given):
        if path.name == "0002-2.png":
            raise OSError(28, "No space left on device")
        write(path, *given)

    monkeypatch.setattr(text_to_image, "write_image", fill)
    with pytest.raises(UserError, match="The disk that holds .*out is full. What is drawn is kept."):
        draw_files(request)
    assert [line["text"] for line in lines_of(tmp_path / "out")] == ["red hat"]
    monkeypatch.setattr(text_to_image, "write_image", write)
    assert draw_files(request) == 0
    for name in files_of(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_processes_share_the_texts_and_the_first_one_merges(drawer, tmp_path, monkeypatch):
    """One after the other here: what they tell each other is tested with `ofa-hf caption`."""
    request = DrawRequest(["red hat", "what", "hat"], str(drawer), str(tmp_path / "out"), num_images=1)
    for rank in (1, 0):
        fake = Processes({})
        fake.count, fake.rank = 2, rank
        fake._all_of = lambda value: [request.settings() if value == {} else value]  # that of the first one
        monkeypatch.setattr(Processes, "__enter__", lambda own: own)
        monkeypatch.setattr(Processes, "__exit__", lambda own, *_: None)
        monkeypatch.setattr(text_to_image, "Processes", lambda fake=fake: fake)
        assert draw_files(request) == 0
    assert [line["text"] for line in lines_of(tmp_path / "out")] == ["red hat", "what", "hat"]
    assert files_of(tmp_path / "out") == [*(f"000{n}-1.png" for n in (1, 2, 3)), "images.jsonl", "settings.json"]


def test_another_run_does_not_mix_with_it(drawer, tmp_path, monkeypatch):
    request = DrawRequest(["red hat"], str(drawer), str(tmp_path / "out"), num_images=1)
    assert draw_files(request) == 0
    monkeypatch.setattr(text_to_image, "load_model", lambda *_, **__: pytest.fail("loaded"))
    shutil.copytree(drawer, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "generation_config.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "generation_config.json").write_text(json.dumps(settings | {"top_k": 9}), encoding="utf-8")
    changes = [
        ({"texts": ["what"]}, "text 1 was 'red hat'"),
        ({"seed": 1}, "with seed=42 instead of 1"),
        ({"num_images": 2}, "with num_images=1 instead of 2"),
        ({"options": {"top_k": 3}}, "with options={} instead of {'top_k': 3}"),
        ({"model": str(tmp_path / "other")}, "with another model than .*other"),
        ({"clip": "owner/clip"}, "with another CLIP than owner/clip"),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=f"is of another run.*{message}"):
            draw_files(replace(request, **change))
    assert draw_files(request) == 0


def test_a_run_goes_on_with_a_model_that_was_moved_but_not_with_one_that_was_changed(drawer, tmp_path, capsys):
    (tmp_path / "here" / "checkpoint-1").mkdir(parents=True)
    shutil.copytree(drawer, tmp_path / "here", dirs_exist_ok=True)
    request = DrawRequest(["red hat"], str(tmp_path / "here"), str(tmp_path / "out"), num_images=1)
    assert draw_files(request) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there" / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / "there" / "checkpoint-1" / "model.safetensors").write_bytes(b"of a training")
    moved = replace(request, model=str(tmp_path / "there"), texts=["red hat", "what"])
    assert draw_files(moved) == 0
    assert "1 of 2 texts drawn, 0 not, 1 drawn before." in capsys.readouterr().err
    weights = load_file(tmp_path / "there" / "vqgan" / "diffusion_pytorch_model.safetensors")
    weights["quantize.embedding.weight"] += 1
    save_file(weights, tmp_path / "there" / "vqgan" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="with another model than .*there"):
        draw_files(moved)


def test_a_table_is_drawn_and_its_bad_rows_are_counted(drawer, tmp_path, capsys):
    table = tmp_path / "texts.csv"
    table.write_text(f'id,caption\n1,"red\nhat"\n2,\n3,{"hat " * 65}\n4,what\n', encoding="utf-8")
    out = tmp_path / "out"
    assert main(["draw", str(table), "--model", str(drawer), "--num-images", "1", "--output", str(out)]) == 1
    assert [(line["number"], line["text"]) for line in lines_of(out)] == [("1", "red\nhat"), ("3", "what")]
    assert files_of(out) == ["0001-1.png", "0003-1.png", "images.jsonl", "settings.json"]
    printed, errors = capsys.readouterr()
    assert printed.splitlines() == [f"{out}/0001-1.png\tred hat", f"{out}/0003-1.png\twhat"]
    assert "65 words" in errors
    assert "2 of 4 texts drawn, 2 not." in errors


def test_a_text_that_is_refused_is_not_reported_as_cut(monkeypatch):
    monkeypatch.setattr(Task, "clean", lambda *_: pytest.fail("cut"))
    text = " ".join(["hat"] * 70)
    assert find_rows(Inputs([text]), TASKS["image_generation"], "en").names == [text]


def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(drawer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_to_image, "load_model", lambda *_, **__: pytest.fail("loaded"))
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    bare = tmp_path / "bare"
    shutil.copytree(drawer, bare, ignore=shutil.ignore_patterns("vqgan"))
    narrow, foreign = tmp_path / "narrow", tmp_path / "foreign"
    for folder, file, values in (
        (narrow, "config.json", {"code_image_size": 32}),
        (foreign, "vqgan/config.json", {"num_vq_embeddings": 512}),
    ):
        shutil.copytree(drawer, folder)
        kept = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(kept | values), encoding="utf-8")
    other_factor = tmp_path / "other_factor"
    shutil.copytree(drawer, other_factor)
    vqgan = load_image_decoder(str(drawer))
    levels = {"block_out_channels": [32, 32, 64]}
    levels |= {f"{side}_block_types": list(vqgan.config[f"{side}_block_types"])[:3] for side in ("down", "up")}
    type(vqgan).from_config(dict(vqgan.config) | levels).save_pretrained(other_factor / "vqgan")
    cases = [
        ({"model": str(narrow)}, "draws images of 64 × 64 pixels, but the model has places for .*=32"),
        ({"model": str(foreign)}, "vqgan"),
        ({"model": str(other_factor)}, "8,192 codes of 4 × 4 pixels. Accepted: 8,192 codes of 8 × 8"),
        ({"texts": [str(table)]}, "no column text or caption or"),
        ({"texts": [str(table)], "column": "c"}, "no column c; it has a, b"),
        ({"texts": [" "]}, "Nothing to answer"),
        ({"options": {"num_beams": 2}}, "--num-beams 2 finds at most as many images, but --num-images is 4"),
        ({"options": {"num_beams": 4, "top_k": 9}}, "--top-k 9 is for samples"),
        ({"options": {"top_k": 0}}, "--top-k 0: "),
        ({"options": {"temperature": 0.0}}, "--temperature 0.0: "),
        ({"num_images": 0}, "--num-images 0: draw at least one image"),
        ({"seed": -1}, "--seed -1 is no seed. Accepted: whole numbers from 0"),
        ({"output": str(tmp_path / "file")}, "is a file"),
        ({"model": str(bare)}, "has no folder vqgan"),
        ({"task": "caption"}, "does not draw: its tasks are image_generation"),
        ({"clip": str(tmp_path)}, "The CLIP .* cannot be loaded .* Give a folder or Hub id of a CLIP"),
        ({"clip": str(tmp_path / "none")}, "The CLIP .*none is no folder"),
    ]
    for change, message in cases:
        values = {"texts": ["red hat"], "model": str(drawer), "output": str(tmp_path / "out"), **change}
        with pytest.raises(UserError, match=message):
            draw_files(DrawRequest(**values))
        assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_drawn_nothing_is_written(drawer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_image, "load_model", lambda *_, **__: pytest.fail("loaded"))
    assert draw_files(DrawRequest(["hat " * 65, "x" * 60], str(drawer), str(tmp_path / "out"))) == 2
    assert not (tmp_path / "out").exists()


def test_another_language_is_told_once(drawer, tmp_path, capfd):
    assert (
        main(["draw", "红色 hat", "--model", str(drawer), "--num-images", "1", "--output", str(tmp_path / "o")]) == 0
    )
    assert capfd.readouterr().err.count("Chinese") == 1


def test_a_missing_extra_is_named(drawer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    image_processing_ofa._load_image_decoder.cache_clear()
    with pytest.raises(UserError, match=r"ofa-hf\[draw\]"):
        draw_files(DrawRequest(["red hat"], str(drawer), str(tmp_path / "out")))


def test_other_commands_and_training_send_to_the_one_that_draws(drawer, pipe):
    with pytest.raises(UserError, match="ofa-hf draw"):
        next(predict(pipe.model, pipe.processor, [{"id": 1, "text": "red hat"}]))
    with pytest.raises(UserError, match="which a CLIP scores"):
        metric_of(TASKS["image_generation"])
    assert main(["summarize", "red", "--model", str(drawer), "--task", "image_generation"]) == 1


def test_a_sheet_has_the_best_image_first():
    images = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (10, 20, 30)]
    whole = sheet(images)
    assert whole.size == (40, 40)
    assert [whole.getpixel(place)[0] for place in ((0, 0), (24, 0), (0, 24), (24, 24))] == [10, 20, 30, 255]


# -------------------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_clip_ranks_images_by_the_cosine_with_the_text(clip, drawer, tmp_path):
    scorer = ClipScorer(str(clip))
    images = [Image.effect_noise((64, 64), 10 + 40 * number).convert("RGB") for number in range(4)]
    cosines = scorer("a photo of a dog", images)
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert scorer("a photo/ of a dog", images) == cosines  # slashes are taken out, as in the original
    assert scorer("a photo of a dog", images[::-1]) == pytest.approx(cosines[::-1], abs=1e-6)
    with pytest.raises(ValueError, match="tokens for CLIP, which reads 12"):
        scorer("dog " * 20, images)
    request = DrawRequest(["hat"], str(drawer), str(tmp_path / "out"), num_images=3, clip=str(clip))
    assert draw_files(request) == 0
    scores = [one["clip_score"] for one in lines_of(tmp_path / "out")[0]["images"]]
    assert scores == sorted(scores, reverse=True)
    drawn = [Image.open(tmp_path / "out" / f"0001-{rank}.png") for rank in (1, 2, 3)]
    assert scorer("hat", drawn) == pytest.approx(scores, abs=1e-5)
