"""Promises of `ofa_hf.prediction.evaluating`: no image vanishes from the scores."""

import io

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.models import load_model
from ofa_hf.prediction.evaluating import evaluate_model
from ofa_hf.prediction.loop import predict


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(tiny_shop.write_model(tmp_path_factory.mktemp("evaluating") / "model"), device="cpu")


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return buffer.getvalue()


ROWS = [{"id": name, "image": png(colour)} for name, colour in (("a", "red"), ("b", "lime"), ("d", "blue"))]
ROWS.insert(2, {"id": "c", "image": b"no image"})


def test_missing_and_broken_images_count_as_empty_and_rows_without_references_are_skipped(loaded):
    own = {each.id: each.text for each in predict(*loaded, ROWS, num_beams=2)}
    references = {"a": [own["a"]], "c": ["白色"], "d": [own["d"]], "gone": ["绿色"]}
    result = evaluate_model(*loaded, ROWS, references, batch_size=4, run={"model": "tiny"}, num_beams=2)
    assert result.predictions == {"a": own["a"], "c": "", "d": own["d"], "gone": ""}
    assert result.run == {"model": "tiny", "task": "caption", "batch_size": 4, "num_beams": 2, "images_missing": 1}
    assert result.scores["rouge_l"] == pytest.approx(50)


def test_images_and_references_that_share_no_id_are_refused(loaded):
    with pytest.raises(UserError, match="share no id"):
        evaluate_model(*loaded, ROWS, {"other": ["红色"]})
