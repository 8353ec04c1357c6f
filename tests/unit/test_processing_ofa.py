import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import write_english_vocabulary
from transformers import AutoProcessor

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.english_vocabulary import build_english_tokenizer, read_byte_pairs
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.processing_ofa import clean_text, join_pieces


SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_recorded_text = pytest.mark.skipif(
    not (SHARED / "golden" / "tokenizer_golden.json").is_file(), reason="shared/golden is not next to this repository"
)
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "?", "，", "iphone", "13", "pro", "##s", "t", "恤"),
    *("[", "]", "{", "}", "cls", "sep", "first", *"图片描述了什么内容一只猫红色是颜和样"),
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
    assert processor.batch_decode(batch["input_ids"]) == ["图片描述了什么内容?"] * 2
    assert (batch["input_ids"][0, 0], batch["input_ids"][0, -1]) == (0, 2)


def test_prompts_of_different_length_are_padded_on_the_right(processor, images):
    batch = processor(images, text=["一只猫", "红"])
    assert batch["input_ids"][1].tolist()[2:] == [2, 1, 1]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_text_can_be_encoded_without_images(processor):
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
    with pytest.raises(ValueError, match="2 inputs and 1 targets"):
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


def test_a_saved_processor_comes_back_with_its_tasks_and_sizes(processor, tmp_path):
    tasks = {"caption": {"prompt": "图片描述了什么?"}, "material": {"prompt": "{product}是什么材质?"}}
    size = {"height": 32, "width": 48}
    saved = OFAProcessor(OFAImageProcessor(size=size), processor.tokenizer, tasks, "material", "zh", 100, 20)
    saved.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()  # transformers 4 reads the image processor from it
    assert (tmp_path / "chat_template.jinja").is_file()
    for auto in (OFAProcessor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path, trust_remote_code=True)
        assert (loaded.tasks, loaded.default_task, loaded.language) == (tasks, "material", "zh")
        assert (loaded.max_prompt_tokens, loaded.max_target_tokens) == (100, 20)
        assert loaded.prompt_for("caption") == "图片描述了什么?"
        assert loaded.image_processor.size == size
        assert loaded.chat_template == saved.chat_template
        assert loaded(text="一只猫")["input_ids"].tolist() == saved(text="一只猫")["input_ids"].tolist()
    assert OFAProcessor.from_pretrained(tmp_path, default_task="caption").prompt_for() == "图片描述了什么?"


