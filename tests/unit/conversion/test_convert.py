"""From a checkpoint to a folder: every part where it belongs, and nothing at all after a failure."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import ENGLISH_VOCAB_SIZE, make_config, make_official_weights
from transformers import AutoTokenizer

from ofa_hf import OFAForConditionalGeneration, OFAProcessor
from ofa_hf.conversion import convert as convert_module
from ofa_hf.conversion import sources
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.english_vocabulary import read_byte_pairs
from ofa_hf.errors import UserError


def convert_quickly(*args, **kwargs):
    """Without the fresh process, which one end-to-end test covers."""
    return convert(*args, verify=False, **kwargs)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "converted" / "ofa"


def save_official(path, weights, arguments):
    torch.save({"args": arguments, "cfg": None, "model": weights}, path)
    return path


def nothing_was_left(out):
    return not out.parent.exists() or not any(out.parent.iterdir())


def test_an_official_file_becomes_a_folder_with_the_same_weights(official_file, vocab_file, out, model_weights):
    account = convert_quickly(official_file, out, vocab_file)
    model = OFAForConditionalGeneration.from_pretrained(out)
    state = model.state_dict()
    assert state.keys() == model_weights.keys()
    for name, tensor in model_weights.items():
        assert torch.equal(state[name], tensor), name
    assert account.values["weights"]["counts"]["recomputed"] == 5
    assert account.values == json.loads((out / "conversion.json").read_text(encoding="utf-8"))


def test_what_belongs_to_the_checkpoint_lands_in_processor_and_generation_config(official_file, vocab_file, out):
    convert_quickly(official_file, out, vocab_file)
    processor = OFAProcessor.from_pretrained(out)
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert processor.prompt_for() == "图片描述了什么内容?"
    assert processor.image_processor.size == {"height": 96, "width": 96}
    assert processor.tokenizer.unk_token == "[UNK]"
    assert generation["num_beams"] == 8
    assert generation["max_length"] == 40  # 130, but this model has 40 positions
    assert generation["end_at_max_length"] is True
    assert "forced_eos_token_id" not in generation


def test_options_replace_what_belongs_to_the_checkpoint(official_file, vocab_file, out):
    options = {"prompt": "红色?", "image_size": 64, "generation": {"num_beams": 1, "max_length": 9}}
    convert_quickly(official_file, out, vocab_file, dtype="bfloat16", **options)
    processor = OFAProcessor.from_pretrained(out)
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert (processor.prompt_for(), processor.image_processor.size["width"]) == ("红色?", 64)
    assert (generation.get("num_beams", 1), generation["max_length"]) == (1, 9)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(out / "model.safetensors")["encoder.layer_norm.bias"].dtype == torch.bfloat16


def test_half_precision_stays_half_precision_and_counters_stay_whole(
    official_weights, arguments, vocab_file, out, tmp_path
):
    for name, tensor in official_weights.items():
        official_weights[name] = tensor.half() if tensor.is_floating_point() else tensor
    convert_quickly(save_official(tmp_path / "half.pt", official_weights, arguments), out, vocab_file)
    weights = load_file(out / "model.safetensors")
    assert weights["encoder.embed_tokens.weight"].dtype == torch.float16
    assert weights["encoder.embed_images.bn1.num_batches_tracked"].dtype == torch.int64
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_a_trunk_frozen_in_training_converts(official_weights, arguments, vocab_file, out, tmp_path):
    for name in [name for name in official_weights if name.endswith("num_batches_tracked")]:
        del official_weights[name]
    account = convert_quickly(save_official(tmp_path / "frozen.pt", official_weights, arguments), out, vocab_file)
    assert account.values["weights"]["counts"]["filled"] > 0
    assert load_file(out / "model.safetensors")["encoder.embed_images.bn1.num_batches_tracked"] == 0


def test_a_legacy_folder_says_what_it_said_before(legacy_folder, vocab_file, out, model_weights):
    account = convert_quickly(legacy_folder, out, vocab_file)
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    processor = OFAProcessor.from_pretrained(out)
    assert account.values["source"]["kind"] == "legacy OFA folder"
    assert (generation["num_beams"], generation["max_length"], generation["forced_eos_token_id"]) == (5, 20, 2)
    assert "end_at_max_length" not in generation
    assert processor.tokenizer.unk_token == "<unk>"
    state = OFAForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model_weights.items())


def test_a_published_legacy_name_brings_its_prompt(legacy_folder, vocab_file, out, tmp_path):
    folder = legacy_folder.rename(tmp_path / "ofa-cn-base-muge-v2")
    convert_quickly(folder, out, vocab_file, image_size=96)
    assert OFAProcessor.from_pretrained(out).prompt_for() == "图片描述了什么?"


def test_legacy_weights_in_safetensors_convert_too(legacy_folder, model_weights, vocab_file, out):
    (legacy_folder / "pytorch_model.bin").unlink()
    weights = {name: tensor for name, tensor in model_weights.items() if not name.startswith("decoder.embed_tokens")}
    weights["decoder.output_projection.weight"] = weights["decoder.output_projection.weight"].clone()
    save_file(weights, legacy_folder / "model.safetensors")
    assert convert_quickly(legacy_folder, out, vocab_file).values["source"]["layout"] == "safetensors"
    data = (legacy_folder / "model.safetensors").read_bytes()
    (legacy_folder / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(UserError, match="damaged or truncated"):
        convert_quickly(legacy_folder, out.with_name("again"), vocab_file)


@pytest.mark.parametrize("name", ["some_cn_base.pt", "ofa-legacy"])
def test_a_pointer_of_git_lfs_is_named_as_such(official_file, legacy_folder, vocab_file, out, name):
    checkpoint = official_file.with_name(name)
    file = checkpoint if checkpoint.is_file() else checkpoint / "pytorch_model.bin"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(UserError, match="is a Git LFS pointer of .* bytes.*git lfs pull"):
        convert_quickly(checkpoint, out, vocab_file)


def test_a_file_without_the_image_part_is_a_language_model(official_weights, arguments, vocab_file, out, tmp_path):
    weights = {name: tensor for name, tensor in official_weights.items() if "embed_images" not in name}
    with pytest.raises(UserError, match="no image part .* language model for text only"):
        convert_quickly(save_official(tmp_path / "plain.pt", weights, arguments), out, vocab_file)


def test_a_catalogue_name_is_downloaded_first(official_file, vocab_file, out, tmp_path, monkeypatch):
    asked = []

    def download(url):
        asked.append(url)
        return official_file

    monkeypatch.setattr(sources, "download_file", download)
    convert_quickly("caption_cn_base", out, vocab_file)
    assert asked == ["https://ofa-beijing.oss-cn-beijing.aliyuncs.com/checkpoints/caption_cn_base.pt"]


@pytest.mark.parametrize("file", ["conversion.json", "processor_config.json"])
def test_a_folder_of_this_package_is_refused(legacy_folder, vocab_file, out, file):
    (legacy_folder / file).write_text("{}")
    with pytest.raises(UserError, match="needs no conversion: ofa-hf wrote it"):
        convert(legacy_folder, out, vocab=vocab_file)
    assert not out.exists()


def test_a_hub_id_is_downloaded_as_a_folder(legacy_folder, vocab_file, out, monkeypatch):
    monkeypatch.setattr(sources, "download_repository", lambda name: legacy_folder)
    account = convert_quickly("YeungNLP/ofa-cn-base-muge-v2", out, vocab_file)
    assert account.values["checkpoint"]["prompt"] == "图片描述了什么?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("caption_cn_base.pt", "caption_cn_base without .pt"),
        ("/nowhere/model.pt", "No checkpoint at /nowhere/model.pt"),
        ("caption_cn_bse", "Did you mean caption_cn_base"),
        ("some/folder/that/is/not", "No checkpoint at"),
    ],
)
def test_what_is_nowhere_is_said_to_be_nowhere(name, said, out, vocab_file):
    with pytest.raises(UserError, match=said):
        convert_quickly(name, out, vocab_file)
    assert nothing_was_left(out)


def test_a_truncated_file_leaves_no_folder(official_file, vocab_file, out):
    official_file.write_bytes(official_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        convert_quickly(official_file, out, vocab_file)
    assert nothing_was_left(out)


def test_damaged_numbers_leave_no_folder(official_weights, arguments, vocab_file, out, tmp_path):
    official_weights["encoder.layer_norm.bias"] = torch.full((32,), 0.123)
    path = save_official(tmp_path / "model.pt", official_weights, arguments)
    value = torch.tensor([0.123]).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(value * 32, bytes(4) + value * 31))
    with pytest.raises(UserError, match="checksum"):
        convert_quickly(path, out, vocab_file)
    assert nothing_was_left(out)


def test_an_additional_or_missing_weight_leaves_no_folder(official_weights, arguments, vocab_file, out, tmp_path):
    del official_weights["encoder.layer_norm.bias"]
    with pytest.raises(UserError, match=r"Missing weights in a.pt: encoder.layer_norm.bias"):
        convert_quickly(save_official(tmp_path / "a.pt", official_weights, arguments), out, vocab_file)
    official_weights["encoder.layer_norm.bias"] = torch.zeros(32)
    official_weights["encoder.layers.0.adapter.up.weight"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"Unknown weights in b.pt: encoder.layers.0.adapter.up.weight"):
        convert_quickly(save_official(tmp_path / "b.pt", official_weights, arguments), out, vocab_file)
    assert nothing_was_left(out)


def test_another_vocabulary_is_refused_with_both_sizes(official_file, tmp_path, out):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[UNK]\n<\n一\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"gives 9,200 symbols, but some_cn_base.pt has 9,2"):
        convert_quickly(official_file, out, vocab)
    assert nothing_was_left(out)


@pytest.mark.parametrize(
    "options", [{"image_size": 15}, {"image_size": 129}, {"dtype": "int8"}, {"generation": {"max_length": 41}}]
)
def test_options_the_model_cannot_work_with_are_refused(official_file, vocab_file, out, options):
    with pytest.raises(UserError):
        convert_quickly(official_file, out, vocab_file, **options)
    assert nothing_was_left(out)


def test_a_converted_folder_is_not_converted_again(official_file, vocab_file, out, tmp_path):
    convert_quickly(official_file, out, vocab_file)
    with pytest.raises(UserError, match="needs no conversion"):
        convert_quickly(out, tmp_path / "again", vocab_file)


def test_a_failed_replacement_keeps_the_earlier_conversion(official_file, vocab_file, out):
    convert_quickly(official_file, out, vocab_file)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    official_file.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        convert_quickly(official_file, out, vocab_file, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_full_disk_is_said_before_anything_is_written(official_file, vocab_file, out, monkeypatch):
    usage = shutil.disk_usage(out.parent.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="Free some space"):
        convert_quickly(official_file, out, vocab_file)
    assert nothing_was_left(out)


def test_the_card_tells_the_source_and_no_scores(official_file, vocab_file, out):
    convert_quickly(official_file, out, vocab_file)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith(
        "---\nlanguage: zh\nlibrary_name: transformers\nlicense: unknown\npipeline_tag: image-to-text\n"
    )
    assert "some_cn_base.pt" in card
    assert "switched off" in card  # no proof was made here
    assert "no score was computed" in card


def test_two_conversions_of_one_file_are_equal(official_file, vocab_file, tmp_path):
    for name in ("a", "b"):
        convert_quickly(official_file, tmp_path / name, vocab_file)
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second


def test_a_disk_that_fills_up_while_a_library_writes_is_told_and_leaves_nothing(
    official_file, vocab_file, out, monkeypatch
):
    def write(*_, **__):
        raise Exception("No space left on device (os error 28)")  # as tokenizers and safetensors say it

    monkeypatch.setattr(OFAProcessor, "save_pretrained", write)
    with pytest.raises(UserError, match=r"The disk that holds .* is full\. Free some space"):
        convert_quickly(official_file, out, vocab_file)
    assert nothing_was_left(out)


def test_an_english_file_converts_with_its_vocabulary_prompt_and_settings(
    english_file, english_vocabulary, english_weights, out
):
    account = convert_quickly(english_file, out, english_vocabulary)
    processor = OFAProcessor.from_pretrained(out)
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert (processor.language, processor.prompt_for()) == ("en", " what does the image describe?")
    assert (generation["num_beams"], generation["max_length"], generation["no_repeat_ngram_size"]) == (5, 18, 3)
    assert type(AutoTokenizer.from_pretrained(out)).__name__.startswith("RobertaTokenizer")
    assert "language: en\n" in (out / "README.md").read_text(encoding="utf-8")
    assert account.values["checkpoint"]["language"] == "en"
    state = OFAForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in english_weights.items())


def test_an_english_huge_file_brings_the_temperature_of_its_search(
    english_weights, english_vocabulary, arguments, out, tmp_path
):
    arguments.arch = "ofa_huge"
    path = save_official(
        tmp_path / "mine.pt", make_official_weights(make_config(ENGLISH_VOCAB_SIZE), english_weights), arguments
    )
    convert_quickly(path, out, english_vocabulary, generation={"num_beams": 2, "max_length": 5})
    model = OFAForConditionalGeneration.from_pretrained(out)
    assert (model.generation_config.length_penalty, model.generation_config.beam_temperature) == (0.98, 0.98)
    model.save_pretrained(tmp_path / "saved")  # transformers refuses to save another temperature
    pixels = torch.rand(1, 3, 64, 64)
    options = {"input_ids": torch.tensor([[0, 5, 2]]), "pixel_values": pixels, "output_scores": True}
    search = model.generate(**options, return_dict_in_generate=True).sequences_scores
    explicit = model.generate(**options, temperature=0.98, return_dict_in_generate=True).sequences_scores
    other = model.generate(**options, temperature=0.5, return_dict_in_generate=True).sequences_scores
    assert torch.equal(search, explicit)
    assert not torch.allclose(search, other)


def test_a_legacy_english_folder_brings_its_tokenizer(english_legacy_folder, english_weights, out):
    account = convert_quickly(english_legacy_folder, out)
    processor = OFAProcessor.from_pretrained(out)
    assert account.values["source"]["published_as"] == "OFA-Sys/ofa-tiny"
    assert (processor.language, processor.prompt_for()) == ("en", " what does the image describe?")
    assert processor.tokenizer(" what").input_ids == [0, 4, 2]
    state = OFAForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in english_weights.items())


def test_an_english_size_without_a_vocabulary_asks_the_hub(english_file, english_vocabulary, out, monkeypatch):
    monkeypatch.setattr(convert_module, "ENGLISH_VOCABULARY", ENGLISH_VOCAB_SIZE)
    monkeypatch.setattr(convert_module, "fetch_byte_pairs", lambda: read_byte_pairs(english_vocabulary))
    assert convert_quickly(english_file, out).values["checkpoint"]["language"] == "en"


def test_vocabularies_of_the_other_language_are_refused(
    official_file, english_vocabulary, english_file, vocab_file, out
):
    with pytest.raises(UserError, match="The vocabulary gives 9,463 symbols"):
        convert_quickly(official_file, out, english_vocabulary)
    with pytest.raises(UserError, match="symbols, but mine.pt has 9,463"):
        convert_quickly(english_file, out, vocab_file)
    with pytest.raises(UserError, match="holds no English vocabulary"):
        convert_quickly(english_file, out, vocab_file.parent)
    assert nothing_was_left(out)


def test_a_checkpoint_of_a_task_nobody_has_here_is_refused_by_name(
    english_weights, english_vocabulary, arguments, out, tmp_path
):
    arguments.task = "speech"
    weights = make_official_weights(make_config(ENGLISH_VOCAB_SIZE), english_weights)
    with pytest.raises(UserError, match="mine.pt was trained for the task 'speech'"):
        convert_quickly(save_official(tmp_path / "mine.pt", weights, arguments), out, english_vocabulary)
    assert nothing_was_left(out)
