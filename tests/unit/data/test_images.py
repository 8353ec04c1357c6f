"""Promises of `ofa_hf.data.images`."""

import pytest

from ofa_hf.data.images import open_image, stored_image
from ofa_hf.image_processing_ofa import ImageError


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (b"x", {"bytes": b"x", "path": None}),
        ("a.jpg", {"bytes": None, "path": "a.jpg"}),
        ({"bytes": b"x", "path": "a.jpg"}, {"bytes": b"x", "path": None}),
        ({"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "a.jpg"}),
        ({"bytes": None, "path": None}, None),
        (None, None),
        (b"", None),
    ],
)
def test_images_are_stored_as_bytes_or_as_a_path(value, stored):
    assert stored_image(value) == stored


def test_stored_images_are_decoded_like_any_other(jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    by_bytes, by_path = open_image({"bytes": jpeg(0), "path": None}), open_image({"path": str(tmp_path / "a.jpg")})
    assert by_bytes.tobytes() == by_path.tobytes() == open_image(jpeg(0)).tobytes()
    with pytest.raises(ImageError):
        open_image({"bytes": None, "path": None})