def test_a_folder_written_before_processors_had_tasks_loads_as_a_captioning_one(processor, images, tmp_path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    for name in ("tasks", "default_task", "language", "max_target_tokens"):
        del config[name]
    prompt = '这段文字" {} "描述的是哪个区域？'  # not a slot: such a prompt was encoded as it stands
    path.write_text(json.dumps(config | {"prompt": prompt, "max_prompt_tokens": 90, "max_caption_tokens": 70}))
    for auto in (OFAProcessor, AutoProcessor):
        old = auto.from_pretrained(tmp_path, trust_remote_code=True)
        assert (list(old.tasks), old.default_task, old.language) == (["caption"], "caption", "zh")
        assert (old.prompt_for(), old.max_prompt_tokens, old.max_target_tokens) == (prompt, 90, 70)
        assert old(images)["input_ids"].equal(processor(images, text=prompt)["input_ids"])


# ------------------------------------------------------------------------- tasks


@pytest.fixture(scope="module")
def shop(processor):
    """A checkpoint with tasks of its own: a question with one slot, one with two, and one about text only."""
    tasks = {
        "caption": {},
        "color": {"prompt": "{product}是什么颜色?", "image": {"size": 16}, "generation": {"num_beams": 2}},
        "match": {"prompt": "{first}和{second}一样?"},
        "shorten": {"prompt": "{text}是什么?", "needs_image": False},
    }
    return OFAProcessor(processor.image_processor, processor.tokenizer, tasks)


def test_text_fills_the_slot_of_the_tasks_prompt(shop, images):
    batch = shop(images, text=["一只猫", "红"], task="color")
    assert batch["input_ids"].equal(shop(text=["一只猫是什么颜色?", "红是什么颜色?"])["input_ids"])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert shop(images, text="猫", task="color", size=8)["pixel_values"].shape == (
        2,
        3,
        8,
        8,
    )  # a call's own size wins
    pair = shop(images[0], text={"first": "猫", "second": "{first}"}, task="match")
    assert pair["input_ids"].equal(shop(text="猫和{first}一样?")["input_ids"])  # what users type is never a slot
    assert shop(images, task="caption")["input_ids"].equal(shop(images)["input_ids"])
    assert shop(text="一只猫", task="shorten").keys() == {"input_ids", "attention_mask"}


def test_a_task_knows_its_generation_settings_and_its_answers(shop):
    assert shop.generation_kwargs("color") == {"num_beams": 2}
    assert shop.generation_kwargs() == {}
    ids = shop(text=["一只猫", "红"])["input_ids"]
    assert shop.post_process(ids, task="color") == ["一只猫", "红"]


def test_what_does_not_fit_a_task_is_refused_with_what_does(shop, images):
    with pytest.raises(ValueError, match="no task 'ocr'. Accepted: caption, color, match, shorten"):
        shop(images, task="ocr")
    with pytest.raises(ValueError, match="no value for product"):
        shop(images, task="color")
    with pytest.raises(ValueError, match="takes a dict with first, second"):
        shop(images, text="猫", task="match")
    with pytest.raises(ValueError, match="takes no text but got the text '猫'"):
        shop(images, text="猫", task="caption")
    with pytest.raises(ValueError, match="'color' needs an image but got only the text '猫'"):
        shop(text="猫", task="color")
    with pytest.raises(ValueError, match="'caption' needs an image but got only the text 'photo.jpg'"):
        shop(images=None, text="photo.jpg")
    with pytest.raises(ValueError, match="one image per row"):
        shop([images])


def test_a_processor_with_impossible_tasks_is_refused(processor):
    parts = (processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="no task 'color'. Accepted: caption"):
        OFAProcessor(*parts, default_task="color")
    with pytest.raises(ValueError, match="Unknown task 'color'. Accepted: caption"):
        OFAProcessor(*parts, tasks=["caption", "color"])
    with pytest.raises(ValueError, match="no prompt in the language 'fr'"):
        OFAProcessor(*parts, language="fr")
    english = OFAProcessor(*parts, language="en")
    assert english.prompt_for() == " what does the image describe?"


# ------------------------------------------------------------------------- transformers' ways of calling


def test_options_may_be_nested_as_in_transformers(processor, images):
    assert processor(images, images_kwargs={"size": 8})["pixel_values"].shape == (2, 3, 8, 8)
    short = processor(images, text="一只猫红色", text_kwargs={"max_length": 4})
    assert short["input_ids"].shape == (2, 4)
    assert isinstance(processor(images, common_kwargs={"return_tensors": "np"})["pixel_values"], np.ndarray)
    assert isinstance(processor(images, text_kwargs={"return_tensors": "np"})["input_ids"], np.ndarray)
    both = processor(images, common_kwargs={"size": 8, "max_length": 4}, size=16)
    assert (both["pixel_values"].shape[-1], both["input_ids"].shape[1]) == (16, 4)
    with pytest.raises(ValueError, match=r"\['size'\]. Pass each once"):
        processor(images, size=8, images_kwargs={"size": 16})
    with pytest.raises(TypeError, match=r"\['sise'\]"):
        processor(images, sise=8)
    with pytest.raises(TypeError, match="sise"):
        processor(images, images_kwargs={"sise": 8})


def test_chat_messages_ask_the_users_last_question(processor, images):
    def user(*content):
        return {"role": "user", "content": list(content)}

    image, words = {"type": "image", "image": images[0]}, {"type": "text", "text": "一只猫"}
    assert processor.apply_chat_template([user(image, words)]) == "一只猫"
    assert processor.apply_chat_template([{"role": "user", "content": "红色"}]) == "红色"
    assert processor.apply_chat_template([user(image)]) == processor.prompt_for()
    history = [user(image, words), {"role": "assistant", "content": "红"}, user({"type": "text", "text": "什么?"})]
    assert processor.apply_chat_template(history) == "什么?"
    assert processor.apply_chat_template([[user(image)], history]) == [processor.prompt_for(), "什么?"]
    assert [part["type"] for part in history[0]["content"]] == ["image", "text"]  # left as it was
    inputs = processor.apply_chat_template(history, tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor(images[0], text="什么?")
    assert inputs.keys() == expected.keys()
    assert all(inputs[name].equal(expected[name]) for name in inputs)
    with pytest.raises(ValueError, match="one image per row"):
        processor.apply_chat_template([user(image, image)], tokenize=True, return_dict=True)
    with pytest.raises(ValueError, match="no message of the user"):
        processor.apply_chat_template([{"role": "assistant", "content": "红"}])


# ------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("[CLS]", "[CLS]"),
        ("红 [CLS] 色", "红 [CLS] 色"),
        ("红[MASK]色", "红 [MASK] 色"),  # an ideograph counts as a blank
        ("[UNK]红[PAD]", "[UNK] 红 [PAD]"),
        ("t\t[SEP]\n13", "t [SEP] 13"),
        ("t\u3000[SEP]\u202813", "t [SEP] 13"),
        ("\u200b[CLS]\x00", "[CLS]"),  # dropped characters are no neighbors
        ("[SEP][SEP]", "[ sep ] [ sep ]"),
        ("t[CLS]", "t [ cls ]"),
        ("t\u200b[CLS]", "t [ cls ]"),
        ("[CLS]13", "[ cls ] 13"),
        ("[CLS]?", "[ cls ] ?"),
        ("，[CLS]", "， [ cls ]"),
        ("[CLS]<", "[ cls ] <"),
        ("[cls]", "[ cls ]"),
        ("[C\x00LS]", "[ cls ]"),
        ("[[CLS]]", "[ [ cls ] ]"),
        ("[SEP][SEP] [SEP] [SEP]t", "[ sep ] [ sep ] [SEP] [ sep ] t"),
    ],
)
def test_a_typed_symbol_is_kept_whole_only_where_it_stands_free(processor, text, pieces):
    ids = processor(text=text)["input_ids"][0, 1:-1]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == pieces.split()
    assert processor.encode_labels([text])[0, :-1].equal(ids)


