import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from ofa_hf.conversion import vocabulary
from ofa_hf.conversion.vocabulary import (
    build_tokenizer,
    fetch_vocabulary,
    load_legacy_tokenizer,
    read_word_pieces,
    vocabulary_ids,
)
from ofa_hf.errors import UserError


SHARED = Path(__file__).resolve().parents[4] / "shared"
needs_recorded_text = pytest.mark.skipif(
    not (SHARED / "golden" / "tokenizer_golden.json").is_file(),
    reason="shared/golden/tokenizer_golden.json and shared/vocab are not beside this repository",
)
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "/", "_", "s", "一", "只", "猫", "\u2028", "bin", "12"),
    *("ma", "##sk", "pad", "red", "##d", "[", "]", "cl", "##s"),
]


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{piece}\n" for piece in PIECES).encode())
    return path


@pytest.fixture(scope="session")
def recorded():
    return json.loads((SHARED / "golden" / "tokenizer_golden.json").read_text(encoding="utf-8"))["items"]


def test_line_separators_inside_the_vocabulary_do_not_shift_ids(vocab_file):
    assert read_word_pieces(vocab_file) == PIECES


@pytest.mark.parametrize("content", [b"", b"a\n\nb\n", b"a\nb\na\n", b"\xff\xfe"])
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"words\.txt"):
        read_word_pieces(path)


def test_ids_are_specials_then_pieces_then_mask_codes_and_bins():
    ids = vocabulary_ids(["x"] + [f"piece{index}" for index in range(21127)])
    assert [ids[entry] for entry in ("<s>", "<pad>", "</s>", "<unk>", "x")] == [0, 1, 2, 3, 4]
    assert [ids[entry] for entry in ("<mask>", "<code_0>", "<code_8191>", "<bin_0>", "<bin_999>")] == [
        *(21132, 21133, 29324, 29325, 30324)
    ]
    assert len(ids) == 30325


def _pieces_of(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:-1]


def test_typed_symbols_become_ordinary_pieces(vocab_file):
    tokenizer = build_tokenizer(vocab_file)
    assert _pieces_of(tokenizer, "<bin_12>") == ["<", "bin", "_", "12", ">"]
    assert _pieces_of(tokenizer, "一<s>猫") == ["一", "<", "s", ">", "猫"]
    assert _pieces_of(tokenizer, "</s>") == ["<", "/", "s", ">"]
    assert _pieces_of(tokenizer, "<mask>") == ["<", "ma", "##sk", ">"]
    assert _pieces_of(tokenizer, "<pad>") == ["<", "pad", ">"]


def test_typed_bert_symbols_stay_whole_and_unknown_text_is_the_unknown_token(vocab_file):
    tokenizer = build_tokenizer(vocab_file)
    assert _pieces_of(tokenizer, "一[MASK]猫") == ["一", "[MASK]", "猫"]
    for symbol in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        assert _pieces_of(tokenizer, symbol) == [symbol]
    assert _pieces_of(tokenizer, "[cls]") == ["[", "cl", "##s", "]"]
    assert _pieces_of(tokenizer, "猫“猫") == ["猫", "[UNK]", "猫"]
    assert _pieces_of(build_tokenizer(vocab_file, unk_token="<unk>"), "猫“猫") == ["猫", "<unk>", "猫"]


def test_a_vocabulary_without_its_unknown_token_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("一\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has no \[UNK\]"):
        build_tokenizer(path)


@pytest.mark.parametrize("load", [BertTokenizerFast.from_pretrained, AutoTokenizer.from_pretrained])
def test_a_saved_tokenizer_loads_without_remote_code_and_says_the_same(vocab_file, tmp_path, load):
    built = build_tokenizer(vocab_file)
    built.save_pretrained(tmp_path / "once")
    load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for loaded in (load(tmp_path / "once"), load(tmp_path / "twice")):
        for text in ("一只<bin_12>猫", "[SEP]<s></s><pad><mask>“", "redd"):
            assert loaded(text).data == built(text).data
        assert loaded.get_vocab() == built.get_vocab()
        assert loaded.model_input_names == ["input_ids", "attention_mask"]
        assert (loaded.model_max_length, loaded.clean_up_tokenization_spaces) == (1024, False)
        assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
        assert loaded.decode(built.convert_tokens_to_ids(["<bin_7>", "red", "##d"])) == "<bin_7> redd"


@needs_recorded_text
def test_every_recorded_text_gets_its_official_ids(recorded, tmp_path):
    build_tokenizer(SHARED / "vocab" / "vocab.txt").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 30325
    wrong = [item["text"] for item in recorded if tokenizer(item["text"]).input_ids != item["official_ids"]]
    assert wrong == []


@needs_recorded_text
def test_a_legacy_folder_keeps_the_ids_it_always_gave(recorded, tmp_path):
    tokenizer = load_legacy_tokenizer(SHARED / "vocab" / "ofa_chinese")
    tokenizer.save_pretrained(tmp_path)
    assert "shared" not in (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert [x["text"] for x in recorded if loaded(x["text"]).input_ids != x["ofachinese_ids"]] == []
        assert loaded.model_input_names == ["input_ids", "attention_mask"]


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"neither vocab\.txt nor tokenizer\.json"):
        load_legacy_tokenizer(tmp_path)


def test_a_folder_with_another_models_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    with pytest.raises(UserError, match="is not OFA's"):
        load_legacy_tokenizer(tmp_path)


def test_a_fetched_vocabulary_is_taken_only_with_the_right_digest(vocab_file, monkeypatch):
    monkeypatch.setattr(vocabulary, "hf_hub_download", lambda repository, name: str(vocab_file))
    with pytest.raises(UserError, match="sha256"):
        fetch_vocabulary()
    monkeypatch.setattr(vocabulary, "VOCABULARY_SHA256", hashlib.sha256(vocab_file.read_bytes()).hexdigest())
    assert fetch_vocabulary() == vocab_file


def test_an_unreachable_hub_is_one_line_with_advice(monkeypatch):
    def refuse(repository, name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(vocabulary, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"no route to host .*--vocab") as caught:
        fetch_vocabulary()
    assert "\n" not in str(caught.value)
