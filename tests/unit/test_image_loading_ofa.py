import base64
import functools
import http.server
import io
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from sample_images import encoded, photo

from ofa_hf.image_loading_ofa import ImageError, load_image


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and one.size == other.size and one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------- where an image comes from


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    expected, data = photo(), encoded(photo())
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    standard, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    sources = [path, str(path), data, bytearray(data), io.BytesIO(data), expected, standard, url_safe]
    sources += [url_safe.rstrip("="), "data:image/png;base64," + standard, standard[:80] + "\n" + standard[80:]]
    sources += [np.asarray(expected), torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)]
    sources += [np.asarray(expected).astype(np.float32) / 255, np.asarray(expected).astype(np.int64)]
    sources += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]  # undecoded rows of `datasets`
    for source in sources:
        assert same(load_image(source), expected), type(source)
    with path.open("rb") as stream:
        assert same(load_image(stream), expected)


def test_urls_are_fetched_and_failures_name_them(tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(photo()))
    (tmp_path / "clear.png").write_bytes(encoded(Image.new("RGBA", (4, 4), 0)))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert same(load_image(f"{url}/photo.png", timeout=5), photo())
        assert same(load_image({"path": f"{url}/photo.png"}), photo())
        assert load_image(f"{url}/clear.png").getpixel((0, 0)) == (255, 255, 255)  # as from a file
        with pytest.raises(ImageError, match=f"{url}/nothing.png cannot be fetched .*404"):
            load_image(f"{url}/nothing.png")
        with pytest.raises(ImageError, match=f"{url}/ is not an image"):
            load_image(f"{url}/")
        with pytest.raises(ImageError, match="does not exist"):
            load_image(Path(f"{url}/photo.png"))  # a Path is a path, whatever it looks like
    finally:
        server.shutdown()
        server.server_close()


def test_processes_that_only_read_images_need_no_torch():
    program = "import sys, ofa_hf.image_loading_ofa; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello, I am a text", "is not an image: it starts with b'hello"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "is truncated or damaged within its header"),
    ],
)
def test_a_file_without_an_image_is_one_clear_line_with_its_name(tmp_path, content, problem):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=problem) as caught:
        load_image(path)
    assert "photo.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_lead_to_no_file_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.jpg does not exist"):
        load_image(str(tmp_path / "nothing.jpg"))
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match=r"keys \['bytes', 'path'\] but has neither"):
        load_image({"bytes": None, "path": None})
    with pytest.raises(ImageError, match="cannot be opened|does not exist"):
        load_image("never written, not base64 either: " * 20)
    with pytest.raises(ImageError, match="cannot be a int"):
        load_image(3)


def test_an_arrays_shape_and_values_are_checked():
    with pytest.raises(ImageError, match=r"shape \(7, 5, 6\) is not an image"):
        load_image(np.zeros((7, 5, 6), np.uint8))
    with pytest.raises(ImageError, match="already normalized"):
        load_image(torch.full((3, 4, 5), -1.0))
    with pytest.raises(ImageError, match="nan"):
        load_image(np.full((4, 5, 3), np.nan, np.float32))
    assert load_image(np.full((4, 5), 7, np.uint8)).getpixel((0, 0)) == (7, 7, 7)
    assert load_image(np.full((4, 5, 1), True)).getpixel((0, 0)) == (255, 255, 255)


# ------------------------------------------------------------------------- what kinds of images there are