@needs_recorded_text
def test_every_recorded_text_gets_its_official_ids():
    recorded = json.loads((SHARED / "golden" / "tokenizer_golden.json").read_text(encoding="utf-8"))["items"]
    processor = OFAProcessor(OFAImageProcessor(), build_tokenizer(SHARED / "vocab" / "vocab.txt"))
    texts = [item["text"] for item in recorded]
    wrong = [
        text
        for text, item in zip(texts, recorded)
        if processor(text=text)["input_ids"][0].tolist() != item["official_ids"]
    ]
    assert wrong == []


def test_many_symbols_take_no_longer_than_their_text(processor):
    assert clean_text("[SEP]" * 100_000) == "[sep]" * 100_000
    assert clean_text("\x00" * 100_000 + "[SEP]" + "\x00" * 100_000).count("[SEP]") == 1


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


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    pairs = read_byte_pairs(write_english_vocabulary(tmp_path_factory.mktemp("english") / "BPE"))
    return OFAProcessor(OFAImageProcessor(size=32), build_english_tokenizer(pairs), language="en")


def test_an_english_text_comes_back_as_it_was(english):
    for text in (" what red hat?", "a  b\n- c , [CLS]<s>", "3.5 % 😀 猫", "<bin_3> red"):
        ids = english(text=text)["input_ids"][0]
        assert english.decode(ids) == text
    assert english.decode(ids, skip_special_tokens=False) == "<s><bin_3> red</s>"


def test_an_english_answer_has_no_blank_in_front_but_its_target_has(english):
    labels = english.encode_labels(["red", " red hat", ""])
    pieces = [english.tokenizer.convert_ids_to_tokens([i for i in row if i >= 0]) for row in labels.tolist()]
    assert pieces == [["Ġred", "</s>"], ["Ġred", "Ġ", "hat", "</s>"], ["Ġ", "</s>"]]
    assert english.post_process(labels) == ["red", "red hat", ""]
    assert english.post_process_image_text_to_text(labels)[:2] == ["red", "red hat"]
    assert english.decode(labels[0]) == " red"


def test_english_bins_codes_and_fillers(english):
    ids = [*english.encode_bins([0, 999]), *english.tokenizer("red", add_special_tokens=False).input_ids]
    fillers = english.tokenizer.convert_tokens_to_ids(["madeupword0001", "<mask>", "<unk>"])
    assert (
        english.decode([0, *ids, *fillers, *english.encode_codes([8191]), 2, -100]) == "<bin_0><bin_999>red<code_8191>"
    )
    assert ids[1] == len(english.tokenizer) - 1


