"""Fourth stage: logits, in every recorded case, decoded at once and token by token."""

import copy

import pytest
import torch
from fixtures.recorded import Recording
from fixtures.stages import LOGITS


@pytest.mark.parametrize("case", Recording.load().tags("logits"))
def test_logits_equal_the_recorded_ones(recording, outputs, case):
    logits = outputs(case).logits
    assert recording.error(f"{case}/logits", logits) < LOGITS
    assert recording.error(f"{case}/logsumexp", logits.double().logsumexp(-1)) < LOGITS


@pytest.mark.parametrize("case", ["c01_basic256", "c02_padding", "c08_codes_all", "c08c_codes_partial"])
def test_logits_with_a_cache_equal_the_recorded_ones(recording, recorded_model, case):
    decoder_inputs = recording.decoder_inputs(case)
    tokens, cache, steps = decoder_inputs.pop("decoder_input_ids"), None, []
    with torch.no_grad():
        encoded = recorded_model.encoder(**recording.encoder_inputs(case))
        for step in range(tokens.shape[1]):
            output = recorded_model(
                encoder_outputs=encoded,
                decoder_input_ids=tokens[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
                **decoder_inputs,
            )
            cache = output.past_key_values
            steps.append(output.logits)
    assert recording.error(f"{case}/logits", torch.cat(steps, dim=1)) < LOGITS


def test_the_smallest_of_the_usual_mistakes_would_show(recording, recorded_model):
    model = copy.deepcopy(recorded_model)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        logits = model(**recording.encoder_inputs("c02_padding"), **recording.decoder_inputs("c02_padding")).logits
    assert recording.error("c02_padding/logits", logits) > 2 * LOGITS