def test_broken_off_jpegs_keep_the_part_that_is_there_whoever_else_uses_pillow():
    whole = photo(640, 480)
    data = encoded(whole, "JPEG", quality=90)
    image = load_image(data[: len(data) // 2])
    assert image.size == (640, 480)
    top = np.asarray(image.crop((0, 0, 640, 100))).astype(int)
    assert np.abs(top - np.asarray(load_image(data).crop((0, 0, 640, 100))).astype(int)).max() == 0
    text = base64.b64encode(data).decode()
    assert load_image(text[: len(text) // 2 + 1]).size == (640, 480)  # cut in the middle of a base64 group
    lazy = Image.open(io.BytesIO(data[: len(data) // 2]))
    assert same(load_image(lazy), image)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_broken_off_png_keeps_its_rows():
    data = encoded(Image.effect_noise((200, 200), 90).convert("RGB"))
    image = load_image(data[: len(data) // 2])
    assert same(image.crop((0, 0, 200, 60)), load_image(data).crop((0, 0, 200, 60)))


def test_an_image_that_breaks_off_before_its_first_pixel_is_refused():
    data = encoded(photo(640, 480), "JPEG")
    start_of_scan = data.index(b"\xff\xda")
    with pytest.raises(ImageError, match="before its first pixels"):
        load_image(data[: start_of_scan + 14])


def test_a_jpeg_with_exif_orientation_is_turned_upright():
    exif = Image.Exif()
    for orientation, size in ((1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))):
        exif[0x0112] = orientation
        assert load_image(encoded(photo(), exif=exif.tobytes())).size == size
        for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
            upright = load_image(encoded(photo(), kind, exif=exif if kind == "TIFF" else exif.tobytes()))
            assert same(load_image(upright), upright)  # as pipelines do: they load, then prepare
            assert load_image(upright.resize((32, 32))).tobytes() == upright.resize((32, 32)).tobytes()
    exif[0x0112] = 6  # shot with the camera turned: what is stored as left is up
    assert same(load_image(encoded(photo(), exif=exif.tobytes())), photo().transpose(Image.Transpose.ROTATE_270))
    assert load_image(encoded(photo(), "TIFF", exif=exif)).size == (48, 64)


def test_16_bit_grays_are_scaled_and_not_clipped():
    gray = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = load_image(encoded(Image.fromarray(gray)))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    assert [load_image(Image.fromarray(gray.astype(np.int32))).getpixel((x, 0))[0] for x in (0, 2, 3)] == [
        0,
        128,
        255,
    ]
    assert load_image(Image.fromarray(np.array([[0.0, 1.0]], np.float32))).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_transparent_parts_lie_on_white(mode):
    image = Image.new("LA" if mode == "La" else "RGBA" if mode == "RGBa" else mode, (4, 4), 0)
    assert load_image(image.convert(mode)).getpixel((1, 1)) == (255, 255, 255)


def test_transparent_palettes_and_colours_lie_on_white():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert load_image(palette).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))).getpixel((0, 0)) == (
        *(255, 255, 255),
    )


def test_cmyk_black_and_white_and_animations_become_rgb():
    assert load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((2, 2))[0] > 230
    assert load_image(encoded(Image.new("1", (8, 8), 1))).getpixel((2, 2)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": 1} if kind == "WEBP" else {})
        )
        assert load_image(data).getpixel((0, 0))[0] > 200, kind


def test_an_image_of_900_million_pixels_is_refused_before_it_is_decoded():
    header = bytearray(encoded(Image.new("1", (8, 8))))
    header[16:24] = (30000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="too large to decode"):
        load_image(bytes(header))
    with pytest.raises(ImageError, match=r"64×48 pixels\. Accepted: at most 3,000 pixels"):
        load_image(encoded(photo()), max_pixels=3000)


def test_a_file_that_names_more_sides_than_an_image_has_is_refused():
    pytest.importorskip("PIL.ImImagePlugin")  # Pillow 15 will no longer have it
    data = encoded(photo(9, 9), "IM")
    assert load_image(data).size == (9, 9)
    with pytest.raises(ImageError, match=r"dimensions \(9, 9, 9, 9\)"):
        load_image(data.replace(b"9*9", b"9*9*9*9", 1))


@pytest.mark.parametrize("source", ["a\nb\x1b[31m.jpg", "half \ud83d.jpg", "x" * 10**6, b"\x1b[31m\n\x00 no image"])
def test_an_error_is_one_short_printable_line_whatever_the_name_or_file_holds(source):
    with pytest.raises(ImageError) as error:
        load_image(source)
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 1300


def test_a_drawing_is_refused_before_another_program_draws_it_however_it_comes(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    data = encoded(photo(), "EPS")
    (tmp_path / "drawing.eps").write_bytes(data)
    for source in (data, tmp_path / "drawing.eps", Image.open(tmp_path / "drawing.eps")):
        with pytest.raises(ImageError, match="a drawing in EPS"):
            load_image(source)