def test_english_half_characters_are_replaced_and_encode(english):
    assert english.decode(english(text="red \ud83d!")["input_ids"][0]) == "red \ufffd!"


def test_a_saved_english_processor_comes_back(english, images, tmp_path):
    english.save_pretrained(tmp_path)
    loaded = OFAProcessor.from_pretrained(tmp_path)
    assert loaded.prompt_for() == " what does the image describe?"
    for name, value in english(images).items():
        assert torch.equal(loaded(images)[name], value)


def test_every_recorded_english_text_gets_its_official_ids_and_comes_back():
    folder = SHARED / "golden_tasks"
    if not folder.is_dir():
        pytest.skip("shared/golden_tasks and shared/vocab_en are not next to this repository")
    recorded = json.loads((folder / "bpe_en_golden.json").read_text(encoding="utf-8"))
    tokenizer = build_english_tokenizer(read_byte_pairs(SHARED / "vocab_en"))
    processor = OFAProcessor(OFAImageProcessor(size=32), tokenizer, language="en")
    for item in recorded["strings"]:
        assert processor(text=item["text"], return_tensors=None)["input_ids"] == [[0, *item["ids"], 2]]
        assert processor.decode(item["ids"]) == item["decoded"]
    for case in recorded["decode_cases"]:
        if "decoded" in case and not {0, 1, 2, 3, 50264} & set(case["ids"]):
            assert processor.decode(case["ids"]) == case["decoded"]
    assert processor.encode_bins([0, 999]) + processor.encode_codes([0, 8191]) == [58457, 59456, 50265, 58456]


@pytest.fixture(scope="module")
def locator(processor):
    """Grounding, and the caption of a box with a prompt that the few word pieces have."""
    tasks = {"grounding": {}, "region_caption": {"prompt": "什么颜色?{box}"}}
    return OFAProcessor(processor.image_processor, processor.tokenizer, tasks=tasks)


def test_a_box_stands_before_the_end_of_its_prompt(locator, images):
    whole, half = (0, 0, 9, 70), (20, 0, 40, 20)
    batch = locator(images, boxes=[half, whole], task="region_caption")
    assert batch["attention_mask"].all()
    texts = [locator.decode(ids) for ids in batch["input_ids"]]
    # 32 of 512 pixels are 62 of 999 places
    assert texts == ["什么颜色?<bin_31><bin_0><bin_62><bin_62>", "什么颜色?<bin_0><bin_0><bin_62><bin_62>"]
    assert batch["input_ids"][:, -1].tolist() == [2, 2]
    rows = locator(images, text=[{"box": half}, {"box": whole}], task="region_caption")
    assert torch.equal(rows["input_ids"], batch["input_ids"])
    one = locator(images[0], boxes=half, task="region_caption", return_tensors=None)
    assert one["input_ids"] == batch["input_ids"][:1].tolist()


def test_a_box_that_cannot_be_used_is_refused(locator, images):
    with pytest.raises(ValueError, match="does not fit an image of 40×20 pixels"):
        locator(images[0], boxes=(0, 0, 41, 20), task="region_caption")
    with pytest.raises(ValueError, match="'grounding' takes no boxes"):
        locator(images[0], boxes=(0, 0, 4, 4), text="猫", task="grounding")
    with pytest.raises(ValueError, match="Got 2 images, 2 texts and 3 boxes"):
        locator(images, boxes=[(0, 0, 4, 4)] * 3, task="region_caption")
    with pytest.raises(ValueError, match="no value for box"):
        locator(images[0], task="region_caption")
    with pytest.raises(ValueError, match="needs the image"):
        locator(boxes=(0, 0, 4, 4), task="region_caption")


def test_places_are_answered_in_pixels_of_the_original_image(locator):
    ids = [0, *locator.encode_bins([0, 0, 31, 62]), 2]
    rows = torch.tensor([ids, ids, [0, 5, *ids[2:]]])
    boxes = locator.post_process(rows, "grounding", [(40, 20), (64, 64), (40, 20)])
    assert list(boxes[0].values()) == pytest.approx([0, 0, 19.86, 19.86], abs=0.01)
    assert list(boxes[1].values()) == pytest.approx([0, 0, 31.78, 63.55], abs=0.01)
    assert boxes[2] is None
    with pytest.raises(ValueError, match="Got none"):
        locator.post_process(rows, "grounding")
    with pytest.raises(ValueError, match="3 rows. Got 1"):
        locator.post_process(rows, "grounding", [(40, 20)])


