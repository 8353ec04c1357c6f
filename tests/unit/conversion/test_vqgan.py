"""A VQGAN becomes a folder of diffusers that decodes codes as the official code does; nothing of its file runs."""

import copy
import errno
import json
import os
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import small_checkpoints
import torch
from fixtures.recorded import FIXTURES
from safetensors.torch import load_file, save_file

from ofa_hf.conversion.archive import unpack
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.vqgan import WEIGHTS_NAME, VQGANSource, with_vqgan
from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import check_image_decoder, images_of_codes, load_image_decoder


RECORDED = json.loads((FIXTURES / "recorded_vqgan.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_codes_become_the_official_images(recorded_vqgans, name):
    case = RECORDED["cases"][name]
    decoder = load_image_decoder(str(recorded_vqgans[name.split("/")[0]]))
    codes = torch.tensor(case["codes"])
    with torch.no_grad():
        shape = (*codes.shape, decoder.config.vq_embed_dim)
        image = decoder.decode(codes, force_not_quantize=True, shape=shape).sample.flatten()
    assert (image[case["places"]] - torch.tensor(case["image"])).abs().max() < 1e-4
    colors = torch.cat([torch.tensor(list(one.tobytes())) for one in images_of_codes(decoder, codes)])
    difference = (colors[case["color_places"]] - torch.tensor(case["colors"])).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.005


def test_a_vqgan_with_other_codes_is_refused(recorded_vqgans):
    decoder = load_image_decoder(str(recorded_vqgans["attn2"]))
    with pytest.raises(ValueError, match="512 codes of 8 × 8 pixels. Accepted: 8,192 codes"):
        check_image_decoder(decoder, 8192)
    check_image_decoder(decoder, 512)


def test_a_folder_without_a_vqgan_says_so(diffusers, tmp_path):
    with pytest.raises(ValueError, match="has no VQGAN in vqgan/"):
        load_image_decoder(str(tmp_path))


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS_NAME)
    change(weights)
    save_file(weights, folder / WEIGHTS_NAME, {"format": "pt"})


def change_config(folder, **values):
    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(kept | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: change_weights(folder, lambda weights: weights.pop("decoder.conv_in.bias")), "lacks weights"),
        (
            lambda folder: change_weights(folder, lambda weights: weights["decoder.conv_in.bias"].fill_(torch.nan)),
            "no n",
        ),
        (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b"junk"), "that can be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "that can be loaded"),
        (lambda folder: change_config(folder, num_vq_embeddings="512"), "that can be loaded .TypeError"),
        (lambda folder: change_config(folder, lookup_from_codebook=False), "draws no codes"),
    ],
)
def test_a_damaged_vqgan_is_refused_before_anything_is_drawn(recorded_vqgans, tmp_path, damage, message):
    shutil.copytree(recorded_vqgans["attn2"] / "vqgan", tmp_path / "vqgan")
    (tmp_path / "config.json").write_text('{"vocab_size": 3}', encoding="utf-8")  # of the checkpoint
    damage(tmp_path / "vqgan")
    with pytest.raises(ValueError, match=message):
        check_image_decoder(load_image_decoder(str(tmp_path)), 512)


@pytest.fixture
def files(diffusers, tmp_path):
    return small_checkpoints.write_vqgan(tmp_path)


def changed(files, **values):
    """The description with other values of its `ddconfig`, or of the parameters."""
    config = copy.deepcopy(small_checkpoints.VQGAN_CONFIG)
    parameters = config["model"]["params"]
    for name, value in values.items():
        (parameters if name in parameters else parameters["ddconfig"])[name] = value
    files[1].write_text(json.dumps(config), encoding="utf-8")
    return files


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_res_blocks": 2}, "does not fit .*missing"),
        ({"n_embed": 512}, "of another shape .*quantize.embedding.weight"),
        ({"embed_dim": 16}, "another autoencoder"),
        ({"double_z": True}, "another autoencoder"),
        ({"ch": -1}, "no usable value for ch"),
        ({"ch_mult": [1, [2]]}, "no usable value for ch_mult"),
        ({"ch_mult": 2, "num_res_blocks": [1]}, "no usable value for num_res_blocks, ch_mult"),
        ({"num_res_blocks": 2**20}, "no usable value for num_res_blocks"),
        ({"ch": 33}, "no usable value for ch, ch_mult"),
        ({"ch": 2**20, "ch_mult": [2**20]}, "no usable value for ch, ch_mult"),
        ({"in_channels": 4, "out_ch": 1}, "no usable value for in_channels, out_ch"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(files, values, message):
    with pytest.raises(UserError, match=message):
        VQGANSource(*changed(files, **values))


@pytest.mark.parametrize(
    "value", ["9" * 5000, "2001-99-99", "!!bool x", "!!int x", "!!timestamp x", "&a [*a]", "!!python/name:os.system x"]
)
def test_a_hostile_description_is_refused(files, value):
    files[1].write_text(json.dumps(small_checkpoints.VQGAN_CONFIG).replace("[1, 1, 1, 2]", value), encoding="utf-8")
    with pytest.raises(UserError, match="is no YAML|no usable value for ch_mult"):
        VQGANSource(*files)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.conv_in.bias", lambda bias: bias.long(), r"1 no floats \(decoder.conv_in.bias\)"),
        ("quantize.embedding.weight", lambda _: torch.ones(8192, 32), r"1 there twice \(quantize.embedding.weight\)"),
        (5, lambda _: torch.ones(1), "no Lightning checkpoint"),
    ],
)
def test_weights_that_are_none_are_refused(files, name, change, message):
    config = small_checkpoints.VQGAN_CONFIG
    state = {name: torch.ones(shape) for name, shape in small_checkpoints.vqgan_shapes(config).items()}
    small_checkpoints.write_vqgan(files[0].parent, config, {**state, name: change(state.get(name))})
    with pytest.raises(UserError, match=message):
        VQGANSource(*files)


