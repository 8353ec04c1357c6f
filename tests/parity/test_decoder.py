"""Third stage: encoder states and text to decoder features, in every recorded case."""

import pytest
import torch
from fixtures.recorded import Recording
from fixtures.stages import STATES, states_between_layers


@pytest.fixture(scope="module")
def inputs(recording, recorded_model):
    with torch.no_grad():
        encoded = recorded_model.encoder(**recording.encoder_inputs("c01_basic256"))
    return {"encoder_outputs": encoded, **recording.decoder_inputs("c01_basic256")}


@pytest.fixture(scope="module")
def states(recorded_model, inputs):
    return states_between_layers(recorded_model, "decoder", lambda: recorded_model(**inputs))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_between_layers_equal_the_recorded_ones(recording, states, layer):
    assert recording.error(f"c01_basic256/dec_state{layer}", states[layer]) < STATES


def test_last_cross_attention_equals_the_recorded_one(recording, recorded_model, inputs):
    with torch.no_grad():
        weights = recorded_model(**inputs, output_attentions=True).cross_attentions[-1]
    assert recording.error("c01_basic256/cross_attn_mean", weights.mean(1)) < STATES


@pytest.mark.parametrize("case", Recording.load().tags("feat"))
def test_decoder_features_equal_the_recorded_ones(recording, outputs, case):
    assert recording.error(f"{case}/feat", outputs(case).feat) < STATES
