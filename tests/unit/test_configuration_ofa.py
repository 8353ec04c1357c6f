"""Configuration: the names of old files, round trips, and sizes that do not fit together."""

import json

import pytest

from ofa_hf.configuration_ofa import AUTO_MAP, FIXED_SWITCHES, RESNET_BLOCKS, OFAConfig


# What a `config.json` of OFA-Chinese holds beyond today's fields, as transformers 4.20 wrote it.
OLD_FIELDS = {
    "_name_or_path": "checkpoint",
    "architectures": ["OFAModelForCaption"],
    "classifier_dropout": 0.0,
    "forced_eos_token_id": 2,
    "init_std": 0.02,
    "model_type": "ofa",
    "num_hidden_layers": 6,
    "torch_dtype": "float32",
    "transformers_version": "4.20.0",
    **FIXED_SWITCHES,
}


def test_defaults_are_the_chinese_base_size():
    config = OFAConfig()
    assert (config.d_model, config.encoder_layers, config.decoder_layers, config.vocab_size) == (768, 6, 6, 30325)
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (1, 2, 0)
    assert config.is_encoder_decoder
    assert config.tie_word_embeddings


def test_what_is_saved_is_loaded(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    loaded = OFAConfig.from_pretrained(tmp_path)
    ours, theirs = tiny_config.to_dict(), loaded.to_dict()
    assert {key: theirs[key] for key in ours if not key.startswith("_")} == {
        key: value for key, value in ours.items() if not key.startswith("_")
    }


def test_saved_file_names_the_code_of_every_auto_class(tmp_path):
    OFAConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"] == AUTO_MAP
    assert saved["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_ofa.OFAImageToTextPipeline"


def test_fields_of_an_old_file_load_and_leave_no_trace():
    config = OFAConfig.from_dict(
        {**OLD_FIELDS, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    )
    assert config.d_model == 32
    assert config.num_hidden_layers == config.decoder_layers == 6
    assert not {"classifier_dropout", "init_std", *FIXED_SWITCHES} & config.to_dict().keys()


KERNEL = "someone/kernel"  # a repository with code in it


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation_internal": KERNEL},
        {"_experts_implementation_internal": KERNEL},
        {"_attn_implementation": KERNEL},
        {"attn_implementation": KERNEL},
        {"attn_implementation": {"": KERNEL}},
        {"attn_implementation": f"paged|{KERNEL}:function"},
        {"experts_implementation": KERNEL},
        {"text_config": {"_attn_implementation_internal": KERNEL}},
        {"decoder": {"attn_implementation": KERNEL}},
        {"attribute_map": {"alias": "_attn_implementation_internal"}, "alias": KERNEL},
        {"sub_configs": {"alias": KERNEL}},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["arguments", "from_dict", "file"])
def test_a_config_names_no_code_to_be_loaded(tmp_path, fields, way):
    """CVE-2026-4372: transformers 4.57 imports the kernel that such a field names."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ofa", **fields}), encoding="utf-8")
    load = {
        "arguments": lambda: OFAConfig(**fields),
        "from_dict": lambda: OFAConfig.from_dict(fields),
        "file": lambda: OFAConfig.from_pretrained(tmp_path),
    }
    config = load[way]()
    kept = {name: value for name, value in vars(config).items() if KERNEL in str(value)}
    assert kept == ({"alias": KERNEL} if "alias" in fields else {})  # under this name nothing reads it
    assert config._attn_implementation is None
    assert config.get_text_config() is config


def test_a_config_keeps_what_transformers_puts_into_one():
    kept = {"id2label": {0: "no"}, "task_specific_params": {"caption": {"num_beams": 5}}, "my_field": 3}
    config = OFAConfig.from_dict({"model_type": "ofa", **kept})
    assert {name: getattr(config, name) for name in kept} == kept


@pytest.mark.parametrize("general", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_general_names_of_transformers_reach_the_fields(tiny_config, general):
    assert getattr(tiny_config, general) == getattr(tiny_config, OFAConfig.attribute_map[general])


@pytest.mark.parametrize("name", ["normformer", "scale_embedding", "interpolate_position", "activation_function"])
def test_another_variant_of_ofa_is_refused_by_name(name):
    other = "relu" if name == "activation_function" else not FIXED_SWITCHES[name]
    with pytest.raises(ValueError, match=f"{name}={other!r}.*{name}={FIXED_SWITCHES[name]!r}"):
        OFAConfig(**{name: other})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resnet_type": "resnet34"}, "resnet34.*resnet18, resnet50, resnet101, resnet152"),
        ({"encoder_attention_heads": 7}, "encoder_attention_heads=7 does not divide d_model=768"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads=0"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"decoder_layers": 0}, "decoder_layers=0"),
        ({"code_image_size": 512}, "code_image_size=512 needs 64 positions.*image_bucket_size is 42"),
    ],
)
def test_sizes_that_fit_no_network_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        OFAConfig(**sizes)


def test_each_trunk_has_its_own_blocks():
    assert len(set(RESNET_BLOCKS.values())) == len(RESNET_BLOCKS) == 4
