import json
from pathlib import Path

import pytest
from small_checkpoints import write_bart_vocabulary, write_english_vocabulary
from transformers import AutoTokenizer, RobertaTokenizerFast

from ofa_hf.conversion import english_vocabulary as module
from ofa_hf.conversion.english_vocabulary import (
    VOCABULARY_DIGEST,
    build_english_tokenizer,
    fetch_byte_pairs,
    has_english_vocabulary,
    read_byte_pairs,
)
from ofa_hf.errors import UserError


SHARED = Path(__file__).resolve().parents[4] / "shared"
needs_recorded_text = pytest.mark.skipif(
    not (SHARED / "golden_tasks" / "bpe_en_golden.json").is_file(),
    reason="shared/golden_tasks/bpe_en_golden.json and shared/vocab_en are not next to this repository",
)


@pytest.fixture
def tokenizer(english_vocabulary):
    return build_english_tokenizer(read_byte_pairs(english_vocabulary))


def test_official_files_and_those_of_bart_give_the_same_vocabulary(english_vocabulary, tmp_path):
    pairs = read_byte_pairs(english_vocabulary)
    assert read_byte_pairs(write_bart_vocabulary(tmp_path)) == pairs
    assert pairs.pieces[:2] == ["Ġwhat", "hat"]
    assert pairs.pieces[-1] == "madeupword0002"
    assert pairs.merges[1] == ("re", "d")


def test_a_vocabulary_that_lists_codes_and_bins_is_read_without_them(english_vocabulary, tmp_path, tokenizer):
    folder = write_bart_vocabulary(tmp_path)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    assert read_byte_pairs(folder) == read_byte_pairs(english_vocabulary)


def test_ids_are_specials_then_pieces_then_mask_codes_and_bins(tokenizer):
    ids, mask = tokenizer.get_vocab(), 4 + 7 + 256 + 3
    assert [ids[entry] for entry in ("<s>", "<pad>", "</s>", "<unk>", "Ġwhat")] == [0, 1, 2, 3, 4]
    assert [ids[entry] for entry in ("<mask>", "<code_0>", "<bin_0>")] == [mask, mask + 1, mask + 8193]
    assert len(tokenizer) == mask + 9193


def test_text_becomes_pieces_between_start_and_end(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer(" what red").input_ids) == ["<s>", "Ġwhat", "Ġred", "</s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("red", add_special_tokens=False).input_ids) == ["red"]


@pytest.mark.parametrize("symbol", ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "<code_7>", "<bin_12>"])
def test_typed_symbols_become_ordinary_pieces(tokenizer, symbol):
    ids = tokenizer(f"red{symbol}", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["red", "<"]
    assert tokenizer.decode(ids) == f"red{symbol}"


@pytest.mark.parametrize("load", [RobertaTokenizerFast.from_pretrained, AutoTokenizer.from_pretrained])
def test_a_saved_tokenizer_loads_without_remote_code_and_says_the_same(tokenizer, tmp_path, load):
    tokenizer.save_pretrained(tmp_path / "once")
    load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for loaded in (load(tmp_path / "once"), load(tmp_path / "twice")):
        for text in (" what red<bin_12>hat", "<s></s><pad><mask> 😀", "\u2028 a\tb"):
            assert loaded(text).data == tokenizer(text).data
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.model_input_names == ["input_ids", "attention_mask"]
        assert (loaded.model_max_length, loaded.clean_up_tokenization_spaces) == (1024, False)
        assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2, 3)
    config = json.loads((tmp_path / "twice" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "RobertaTokenizer"  # the name that both versions know


@needs_recorded_text
def test_every_recorded_text_gets_its_official_ids_and_comes_back(tmp_path):
    recorded = json.loads((SHARED / "golden_tasks" / "bpe_en_golden.json").read_text(encoding="utf-8"))
    build_english_tokenizer(read_byte_pairs(SHARED / "vocab_en")).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 59457
    for item in recorded["strings"]:
        text = item["text"]
        assert tokenizer(text).input_ids == [0, *item["ids"], 2], text
        assert tokenizer(f" {text}", add_special_tokens=False).input_ids == item["ids_leading_space"], text
        assert tokenizer.decode(item["ids"]) == item["decoded"], text
    assert len(recorded["strings"]) == 112


@needs_recorded_text
def test_the_official_files_have_the_digest_that_a_download_must_have():
    assert read_byte_pairs(SHARED / "vocab_en").digest == VOCABULARY_DIGEST


def test_a_folder_without_the_files_is_refused_by_name(tmp_path):
    assert not has_english_vocabulary(tmp_path)
    with pytest.raises(
        UserError, match=r"no English vocabulary. Expected: encoder.json, vocab.bpe, dict.txt or vocab"
    ):
        read_byte_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("encoder.json", "[]", "cannot be read"),
        ("encoder.json", "{", "cannot be read"),
        ("dict.txt", "999999 1\n", "cannot be read"),
        ("dict.txt", "0 1\n0 1\n", "lacks"),
        ("vocab.bpe", "#version: 0.2\nr e d\n", "not a pair of pieces"),
        ("vocab.bpe", "#version: 0.2\nz z\n", "lacks .'zz'"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path, name, content, reason):
    folder = write_english_vocabulary(tmp_path / "BPE")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        read_byte_pairs(folder)


@pytest.mark.parametrize("change", [{"<s>": 7}, {"red": 100_000}])
def test_another_models_vocabulary_is_refused(tmp_path, change):
    folder = write_bart_vocabulary(tmp_path)
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({**ids, **change}), encoding="utf-8")
    with pytest.raises(UserError, match="starts with|skips|lacks"):
        read_byte_pairs(folder)


def test_a_fetched_vocabulary_is_taken_only_with_the_right_digest(tmp_path, monkeypatch):
    folder = write_bart_vocabulary(tmp_path)
    monkeypatch.setattr(module, "hf_hub_download", lambda repository, name: str(folder / name))
    with pytest.raises(UserError, match="has the digest"):
        fetch_byte_pairs()
    pairs = read_byte_pairs(folder)
    monkeypatch.setattr(module, "VOCABULARY_DIGEST", pairs.digest)
    assert fetch_byte_pairs() == pairs


def test_an_unreachable_hub_is_one_line_with_advice(monkeypatch):
    def refuse(repository, name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(module, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"no route to host .*--vocab") as caught:
        fetch_byte_pairs()
    assert "\n" not in str(caught.value)
