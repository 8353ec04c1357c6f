from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.processing_ofa import join_pieces


PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "?", "，", "iphone", "13", "pro", "##s", "t", "恤"),
    *"图片描述了什么内容一只猫红色",
]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return OFAProcessor(OFAImageProcessor(size=32), build_tokenizer(path))


@pytest.fixture
def images():
    return [Image.new("RGB", (40, 20), "red"), Image.new("L", (9, 70), 120)]


def test_images_alone_get_the_checkpoints_prompt(processor, images):
    batch = processor(images)
    assert sorted(batch) == ["attention_mask", "input_ids", "pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert processor.batch_decode(batch["input_ids"]) == [processor.prompt] * 2
    assert (batch["input_ids"][0, 0], batch["input_ids"][0, -1]) == (0, 2)


def test_prompts_of_different_length_are_padded_on_the_right(processor, images):
    batch = processor(images, text=["一只猫", "红"])
    assert batch["input_ids"][1].tolist()[2:] == [2, 1, 1]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_text_alone_needs_no_image(processor):
    assert sorted(processor(text="一只猫")) == ["attention_mask", "input_ids"]
    assert processor(text="一只猫")["input_ids"].shape == (1, 5)


def test_a_prompt_that_is_too_long_is_cut_and_keeps_its_end(processor):
    long_text = "猫" * 3000
    assert processor(text=long_text)["input_ids"].shape == (1, 1024)
    assert processor(text=long_text)["input_ids"][0, -1] == 2
    assert processor(text=long_text, max_length=7)["input_ids"].shape == (1, 7)


def test_labels_are_caption_and_end_token_without_a_start_token(processor, images):
    labels = processor(images, text_target=["一只猫", "红"])["labels"]
    cat = [*processor.tokenizer("一只猫", add_special_tokens=False).input_ids, 2]
    assert labels[0].tolist() == cat
    assert labels[1].tolist()[1:] == [2, -100, -100]


def test_labels_that_are_too_long_are_cut_and_keep_their_end(processor):
    labels = processor.encode_labels(["一只猫红色", "猫", ""], max_tokens=3)
    assert labels.shape == (3, 3)
    assert labels[0, -1] == 2
    assert labels[2].tolist() == [2, -100, -100]


def test_numbers_that_do_not_match_are_refused(processor, images):
    with pytest.raises(ValueError, match="2 images and 3 texts"):
        processor(images, text=["猫"] * 3)
    with pytest.raises(ValueError, match="2 inputs and 1 captions"):
        processor(images, text_target="猫")
    with pytest.raises(ValueError, match="neither images nor text"):
        processor()


def test_bins_and_codes_have_their_own_way_in_and_are_kept_on_the_way_out(processor):
    ids = processor.encode_bins([0, 12]) + processor.encode_codes([8191])
    assert processor.decode(ids) == "<bin_0><bin_12><code_8191>"
    assert set(ids).isdisjoint(processor(text="<bin_0><bin_12>")["input_ids"][0].tolist())
    with pytest.raises(ValueError, match="<bin_1000>"):
        processor.encode_bins([1000])


def test_decoding_leaves_out_specials_and_ignored_labels(processor):
    ids = processor(text="一只猫，iphone 13 pros t恤“")["input_ids"][0].tolist()
    assert processor.decode([*ids, 1, 1, -100]) == "一只猫，iphone 13 pros t恤"
    assert processor.post_process_image_text_to_text(torch.tensor([ids])) == ["一只猫，iphone 13 pros t恤"]
    assert processor.decode(torch.tensor(ids), skip_special_tokens=False).endswith("[UNK]</s>")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("红 色 的 连 衣 裙 ， 显 瘦 ！", "红色的连衣裙，显瘦！"),
        ("hello world", "hello world"),
        ("t ##ran ##s ##form ##er 模 型", "transformer模型"),
        ("iphone 13 pro max 手 机 壳", "iphone 13 pro max手机壳"),
        ("价 格 ： ￥ ##19 ##9 . 00 元", "价格：￥199.00元"),
        ("1 , 234 , 56 ##7 . 89", "1,234,567.89"),
        ("12 : 34 , 100 %", "12:34,100%"),
        ("it ' s a dog , really ! yes", "it's a dog, really! yes"),
        ("wi - fi http : / / www . a . com", "wi-fi http://www.a.com"),
        ("東 京 タ ##ワ ##ー ひ ##ら", "東京タワーひら"),
        ("п ##р м ##и", "пр ми"),
        ("区 域 <bin_1> <bin_20> red dress", "区域<bin_1><bin_20>red dress"),
        ("# #", "##"),
        ("２ ##３ ａ ##ｂ", "２３ａｂ"),
        ("", ""),
    ],
)
def test_pieces_are_joined_as_a_reader_expects(pieces, text):
    assert join_pieces(pieces.split()) == text


def test_a_saved_processor_comes_back_with_its_prompt_and_sizes(processor, tmp_path):
    saved = OFAProcessor(
        OFAImageProcessor(size={"height": 32, "width": 48}), processor.tokenizer, "图片描述了什么?", 100, 20
    )
    saved.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()  # transformers 4 reads the image processor from it
    for auto in (OFAProcessor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path, trust_remote_code=True)
        assert (loaded.prompt, loaded.max_prompt_tokens, loaded.max_caption_tokens) == ("图片描述了什么?", 100, 20)
        assert loaded.image_processor.size == {"height": 32, "width": 48}
        assert loaded(text="一只猫")["input_ids"].tolist() == saved(text="一只猫")["input_ids"].tolist()
    assert OFAProcessor.from_pretrained(tmp_path, prompt="红").prompt == "红"


def test_threads_that_share_a_processor_do_not_disturb_each_others_settings(processor):
    calls = [
        lambda: processor(text=["一只猫", "红"])["input_ids"].tolist(),
        lambda: processor(text=["一只猫", "红"], max_length=4)["input_ids"].tolist(),
        lambda: processor(text=["一只猫", "红"], padding=False, return_tensors=None)["input_ids"],
        lambda: processor.encode_labels(["一只猫", "红"], max_tokens=3).tolist(),
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda number: calls[number % 4](), range(800)))
    assert seen == expected * 200


def test_half_characters_encode_as_nothing(processor):
    """An emoji cut in two leaves one, which the tokenizers library takes for no text at all."""
    whole = processor(text="一只猫")["input_ids"]
    assert processor(text="一只\ud83d猫")["input_ids"].equal(whole)
    assert processor.encode_labels(["猫\ude00"]).equal(processor.encode_labels(["猫"]))
