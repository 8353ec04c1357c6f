"""Second stage: images and prompts to encoder states, in every recorded case."""

import pytest
import torch
from fixtures.recorded import Recording
from fixtures.stages import STATES, states_between_layers


@pytest.fixture(scope="module")
def states(recording, recorded_model):
    inputs = recording.encoder_inputs("c01_basic256")
    return states_between_layers(recorded_model, "encoder", lambda: recorded_model.encoder(**inputs))


def test_position_embeddings_equal_the_recorded_ones(recording, recorded_model):
    inputs = recording.encoder_inputs("c01_basic256")
    with torch.no_grad():
        positions = recorded_model.encoder(**inputs).position_embeddings
    assert recording.error("c01_basic256/position_embeddings", positions.expand(2, -1, -1)) < STATES


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_between_layers_equal_the_recorded_ones(recording, states, layer):
    assert recording.error(f"c01_basic256/enc_state{layer}", states[layer]) < STATES


@pytest.mark.parametrize("case", Recording.load().tags("enc"))
def test_encoder_states_equal_the_recorded_ones(recording, outputs, case):
    assert recording.error(f"{case}/enc", outputs(case).enc) < STATES


def test_padding_may_be_said_by_a_mask_or_by_pad_tokens(recording, recorded_model, outputs):
    inputs = recording.encoder_inputs("c02_padding")
    with torch.no_grad():
        encoded = recorded_model.encoder(**inputs, attention_mask=(inputs["input_ids"] != 1).long())
    torch.testing.assert_close(encoded.last_hidden_state, outputs("c02_padding").enc, rtol=0, atol=STATES)