def test_an_unknown_weight_is_named(files):
    config = small_checkpoints.VQGAN_CONFIG
    state = {name: torch.ones(shape) for name, shape in small_checkpoints.vqgan_shapes(config).items()}
    small_checkpoints.write_vqgan(files[0].parent, config, {**state, "encoder.extra.weight": torch.ones(1)})
    with pytest.raises(UserError, match=r"1 unknown \(encoder.extra.weight\)"):
        VQGANSource(*files)


def test_codes_of_another_size_do_not_fit_a_checkpoint(files):
    source = VQGANSource(*files)
    source.check_codes(8192)
    with pytest.raises(UserError, match="8,192 codes of 8 × 8 pixels. Accepted: 1,024"):
        source.check_codes(1024)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_hostile_checkpoint_runs(files):
    mark = files[0].with_name("mark")
    torch.save({"state_dict": {}, "callbacks": Hostile(mark)}, files[0])
    with pytest.raises(UserError, match="it wants to use .*system"):
        VQGANSource(*files)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "quantize.proj.bias"])
def test_weights_that_are_no_numbers_are_refused(files, tmp_path, name):
    checkpoint = torch.load(files[0], weights_only=False)
    checkpoint["state_dict"][name][0] = torch.nan
    torch.save(checkpoint, files[0])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="has weights that are no numbers: .*Download it again"):
        VQGANSource(*files).write(tmp_path / "out", 64)


def test_missing_and_foreign_files_are_named(files, tmp_path):
    with pytest.raises(UserError, match="No VQGAN at .*nothing.ckpt"):
        VQGANSource(tmp_path / "nothing.ckpt", files[1])
    with pytest.raises(UserError, match="No model.yaml at"):
        VQGANSource(files[0], tmp_path / "nothing.yaml")
    files[1].write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="is no YAML"):
        VQGANSource(*files)
    files[1].write_text("model: {params: 3}", encoding="utf-8")
    with pytest.raises(UserError, match="does not describe a VQGAN"):
        VQGANSource(*files)


def test_a_checkpoint_that_draws_needs_both_files(files):
    with pytest.raises(UserError, match="add --vqgan last.ckpt and --vqgan-config model.yaml"):
        with_vqgan(files[0], None)


# ---------------------------------------------------------------------------------------------------- archives

MEMBERS = {"image_gen/best.pt": b"checkpoint", "vqgan/last.ckpt": b"vqgan", "vqgan/model.yaml": b"a: 1"}


def write_archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_an_archive_is_unpacked_for_a_while(tmp_path):
    path = write_archive(tmp_path / "a.zip", {**MEMBERS, "clip/ViT-B-16.pt": b"clip", "readme.txt": b"hello"})
    with unpack(path, tmp_path) as files:
        assert [one.read_bytes() for one in (files.checkpoint, files.vqgan, files.settings)] == list(MEMBERS.values())
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("name", ["../out.pt", "/out.pt", "a/../../out.pt", "..\\out.pt", "C:out.pt"])
def test_an_archive_with_a_path_out_of_it_is_refused(tmp_path, name):
    path = write_archive(tmp_path / "a.zip", {**MEMBERS, name: b"x"})
    with pytest.raises(UserError, match="names a file outside of it"), unpack(path, tmp_path):
        pytest.fail("unpacked")
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("missing", MEMBERS)
def test_an_archive_without_one_of_the_files_is_refused(tmp_path, missing):
    path = write_archive(tmp_path / "a.zip", {name: data for name, data in MEMBERS.items() if name != missing})
    with (
        pytest.raises(UserError, match=rf"found .*0 {Path(missing).name.removeprefix('best')}"),
        unpack(path, tmp_path),
    ):
        pytest.fail("unpacked")


def test_a_damaged_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", MEMBERS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"vqgan/last.ckpt", b"vqgan/last.ckpX", 1))
    with pytest.raises(UserError, match="cannot be unpacked"), unpack(path, tmp_path):
        pytest.fail("unpacked")
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match="cannot be unpacked"), unpack(path, tmp_path):
        pytest.fail("unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_bytes_of_an_archive_are_an_error_of_the_archive(tmp_path, method):
    members = {name: random.Random(0).randbytes(3000) for name in MEMBERS}
    data = write_archive(tmp_path / "a.zip", members, method).read_bytes()
    draws = random.Random(0)
    unpacked = 0
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(5):
            damaged[draws.randrange(len(data))] = draws.randrange(256)
        (tmp_path / "a.zip").write_bytes(damaged)
        with suppress(UserError), unpack(tmp_path / "a.zip", tmp_path):
            unpacked += 1
    assert unpacked < 10


def test_a_full_disk_is_not_a_damaged_archive(files, tmp_path, monkeypatch):
    write_archive(tmp_path / "a.zip", MEMBERS)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(UserError, match="The disk that holds .* is full. Free some room"):
        convert(tmp_path / "a.zip", tmp_path / "out")
    assert not list(tmp_path.glob("[.]ofa_hf*"))
    assert not (tmp_path / "out").exists()
