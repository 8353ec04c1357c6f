"""Promises of `ofa_hf.data.images`."""

import pytest

from ofa_hf.data.images import stored_image, why_broken


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


def test_a_broken_image_is_explained(jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    assert why_broken({"bytes": jpeg(0), "path": None}) == why_broken({"path": str(tmp_path / "a.jpg")}) == ""
    assert "does not exist" in why_broken({"path": str(tmp_path / "b.jpg")})
