"""Tasks other than captions: the processor's images and settings give the official answers and scores."""

import pytest
from fixtures import recorded_tasks
from fixtures.stages import SCORES

from ofa_hf import OFAImageProcessor
from ofa_hf.boxes_ofa import PlacesOnly, places_to_box
from ofa_hf.tasks_ofa import TASKS


FACTS = recorded_tasks.facts()
BOXES = [name for name in FACTS["beam"] if "refcoco" in name]


def assert_same(found, name):
    best = FACTS["beam"][name]["best"]
    assert [ids[1 : 1 + len(one["tokens"])] for ids, one in zip(found.sequences.tolist(), best)] == [
        one["tokens"] for one in best
    ]
    if "sequences_scores" in found:
        assert found.sequences_scores.tolist() == pytest.approx([one["score"] for one in best], abs=SCORES)


@pytest.mark.parametrize("name", BOXES)
def test_places_equal_the_official_ones(name):
    beam = FACTS["beam"][name]
    case, lang = beam["case"], FACTS["cases"][beam["case"]]["lang"]
    pictures, first = recorded_tasks.images(case), recorded_tasks.FIRST_PLACE[lang]
    pixels = OFAImageProcessor(size=512)(pictures, return_tensors="pt")
    settings = dict(TASKS["grounding"].generation) | {"num_beams": beam["args"]["beam"], "early_stopping": True}
    if beam["constraint_range"]:
        settings["logits_processor"] = [PlacesOnly(first, 2)]
    model = recorded_tasks.build_model(lang)
    found = model.generate(**recorded_tasks.encoded(case), **pixels, **settings, return_dict_in_generate=True)
    assert_same(found, name)
    if beam["constraint_range"]:
        for ids, picture, result in zip(found.sequences.tolist(), pictures, beam["results"], strict=True):
            box = places_to_box([index - first for index in ids[1:5]], picture.size, (512, 512))
            assert list(box.values()) == pytest.approx(result["box"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in FACTS["beam"] if "ocr" in name])
def test_read_texts_equal_the_official_ones(name):
    task = TASKS["ocr"]
    case = FACTS["beam"][name]["case"]
    pixels = OFAImageProcessor(size=480)(recorded_tasks.images(case), **task.image, return_tensors="pt")
    model = recorded_tasks.build_model("cn")
    inputs = {**recorded_tasks.encoded(case), **pixels}
    assert_same(model.generate(**inputs, **task.generation, return_dict_in_generate=True), name)
