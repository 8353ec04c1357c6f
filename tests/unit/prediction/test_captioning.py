from types import SimpleNamespace

import pytest
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import ImageError
from ofa_hf.prediction.captioning import beam_settings, find_images, load_captioner, read_images


@pytest.fixture
def shop(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.webp", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_text("no image")
    return tmp_path


def test_folders_are_searched_with_their_subfolders_and_each_file_is_listed_once(shop):
    found = find_images([shop / "a.png", shop, f"{shop}/deep/../a.png"])
    assert [path.removeprefix(f"{shop}/") for path in found] == ["a.png", "b.JPG", "broken.jpg", "deep/c.webp"]


def test_a_file_that_is_named_counts_whatever_its_ending(shop):
    assert find_images([shop / "notes.txt"]) == [str(shop / "notes.txt")]


def test_nothing_to_caption_is_said_clearly(tmp_path):
    with pytest.raises(UserError, match="No images in"):
        find_images([tmp_path])
    with pytest.raises(UserError, match="no such file or folder"):
        find_images([tmp_path / "nowhere"])


def test_images_are_read_in_order_small_and_past_broken_ones(shop):
    files = find_images([shop])
    for ahead in (1, 2, 50):
        read = list(read_images(files, {"height": 8, "width": 16}, Image.Resampling.BICUBIC, ahead))
        assert [file for file, _ in read] == files
        assert [isinstance(image, ImageError) for _, image in read] == [False, False, True, False]
        assert read[0][1].size == (16, 8)


def test_reading_stays_within_the_asked_distance(shop):
    asked = []

    def files():
        for index in range(100):
            asked.append(index)
            yield str(shop / "a.png")

    reader = read_images(files(), {"height": 8, "width": 8}, Image.Resampling.BICUBIC, ahead=3)
    next(reader)
    assert len(asked) == 4
    reader.close()


def test_each_caption_has_a_beam():
    captioner = SimpleNamespace(model=SimpleNamespace(generation_config=SimpleNamespace(num_beams=4)))
    assert beam_settings(captioner, 2, None) == {"num_return_sequences": 2}
    assert beam_settings(captioner, 6, None) == {"num_return_sequences": 6, "num_beams": 6}
    assert beam_settings(captioner, 1, 1) == {"num_return_sequences": 1, "num_beams": 1}
    with pytest.raises(UserError, match="--num-beams 2 cannot give --num-captions 3"):
        beam_settings(captioner, 3, 2)


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_captioner(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(UserError, match="model_type='blip'"):
        load_captioner(str(tmp_path))
    with pytest.raises(UserError, match="owner/name"):
        load_captioner("nowhere")
