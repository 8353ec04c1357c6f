"""The full recordings, where they lie beside the repository: every number of the small network, and the base size."""

import copy
import math
from pathlib import Path

import pytest
import torch
from fixtures.extract_recorded import extract_arrays, extract_facts, read
from fixtures.recorded import Recording
from fixtures.stages import LOGITS, SCORES, STATES, generate, remembering


FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the recordings in ../shared/golden, not here"),
]
CASES = ["c01_basic256", "c02_padding", "c03_img384", "c04_img480", "c05_nonsquare", "c05b_nonsquare"]
CASES += ["c06_textonly", "c07_patchmask", "c08_codes_all", "c08c_codes_partial"]


def whole_recording(architecture: str) -> Recording:
    full, spec, arrays = read(FOLDER, architecture)
    return Recording(extract_facts(full, spec), extract_arrays(full, arrays, share=math.inf))


@pytest.fixture(scope="module")
def whole_mini():
    return whole_recording("mini")


@pytest.fixture(scope="module")
def base():
    return whole_recording("base")


@pytest.fixture(scope="module")
def base_model(base):
    return base.build_model()


@pytest.fixture(scope="module")
def base_outputs(base, base_model):
    return remembering(base, base_model)


@pytest.mark.parametrize("case", [*CASES, "c08b_codes_long"])
def test_every_number_of_the_small_network_equals_the_recorded_one(whole_mini, outputs, case):
    assert whole_mini.error(f"{case}/enc", outputs(case).enc) < STATES
    assert whole_mini.error(f"{case}/feat", outputs(case).feat) < STATES
    assert whole_mini.error(f"{case}/logits", outputs(case).logits) < LOGITS


@pytest.mark.parametrize("case", ["c01_basic256", "c04_img480", "c08c_codes_partial"])
def test_decoder_alone_turns_recorded_encoder_states_into_recorded_features(
    whole_mini, recording, recorded_model, case
):
    with torch.no_grad():
        encoded = recorded_model.encoder(**recording.encoder_inputs(case))
        index, value = whole_mini.recorded(f"{case}/enc")
        encoded.last_hidden_state.view(-1)[index] = torch.from_numpy(value)
        decoded = recorded_model(encoder_outputs=encoded, **recording.decoder_inputs(case), output_hidden_states=True)
    assert whole_mini.error(f"{case}/feat", decoded.decoder_hidden_states[-1]) < STATES


def test_base_feature_map_equals_the_recorded_one(base, base_model):
    """Its values reach 25, where float32 kernels differ by 3e-5 from machine to machine; in float64 none of that."""
    trunk, images = base_model.encoder.embed_images, base.images("c01_basic256")
    with torch.no_grad():
        features = trunk(images)
        exact = copy.deepcopy(trunk).double()(images.double()).float()
    assert base.error("c01_basic256/resnet", exact) < STATES
    assert base.error("c01_basic256/resnet", features) < 2e-6 * features.abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_base_outputs_equal_the_recorded_ones(base, base_outputs, case):
    assert base.error(f"{case}/enc", base_outputs(case).enc) < STATES
    assert base.error(f"{case}/feat", base_outputs(case).feat) < STATES
    assert base.error(f"{case}/logits", base_outputs(case).logits) < LOGITS
    assert base.error(f"{case}/logsumexp", base_outputs(case).logits.double().logsumexp(-1)) < LOGITS


@pytest.mark.parametrize("name", ["c11_beam_padded/beam5", "c11_beam/beam8_len30"])
def test_base_best_text_and_score_equal_the_official_generators(base, base_model, name):
    found = generate(base_model, base, name)
    recorded = base.facts["beam"][name]["best"]
    assert [tokens for tokens, _ in found] == [best["tokens"] for best in recorded]
    assert [score for _, score in found] == pytest.approx([best["score"] for best in recorded], abs=SCORES)
