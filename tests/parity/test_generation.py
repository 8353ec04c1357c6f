"""The official generator's best texts, token for token, and their scores."""

import pytest
from fixtures.recorded import Recording
from fixtures.stages import SCORES, generate


@pytest.mark.parametrize("name", Recording.load().facts["beam"])
def test_best_text_and_score_equal_the_official_generators(recording, recorded_model, name):
    found = generate(recorded_model, recording, name)
    recorded = recording.facts["beam"][name]["best"]
    assert [tokens for tokens, _ in found] == [best["tokens"] for best in recorded]
    assert [score for _, score in found] == pytest.approx([best["score"] for best in recorded], abs=SCORES)
