"""Promises of `ofa_hf.data.pictures`."""

import pytest

from ofa_hf.data.pictures import open_picture, stored_picture
from ofa_hf.image_processing_ofa import PictureError


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
def test_pictures_are_stored_as_bytes_or_as_a_path(value, stored):
    assert stored_picture(value) == stored


def test_stored_pictures_are_decoded_like_any_other(jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    by_bytes, by_path = open_picture({"bytes": jpeg(0), "path": None}), open_picture({"path": str(tmp_path / "a.jpg")})
    assert by_bytes.tobytes() == by_path.tobytes() == open_picture(jpeg(0)).tobytes()
    with pytest.raises(PictureError):
        open_picture({"bytes": None, "path": None})
