"""Promises of `ofa_hf.prediction.loop`: the pipeline's answers in order, past broken images, one decode per image."""

import io
import math
import threading

import pytest
import tiny_shop
import torch
from PIL import Image

from ofa_hf import (
    OFAImageToTextPipeline,
    OFAObjectDetectionPipeline,
    OFAProcessor,
    OFAQuestionAnsweringPipeline,
    fast_ofa,
)
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import load_image
from ofa_hf.models import load_model
from ofa_hf.prediction import loop
from ofa_hf.prediction.batches import collate
from ofa_hf.prediction.loop import answer_settings, predict


BEAMS = {"num_beams": 3, "max_length": 8}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(tiny_shop.write_model(tmp_path_factory.mktemp("loop") / "model"), device="cpu")


def png(colour: str, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side + 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [png(colour) for colour in ("red", "lime", "blue", "white", "black")]
ROWS = [{"id": str(number), "image": {"bytes": image, "path": None}} for number, image in enumerate(IMAGES)]
BROKEN = {"id": "broken", "image": {"bytes": b"no image", "path": None}}


def test_answers_and_scores_are_those_of_the_pipeline(loaded):
    pipeline = OFAImageToTextPipeline(model=loaded.model, processor=loaded.processor, device="cpu")
    options = {**BEAMS, "return_scores": True, "batch_size": 2}
    expected = pipeline(list(IMAGES), num_return_sequences=2, **options)
    predictions = list(predict(*loaded, ROWS, num_answers=2, **options))
    assert [each.id for each in predictions] == ["0", "1", "2", "3", "4"]
    for prediction, rows in zip(predictions, expected, strict=True):
        assert [answer["text"] for answer in prediction.answers] == [row["generated_text"] for row in rows]
        assert [answer["score"] for answer in prediction.answers] == pytest.approx([row["score"] for row in rows])


def test_a_prompt_takes_the_place_of_the_checkpoints_own(loaded):
    asked = [list(predict(*loaded, ROWS[:1], prompt=prompt, return_scores=True)) for prompt in (None, "红")]
    own = list(predict(*loaded, ROWS[:1], prompt=loaded.processor.prompt_for(), return_scores=True))
    assert asked[0] == own != asked[1]


def test_broken_images_have_no_answer_cost_no_place_in_a_batch_and_keep_their_place_in_order(loaded, monkeypatch):
    sizes, failures, generate = [], [], loaded.model.generate
    monkeypatch.setattr(
        loaded.model, "generate", lambda **inputs: sizes.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    rows = [ROWS[0], BROKEN, ROWS[1], ROWS[2], BROKEN, BROKEN]
    predictions = list(predict(*loaded, rows, batch_size=2, on_failure=lambda *failure: failures.append(failure)))
    assert [each.id for each in predictions] == ["0", "broken", "1", "2", "broken", "broken"]
    assert [bool(each.answers) for each in predictions] == [True, False, True, True, False, False]
    assert predictions[1].text == ""
    assert sizes == [2, 1]
    assert [id_ for id_, _ in failures] == ["broken"] * 3
    assert "not an image" in str(failures[0][1])


def test_each_image_is_decoded_once_in_a_thread(loaded, monkeypatch):
    threads, load = [], loop.load_image

    def count(image):
        threads.append(threading.current_thread().name)
        return load(image)

    monkeypatch.setattr(loop, "load_image", count)
    list(predict(*loaded, ROWS, batch_size=2, return_scores=True))
    assert len(threads) == len(ROWS)
    assert threading.main_thread().name not in threads


def test_the_model_is_left_as_it_was_even_if_nobody_reads_on(loaded):
    loaded.model.train()
    predictions = predict(*loaded, ROWS, batch_size=1)
    next(predictions)
    assert not loaded.model.training
    predictions.close()
    assert loaded.model.training
    loaded.model.eval()


TASKS = {"caption": {}, "material": {"prompt": "一个{product}?", "generation": {"num_beams": 2}}}


def test_a_task_fills_its_prompt_from_the_row_and_brings_its_settings(loaded, monkeypatch):
    asked, generate = [], loaded.model.generate
    monkeypatch.setattr(loaded.model, "generate", lambda **given: asked.append(given) or generate(**given))
    processor = OFAProcessor(loaded.processor.image_processor, loaded.processor.tokenizer, tasks=TASKS)
    rows = [{**row, "product": product} for row, product in zip(ROWS, ("红", "蓝色的方块"))]
    assert len(list(predict(loaded.model, processor, rows, task="material"))) == 2
    expected = processor(text=["一个红?", "一个蓝色的方块?"])
    assert asked[0]["input_ids"].tolist() == expected["input_ids"].tolist()
    assert asked[0]["attention_mask"].tolist() == expected["attention_mask"].tolist()
    assert asked[0]["num_beams"] == 2
    with pytest.raises(UserError, match="no task 'nothing'"):
        list(predict(loaded.model, processor, rows, task="nothing"))


@pytest.mark.parametrize("starts_with", [None, ""])
def test_a_length_of_the_call_counts_where_the_task_limits_new_tokens(loaded, starts_with):
    settings = {"generation": {"max_new_tokens": 12, "min_new_tokens": 1}}
    settings |= {} if starts_with is None else {"starts_with": starts_with}
    tasks = {"vqa": {"prompt": "{question}", **settings}}
    processor = OFAProcessor(loaded.processor.image_processor, loaded.processor.tokenizer, tasks=tasks)
    pipeline = OFAQuestionAnsweringPipeline(model=loaded.model, processor=processor, device="cpu")
    rows = [{**ROWS[0], "question": "红"}]
    for length, most in ((None, 12), (4, 3), (1, 1)):
        given = {} if length is None else {"max_length": length}
        prepared = loop._Preparation(loaded.model, processor, 1, given).question("vqa")
        assert prepared.settings["max_new_tokens"] == most
        (prediction,) = predict(loaded.model, processor, rows, **given)
        assert 0 < prediction.text.count("<") <= most  # symbols of this model
        assert pipeline(image=IMAGES[0], question="红", **given)[0]["answer"] == prediction.text


def test_a_row_without_an_image_is_a_failure_of_that_row(loaded):
    failures = []
    rows = [{"id": "bare", "image": None}, ROWS[0]]
    predictions = list(predict(*loaded, rows, on_failure=lambda *failure: failures.append(failure)))
    assert [bool(each.answers) for each in predictions] == [False, True]
    assert "bare has no image" in str(failures[0][1])


def test_each_answer_has_a_beam(loaded):
    defaults = loaded.model.generation_config
    assert answer_settings(defaults, 1, {}) == {"num_return_sequences": 1}
    assert answer_settings(defaults, 6, {}) == {"num_return_sequences": 6, "num_beams": 6}
    assert answer_settings(defaults, 1, {"num_beams": 1}) == {"num_return_sequences": 1, "num_beams": 1}
    with pytest.raises(UserError, match="2 beams cannot give 3 answers"):
        answer_settings(defaults, 3, {"num_beams": 2})


def test_prompts_are_padded_on_the_right_and_starts_of_answers_on_the_left():
    rows = [{name: torch.tensor([ids]) for name in ("input_ids", "decoder_input_ids")} for ids in ([0, 7, 2], [0, 2])]
    for row in rows:
        row["decoder_attention_mask"] = torch.ones_like(row["input_ids"])
    batch = collate(rows, pad_token_id=1)
    assert batch["input_ids"].tolist() == [[0, 7, 2], [0, 2, 1]]
    assert batch["decoder_input_ids"].tolist() == [[0, 7, 2], [1, 0, 2]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]


def with_tasks(loaded, **tasks):
    processor = loaded.processor
    return OFAProcessor(processor.image_processor, processor.tokenizer, tasks=tasks)


def test_boxes_are_answered_in_pixels_of_each_image(loaded):
    processor = with_tasks(loaded, grounding={"prompt": "{text}"})
    rows = [{**row, "text": "红"} for row in ROWS]
    answers = [prediction.answers[0] for prediction in predict(loaded.model, processor, rows, return_scores=True)]
    assert all(list(answer) == ["box", "score"] for answer in answers)
    pipeline = OFAObjectDetectionPipeline(model=loaded.model, processor=processor, device="cpu")
    for answer, image in zip(answers, IMAGES, strict=True):
        (expected,) = pipeline(image, candidate_labels="红")
        assert answer["box"] == expected["box"]
        assert answer["score"] == pytest.approx(math.log(expected["score"]), abs=1e-4)


def test_the_best_answers_of_a_list_come_with_their_log_probabilities(loaded):
    processor = with_tasks(loaded, vqa={})
    rows = [{**row, "question": "红" * (1 + index)} for index, row in enumerate(ROWS)]
    choices = ["红", "红红", "的"]
    predictions = list(
        predict(loaded.model, processor, rows, choices=choices, num_answers=2, return_scores=True, batch_size=3)
    )
    for prediction, row in zip(predictions, rows, strict=True):
        inputs = processor(images=load_image(row["image"]), text=row["question"], task="vqa")
        scores = loaded.model.score_choices(processor.encode_choices(choices), **inputs)[0]
        best = scores.topk(2)
        assert [answer["text"] for answer in prediction.answers] == [choices[index] for index in best.indices]
        found = [answer["score"] for answer in prediction.answers]
        assert found == pytest.approx(best.values.tolist(), abs=1e-4)
    with pytest.raises(UserError, match="chooses among answers, but none were given"):
        next(predict(loaded.model, with_tasks(loaded, x={"prompt": "?", "answer": "choice"}), ROWS))
    with pytest.raises(UserError, match="are the same to the model"):
        next(predict(loaded.model, processor, rows, choices=["红", "红"]))


SEVERAL = {
    "caption": {},
    "vqa": {},
    "colour": {"prompt": "{question}的颜色?", "answer": "choice", "choices": ["红", "红红", "绿"]},
    "grounding": {"prompt": "{text}"},
}


def questions_about(images) -> list[dict]:
    """Rows of four tasks about each image, next to each other."""
    rows = [{"task": "caption"}, {"task": "vqa", "question": "红?"}, {"task": "colour", "question": "方块"}]
    rows += [{"task": "grounding", "text": "红"}, {"task": "vqa", "question": "什么颜色的?"}]
    return [
        {"id": (number, at), "image": image, **row}
        for number, image in enumerate(images)
        for at, row in enumerate(rows)
    ]


@pytest.mark.parametrize("is_open", [True, False])
def test_questions_about_one_image_decode_it_once_and_run_the_resnet_once(loaded, monkeypatch, is_open):
    monkeypatch.setattr(fast_ofa, "ENABLED", is_open)
    processor, decoded, embedded = with_tasks(loaded, **SEVERAL), [], []
    load, embed = loop.load_image, loaded.model.encoder.embed_image_cells
    monkeypatch.setattr(loop, "load_image", lambda image: decoded.append(image) or load(image))
    monkeypatch.setattr(
        loaded.model.encoder,
        "embed_image_cells",
        lambda pixels, *more: embedded.append(len(pixels)) or embed(pixels, *more),
    )
    rows = questions_about(row["image"] for row in ROWS)
    options = {"num_beams": 2, "return_scores": True}
    found = list(predict(loaded.model, processor, rows, batch_size=3, **options))
    assert (len(decoded), sum(embedded)) == (5, 5)
    assert [each.id for each in found] == [row["id"] for row in rows]
    for each, row in zip(found, rows, strict=True):
        (alone,) = predict(loaded.model, processor, [row], **options)
        (one,), (other,) = each.answers, alone.answers
        assert one.keys() == other.keys()
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one.get("text") == other.get("text")
        assert one.get("box") == pytest.approx(other.get("box"))


def test_a_row_that_cannot_be_asked_fails_alone(loaded):
    processor, failures = with_tasks(loaded, vqa={}, region={"prompt": "红{box}"}), {}
    image = ROWS[0]["image"]
    rows = [
        {"id": "good", "question": "红?"},
        {"id": "empty", "question": ""},
        {"id": "missing"},
        {"id": "long", "question": "红" * 40},
        {"id": "outside", "task": "region", "box": (0, 0, 900, 2)},
        {"id": "inside", "task": "region", "box": (0, 0, 20, 30)},
    ]
    rows = [{**row, "image": image} for row in rows]
    found = list(
        predict(loaded.model, processor, rows, max_length=8, on_failure=lambda *each: failures.update([each]))
    )
    assert [each.id for each in found if each.answers] == ["good", "inside"]
    reasons = {
        "empty": "nothing in question",
        "missing": "nothing in question",
        "long": "43 tokens, but at most 25 fit",
    }
    for id_, reason in {**reasons, "outside": "does not fit an image of 40×43"}.items():
        assert reason in str(failures[id_])
    expected = processor(images=load_image(image), text={"box": (0, 0, 20, 30)}, task="region")
    assert (
        processor.encode_question({"box": (0, 0, 20, 30)}, "region", (40, 43))["input_ids"].tolist()
        == expected["input_ids"].tolist()
    )


def test_a_model_that_computes_no_numbers_ends_the_run(loaded, monkeypatch):
    bias = loaded.model.decoder.layer_norm.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(torch.nan)
    try:
        with pytest.raises(UserError, match="computes NaN"):
            list(predict(*loaded, ROWS, choices=["红", "绿"], return_scores=True))
    finally:
        with torch.no_grad():
            bias.copy_(kept)
