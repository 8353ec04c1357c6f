"""Each fork between versions of transformers gives what the installed version takes."""

from types import SimpleNamespace

import pytest
import transformers
from transformers.cache_utils import StaticCache
from transformers.modeling_outputs import Seq2SeqLMOutput

from ofa_hf import OFAConfig, versions_ofa


def test_the_cache_has_the_name_of_the_output_field():
    assert versions_ofa.CACHE_NAME in Seq2SeqLMOutput.__dataclass_fields__


def test_auto_classes_exist_and_those_of_both_versions_are_among_them():
    assert {"AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"} <= set(versions_ofa.AUTO_CLASSES_WITH_HEAD)
    assert all(hasattr(transformers, name) for name in versions_ofa.AUTO_CLASSES_WITH_HEAD)


def test_a_static_cache_tells_its_length():
    config = OFAConfig(d_model=24, decoder_layers=1)
    cache = StaticCache(config=config, max_cache_len=7)
    assert versions_ofa.fixed_cache_length(cache) == 7


def test_tied_weights_have_the_form_of_the_version():
    tied = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
    keys = versions_ofa.tied_weights_keys(tied)
    assert list(keys) == list(tied)
    assert isinstance(keys, dict) == versions_ofa.TRANSFORMERS_5


@pytest.mark.parametrize("item", ["encoder.weight", ("encoder.weight", (1, 2), (3, 4))])
def test_mismatched_weights_are_names_in_both_versions(item):
    assert versions_ofa.mismatched_names({"mismatched_keys": {item}}) == ["encoder.weight"]


def test_settings_of_a_call_win_over_those_of_the_pipeline():
    given = {"generation_config": "mine", "num_beams": 2}
    old = SimpleNamespace(generation_config="pipeline's")
    assert versions_ofa.pipeline_generate_kwargs(old, given) == given
    assert versions_ofa.pipeline_generate_kwargs(old, {"num_beams": 2}) == {
        "num_beams": 2,
        "generation_config": "pipeline's",
        "use_model_defaults": False,
    }
    new = SimpleNamespace(_prepare_generate_kwargs=lambda kwargs: {**kwargs, "prepared": True})
    assert versions_ofa.pipeline_generate_kwargs(new, {"num_beams": 2}) == {"num_beams": 2, "prepared": True}