def test_only_places_are_generated_unless_the_official_behaviour_is_asked_for(locator):
    (only,) = locator.generation_kwargs("grounding")["logits_processor"]
    assert only.first_place == locator.encode_bins([0])[0]
    assert "logits_processor" not in locator.generation_kwargs("grounding", official=True)
    assert "logits_processor" not in locator.generation_kwargs("region_caption")


@pytest.fixture(scope="module")
def asker(processor):
    return OFAProcessor(processor.image_processor, processor.tokenizer, tasks=["vqa"])


def test_an_answer_starts_with_its_question(asker, images):
    batch = asker(images, text=["什么颜色", "一只猫？?"], task="vqa")
    assert [asker.decode(ids) for ids in batch["input_ids"]] == ["什么颜色?", "一只猫?"]
    for ids, mask, start, real in zip(
        *(batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"))
    ):
        assert start[real.bool()].tolist() == ids[mask.bool()].tolist()[:-1]
    assert batch["decoder_attention_mask"].tolist()[0] == [1] * 6
    whole = OFAProcessor(asker.image_processor, asker.tokenizer, tasks={"vqa": {"starts_with": "question and end"}})
    one = whole(images[0], text="什么颜色")
    assert torch.equal(one["decoder_input_ids"], one["input_ids"])
    free = OFAProcessor(asker.image_processor, asker.tokenizer, tasks={"vqa": {"starts_with": ""}})
    assert "decoder_input_ids" not in free(images[0], text="什么颜色")
    assert "decoder_input_ids" not in asker(images[0], text="什么颜色", text_target="红")


def test_answers_of_a_list_are_encoded_without_start_and_end(asker):
    assert asker.encode_choices(["红色", "猫"]) == asker.tokenizer(["红色", "猫"], add_special_tokens=False).input_ids
    for texts, message in (
        ([], "list of answers is empty"),
        (["红", " "], "have no words, .*: ' ' .1 of 2."),
        (["红", "鑫", "鑫"], "words that the vocabulary lacks: '鑫', '鑫' .2 of 3."),
        (["红", "红 ", "红"], "the same to the model: '红' and '红 ', '红' and '红' .2 of 3."),
    ):
        with pytest.raises(ValueError, match=message):
            asker.encode_choices(texts)


@pytest.fixture
def told(monkeypatch):
    """What the processor warns of once."""
    messages = []
    monkeypatch.setattr("ofa_hf.processing_ofa.logger.warning_once", messages.append)
    return messages


def test_a_text_in_another_language_is_noticed(asker, english, images, told):
    asker(images[0], text="iphone 13 pro")  # the name of a product
    asker(images[0], text="一只 iphone 13 pro, what color is it")
    english(images[0], text="red hat")
    assert not told
    asker(images[0], text="what color is it")
    english(text="什么")
    assert ["on Chinese text but was asked in English" in told[0], "asked in Chinese" in told[1]] == [True, True]


def test_a_text_of_too_many_tokens_is_noticed(processor, told):
    short = OFAProcessor(processor.image_processor, processor.tokenizer, max_prompt_tokens=6)
    short(text="一只猫红")
    assert not told
    assert len(short(text="一只猫红色").input_ids[0]) == 6
    assert told == ["A text of more than 6 tokens was cut. Shorten such texts to have all of them read."]


def test_the_name_of_an_image_is_no_text(processor, images):
    for text in ("photos/1.jpg", "/a b/c.PNG"):
        with pytest.raises(ValueError, match="is the name of an image file. Pass images as images="):
            processor(images[0], text=text)
    processor(images[0], text="猫.jpg是什么")


def test_a_tokenizer_without_words_is_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no tokenizer: none of tokenizer.json, vocab.txt, vocab.json is there"):
        OFAProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has only special tokens"):
        OFAProcessor(processor.image_processor, Wordless(processor.tokenizer.all_special_tokens))


class Wordless:
    """A tokenizer of nothing but special tokens."""

    def __init__(self, all_special_tokens):
        self.all_special_tokens = all_special_tokens

    def __len__(self):
        return len(self.all_special_tokens)
