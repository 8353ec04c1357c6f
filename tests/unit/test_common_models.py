"""transformers' own tests of models, run on OFA. `make test-common` downloads them; docs/compatibility.md lists the
ones that cannot pass.

Set `TRANSFORMERS_SOURCE` to an unpacked source distribution of the installed transformers to run them directly. It has
`tests/test_modeling_common.py` but not the folders next to it, so the mixins that the file imports from there are
replaced by empty ones.
"""

import copy
import importlib
import os
import re
import sys
import types
import unittest
from pathlib import Path

import pytest


if "TRANSFORMERS_SOURCE" not in os.environ:
    pytest.skip("needs transformers' source distribution: make test-common", allow_module_level=True)

import torch
import transformers

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.modeling_ofa import OFAForConditionalGeneration, OFAModel


PACKAGE = "transformers_tests"
COMPATIBILITY = Path(__file__).parents[2] / "docs" / "compatibility.md"
MAJOR = transformers.__version__.partition(".")[0]


def load_common_tests(tests: Path) -> type:
    """`ModelTesterMixin` of a folder of tests, which is not a package that could be imported by its name."""
    stand_ins = {
        "": {"__path__": [str(tests)]},
        ".exporters": {"__path__": []},
        ".exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        ".generation": {"__path__": []},
        ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    }
    for name, members in stand_ins.items():
        module = sys.modules[PACKAGE + name] = types.ModuleType(PACKAGE + name)
        vars(module).update(members)
    return importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin


def known_failures() -> set[str]:
    """Tests that docs/compatibility.md lists for this version of transformers."""
    rows = re.findall(r"^\| `(test_\w+)` \| ([45, ]+) \|", COMPATIBILITY.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for name, versions in rows if MAJOR in versions}


class OFAModelTester:
    """What the common tests ask about a model: a small config, a batch, and their sizes."""

    batch_size, seq_length, decoder_seq_length = 3, 6, 6
    is_training, hidden_size, num_hidden_layers, num_attention_heads = True, 32, 2, 4
    key_length = encoder_seq_length = encoder_key_length = 10  # 4 image cells and 6 tokens

    def get_config(self) -> OFAConfig:
        sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 120}
        positions = {"max_position_embeddings": 64, "token_bucket_size": 16, "image_bucket_size": 8}
        return OFAConfig(**sizes, **positions, resnet_type="resnet18", code_image_size=32)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        prompts, texts = (torch.randint(4, 120, (3, 6), generator=generator) for _ in range(2))
        return self.get_config(), {
            "input_ids": prompts,
            "attention_mask": torch.ones_like(prompts),
            "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
            "decoder_input_ids": texts,
            "decoder_attention_mask": torch.ones_like(texts),
        }


class TestOFA(load_common_tests(Path(os.environ["TRANSFORMERS_SOURCE"]) / "tests"), unittest.TestCase):
    all_model_classes = (OFAForConditionalGeneration, OFAModel)
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True  # or it is left out, as this package has no year
    test_head_masking = test_pruning = test_torchscript = fx_compatible = False  # of transformers 4 only

    def setUp(self):
        self.model_tester = OFAModelTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:  # one text is image codes, so that every weight is trained
            inputs |= {"labels": inputs["decoder_input_ids"], "code_masks": torch.tensor([True, False, True])}
        return inputs


for _name in known_failures():  # one that passes fails, so that the list stays true
    setattr(TestOFA, _name, unittest.expectedFailure(getattr(TestOFA, _name)))
