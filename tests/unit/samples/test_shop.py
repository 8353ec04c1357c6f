import base64
import io
import json
from itertools import product as combinations

import pytest
from PIL import Image, ImageChops, ImageStat

from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import load_muge
from ofa_hf.errors import UserError
from ofa_hf.samples import shop
from ofa_hf.samples.shop import COLOURS, KINDS, PATTERNS, PROMPTS, Product


ALL_PRODUCTS = [Product(*names) for names in combinations(KINDS, COLOURS, PATTERNS)]
SKIRT = Product("连衣裙", "红色", "条纹")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return shop.write_shop(folder, num_train=12, num_valid=5, seed=3, size=64, new_pairs=True)


def captions_of(path):
    return {row["image_id"]: row["text"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def images_of(path):
    return dict(line.split("\t") for line in path.read_text(encoding="ascii").splitlines())


def difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def test_same_seed_draws_the_same_image_and_writes_the_same_captions():
    assert shop.draw(SKIRT, 5, 64).tobytes() == shop.draw(SKIRT, 5, 64).tobytes()
    assert shop.captions(SKIRT, 5) == shop.captions(SKIRT, 5)


def test_another_seed_draws_another_image_and_writes_other_captions():
    assert difference(shop.draw(SKIRT, 5, 64), shop.draw(SKIRT, 6, 64)) > 5
    assert shop.captions(SKIRT, 5) != shop.captions(SKIRT, 6)


@pytest.mark.parametrize("size", [32, 97, 160])
def test_image_has_the_size_asked_for_whatever_the_place_and_turn(size):
    images = [shop.draw(Product(kind, "白色", "纯色"), seed, size) for kind in KINDS for seed in range(3)]
    assert {(image.mode, image.size) for image in images} == {("RGB", (size, size))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_colour_and_pattern_of_a_kind_gives_a_different_image(kind):
    # The same random numbers would place unlike products differently, so what is compared is the painting alone.
    painted = [shop.paint(product, shop.Random(1)).convert("RGB") for product in ALL_PRODUCTS if product.kind == kind]
    nearest = min(difference(one, other) for n, one in enumerate(painted) for other in painted[:n])
    assert nearest > 3


@pytest.mark.parametrize("kind", KINDS)
def test_white_product_stands_out_from_every_wall(kind):
    for cut in KINDS[kind].cuts:
        alpha = shop.prepare_cut(cut).alpha
        painted = shop.paint(Product(kind, "白色", "纯色"), shop.Random(1)).convert("RGB")
        assert max(ImageStat.Stat(painted.convert("L"), alpha).extrema[0]) > 220
        assert min(ImageStat.Stat(painted.convert("L"), alpha).extrema[0]) < 150  # its outline
    assert all(min(wall) < 225 for wall in shop.WALLS)


def test_every_caption_is_right_short_and_different_from_its_nine_sisters():
    for product in ALL_PRODUCTS:
        texts = shop.captions(product, seed=1)
        assert len(set(texts)) == 10
        for text in texts:
            assert shop.is_right(text, product), (text, product)
            assert 8 <= len(text) <= 18, text


def test_most_captions_name_the_pattern_and_never_another():
    texts = [(text, product.pattern) for product in ALL_PRODUCTS for text in shop.captions(product, seed=2)]
    assert sum(pattern in text for text, pattern in texts) > len(texts) / 2
    assert not [text for text, pattern in texts for other in PATTERNS if other != pattern and other in text]


def test_more_captions_than_the_templates_give_are_refused():
    with pytest.raises(ValueError, match="100 different captions"):
        shop.captions(SKIRT, 0, count=100)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "红色",
        "收腰显瘦连衣裙",  # no colour
        "蓝色条纹连衣裙",  # another colour
        "红色条纹裤子",  # another kind
        "红色连衣裙搭配帽子",  # a second kind
        "红色连衣裙配黑色腰带",  # a second colour
        "红白条纹红色连衣裙",  # half a second colour
        "红连衣裙",  # half a colour
        "红色裙",  # half a kind
    ],
)
def test_caption_with_a_wrong_missing_or_second_name_is_not_right(caption):
    assert not shop.is_right(caption, SKIRT)


def test_blanks_and_case_do_not_make_a_caption_wrong():
    assert shop.is_right("2026 新款 黑色 t 恤", Product("T恤", "黑色", "纯色"))


def test_caption_accuracy_is_the_share_of_right_captions():
    assert shop.caption_accuracy(["红色连衣裙", "蓝色连衣裙", "红色T恤", "条纹连衣裙红色款"], [SKIRT] * 4) == 0.5
    with pytest.raises(ValueError, match="2 captions for 1 products"):
        shop.caption_accuracy(["红色", "蓝色"], [SKIRT])
    with pytest.raises(ValueError, match="0 captions"):
        shop.caption_accuracy([], [])


def pairs_of(products):
    return {(product.kind, product.colour) for product in products}


@pytest.mark.parametrize("new_pairs", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_validation_holds_only_combinations_that_training_never_shows(seed, new_pairs):
    train, valid = shop.split_products(seed, new_pairs)
    assert not set(train) & set(valid)
    assert sorted(map(str, train + valid)) == sorted(map(str, ALL_PRODUCTS))
    assert len(valid) == (110 if new_pairs else 80)
    for names in (COLOURS, KINDS, PATTERNS):  # every single name can be learned
        assert set(names) <= {name for product in train for name in (product.kind, product.colour, product.pattern)}


def test_new_pairs_are_one_colour_of_every_kind_and_none_unless_asked_for():
    train, valid = shop.split_products(1, new_pairs=True)
    pairs = pairs_of(valid) - pairs_of(train)
    assert sorted(kind for kind, _ in pairs) == sorted(KINDS)
    assert {colour for _, colour in pairs} == set(COLOURS)
    train, valid = shop.split_products(1)
    assert pairs_of(valid) == pairs_of(train)


def test_written_files_hold_images_and_captions_of_the_labelled_products(files):
    products = shop.read_products(files.label_file)
    for caption_file, image_file, count in (
        (files.train_caption_file, files.train_image_file, 12),
        (files.valid_caption_file, files.valid_image_file, 5),
    ):
        captions, images = captions_of(caption_file), images_of(image_file)
        assert list(captions) == list(images)
        assert len(captions) == count
        for image_id, image in images.items():
            decoded = Image.open(io.BytesIO(base64.urlsafe_b64decode(image)))
            assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", (64, 64))
            assert shop.caption_accuracy(captions[image_id], [products[image_id]] * 10) == 1


def test_labels_tell_split_and_whether_the_pair_is_new(files):
    labels = json.loads(files.label_file.read_text(encoding="utf-8"))
    train, valid = shop.split_products(seed=3, new_pairs=True)
    assert list(labels) == [*captions_of(files.train_caption_file), *captions_of(files.valid_caption_file)]
    for label in labels.values():
        product = Product(label["kind"], label["colour"], label["pattern"])
        assert product in (train if label["split"] == "train" else valid)
        assert label["is_new_pair"] == ((product.kind, product.colour) not in pairs_of(train))
    assert any(label["is_new_pair"] for label in labels.values())


def test_written_files_load_as_muge_files_without_a_problem(files, tmp_path):
    rows = load_muge(files.train_caption_file, files.train_image_file, strict=True, cache_dir=tmp_path)
    assert {row["id"]: row["targets"] for row in rows} == captions_of(files.train_caption_file)


def test_same_seed_writes_the_same_files(files, tmp_path):
    again = shop.write_shop(tmp_path, num_train=12, num_valid=5, seed=3, size=64, new_pairs=True)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (files.vocab_file.parent / file.name).read_bytes(), file.name
    assert again.vocab_file.parent == tmp_path


def test_validation_images_stay_the_same_when_more_training_images_are_drawn(files, tmp_path):
    more = shop.write_shop(tmp_path, num_train=13, num_valid=5, seed=3, size=64, new_pairs=True)
    assert more.valid_image_file.read_bytes() == files.valid_image_file.read_bytes()


def test_as_many_images_as_products_show_each_product_once():
    _, valid = shop.split_products(0)
    assert set(shop.take(valid, len(valid), seed=0)) == set(valid)


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_valid": 0}, {"size": 8}])
def test_a_shop_that_shows_nothing_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match="cannot be drawn"):
        shop.write_shop(tmp_path / "shop", **wrong)
    assert not (tmp_path / "shop").exists()


def test_every_caption_and_prompt_is_spelled_by_the_written_vocabulary(files):
    tokenizer = build_tokenizer(files.vocab_file)
    texts = [text for product in ALL_PRODUCTS for text in shop.captions(product, seed=4)]
    unknown = {tokenizer.unk_token_id, tokenizer.convert_tokens_to_ids("<unk>")}
    for text, ids in zip([*PROMPTS, *texts], tokenizer([*PROMPTS, *texts])["input_ids"], strict=True):
        assert not unknown & set(ids), text
        decoded = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert decoded == text.lower()


def test_vocabulary_names_each_piece_once_and_none_that_no_caption_needs():
    pieces = shop.vocabulary()
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(pieces) == len(set(pieces))
    needed = set("".join([*PROMPTS, shop.DRAWING_PROMPT]))
    for seed in range(5):
        needed.update(*(text for product in ALL_PRODUCTS for text in shop.captions(product, seed)))
    assert {piece for piece in pieces if len(piece) == 1 and not piece.isascii()} <= needed
