"""The search of steps finds what transformers' own finds, and what it is told to leave out it leaves out."""

import copy
import random

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import (
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ofa_hf import fast_ofa as kernels
from ofa_hf import generation_ofa, modeling_ofa
from ofa_hf.generation_ofa import (
    EndAtMaxLength,
    SoftmaxTemperature,
    process_scores,
    repeating_tokens,
)


PAD, EOS = 1, 2
SEEDS = [*range(36), 120, 187, 291, 376]  # the last four: texts that end in the very step that stops the search
needs_steps = pytest.mark.skipif(not kernels.onednn_works(), reason="torch has no oneDNN operators here")


@pytest.fixture(scope="module")
def inputs(tiny_batch):
    return {key: value for key, value in tiny_batch.items() if key != "labels"}


@pytest.fixture
def searches(monkeypatch) -> list:
    """How often the search of steps ran."""
    found, search = [], generation_ofa.beam_search
    monkeypatch.setattr(generation_ofa, "beam_search", lambda *args: found.append(1) or search(*args))
    return found


def run(model, inputs: dict, logits_processor=None, stopping_criteria=None, **settings):
    ids = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0}
    settings = {"max_length": 12, "num_beams": 4, "return_dict_in_generate": True, **ids, **settings}
    own = {"logits_processor": logits_processor or [], "stopping_criteria": stopping_criteria or []}
    with_prefix = {"prefix_allowed_tokens_fn": settings.pop("prefix_allowed_tokens_fn", None)}
    return model.generate(**inputs, **own, **with_prefix, generation_config=GenerationConfig(**settings))


def as_transformers_searches(model, inputs: dict, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_ofa.SearchSettings, "of", lambda *args: None)
        return run(model, inputs, **settings)


def some_settings(seed: int) -> dict:
    """Settings of all kinds; many tokens may end a text, so that texts of all lengths are found."""
    draw = random.Random(seed)
    num_beams, max_length = draw.choice([2, 3, 5]), draw.choice([3, 4, 7, 15])
    others = draw.sample(range(3, 100), draw.choice([2, 15]))
    settings = {
        "num_beams": num_beams,
        "num_return_sequences": draw.randint(1, num_beams),
        "length_penalty": draw.choice([-1.0, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": draw.choice([True, False, "never"]),
        "max_length": max_length,
        "eos_token_id": draw.choice([EOS, [EOS, *others], [EOS, *others]]),
        "no_repeat_ngram_size": draw.choice([0, 1, 2, 3]),
        "min_length": draw.choice([0, max_length - 1]),
        "end_at_max_length": draw.choice([True, False]),
    }
    extras = [{}, {"repetition_penalty": 1.5}, {"suppress_tokens": [PAD, 7]}, {"temperature": 1.7}]
    return {**settings, **draw.choice(extras)}


@needs_steps
@pytest.mark.parametrize("seed", SEEDS)
def test_texts_are_those_that_transformers_finds(tiny_model, inputs, searches, seed):
    settings = some_settings(seed)
    found, expected = run(tiny_model, inputs, **settings), as_transformers_searches(tiny_model, inputs, **settings)
    assert searches == [1], "transformers' own search was not to be counted"
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.beam_indices, expected.beam_indices)
    assert found.beam_indices.dtype == expected.beam_indices.dtype
    plain = run(tiny_model, inputs, **settings, return_dict_in_generate=False)
    assert torch.equal(plain, expected.sequences)


def test_settings_of_the_comparison_tell_something():
    texts = [some_settings(seed) for seed in SEEDS]
    for name in ("early_stopping", "length_penalty", "max_length", "no_repeat_ngram_size"):
        assert len({settings[name] for settings in texts}) >= 3


@needs_steps
def test_texts_are_empty_where_every_token_is_forbidden(tiny_model, inputs, searches):
    nothing = {"max_length": 5, "suppress_tokens": list(range(len(tiny_model.decoder.embed_tokens.weight)))}
    found = run(tiny_model, inputs, num_return_sequences=2, **nothing)
    assert searches == [1]
    assert found.sequences.tolist() == [[0]] * 6


@needs_steps
@pytest.mark.parametrize("begun", [1, 3])
@pytest.mark.parametrize("allowed", [[EOS], [EOS, 9], [9]])
def test_hardly_any_token_is_allowed(tiny_model, inputs, searches, allowed, begun):
    """Fewer than there are beams; what is impossible elsewhere goes on then."""
    settings = {"prefix_allowed_tokens_fn": lambda row, text: allowed, "max_length": 6}
    begun = {**inputs, "decoder_input_ids": torch.arange(20, 20 + begun).expand(3, -1)}
    found = run(tiny_model, begun, **settings)
    assert searches == [1]
    assert torch.equal(found.sequences, as_transformers_searches(tiny_model, begun, **settings).sequences)


@needs_steps
def test_processors_of_the_caller_see_whole_texts_and_may_write_to_scores(tiny_model, inputs, searches):
    class Forbidding(LogitsProcessor):
        def __init__(self):
            self.lengths = []

        def __call__(self, input_ids, scores):
            self.lengths.append(input_ids.shape)
            scores[:, 40:] = -torch.inf
            return scores

    forbidding = Forbidding()
    expected = as_transformers_searches(tiny_model, inputs, logits_processor=[Forbidding()])
    found = run(tiny_model, inputs, logits_processor=[forbidding])
    assert searches == [1]
    assert found.sequences.max() < 40
    assert forbidding.lengths[:3] == [(12, 1), (12, 2), (12, 3)]
    assert torch.equal(found.sequences, expected.sequences)


@needs_steps
def test_the_cache_can_be_gone_on_with(tiny_model, inputs):
    found = run(tiny_model, inputs, max_length=5)
    encoded = tiny_model.encode(**inputs)
    token = torch.full((12, 1), 9)
    with torch.no_grad():
        going_on = tiny_model(decoder_input_ids=token, encoder_outputs=encoded, past_key_values=found.past_key_values)
    assert going_on.logits.isfinite().all()
    assert found.past_key_values.get_seq_length() == 5
    assert not found.sequences.is_inference()


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] > 3)


ELSEWHERE = {
    "scores": {"output_scores": True},
    "logits": {"output_logits": True},
    "samples": {"do_sample": True},
    "another end": {"stopping_criteria": StoppingCriteriaList([AfterThree()])},
    "another length": {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(5)])},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("asked", ELSEWHERE)
def test_what_this_search_does_not_give_comes_from_transformers(tiny_model, inputs, searches, asked):
    found = run(tiny_model, inputs, **ELSEWHERE[asked])
    assert searches == []
    assert found.sequences.shape[0] == 3
    if asked.startswith("another"):
        assert found.sequences.shape[1] <= 5


@pytest.mark.parametrize("watched", ["", "decoder", "decoder.layer_norm"])
def test_who_watches_the_model_sees_every_step(tiny_model, inputs, searches, watched):
    model, seen = copy.deepcopy(tiny_model), []
    model.get_submodule(watched).register_forward_hook(lambda module, args, output: seen.append(output))
    run(model, inputs, max_length=6, min_length=6)
    assert searches == []
    assert len(seen) == 5


def test_a_model_of_another_forward_is_searched_with_it(tiny_model, inputs, searches):
    class Other(modeling_ofa.OFAForConditionalGeneration):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits[..., 9] += 100
            return output

    model = copy.deepcopy(tiny_model)
    model.__class__ = Other
    assert (run(model, inputs, max_length=4).sequences[:, 1:] == 9).all()
    assert searches == []


# ------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 9, 30])
def test_repeats_are_those_of_transformers(size, length):
    for text in torch.randint(0, 4, (20, length)):
        forbidden = NoRepeatNGramLogitsProcessor(size)(text[None], torch.zeros(1, 4)).isinf()[0]
        assert set(repeating_tokens(text.tolist(), size)) == set(forbidden.nonzero()[:, 0].tolist())


def test_processing_equals_one_processor_after_the_other():
    texts = torch.randint(3, 9, (4, 6))
    processors = [MinLengthLogitsProcessor(8, EOS), NoRepeatNGramLogitsProcessor(2), SoftmaxTemperature(1.7)]
    expected = scores = torch.randn(4, 9)
    for processor in processors:
        expected = processor(texts, expected)
    assert expected.isinf().sum() > 4
    assert torch.equal(process_scores(scores.clone(), texts.tolist(), processors), expected)


def test_temperature_divides_the_logits():
    logits = torch.randn(2, 7)
    expected = (logits / 1.7).log_softmax(-1)
    torch.testing.assert_close(SoftmaxTemperature(1.7)(torch.zeros(2, 3), logits.log_softmax(-1)), expected)


def test_last_token_is_the_end_with_its_true_score():
    scores = torch.randn(2, 5)
    processor = EndAtMaxLength(max_length=6, eos_token_id=EOS)
    assert processor(torch.zeros(2, 4), scores) is scores
    ended = processor(torch.zeros(2, 5), scores)
    assert torch.equal(ended[:, EOS], scores[:, EOS])
    assert ended.isinf().sum(1).tolist() == [4, 4]


@pytest.mark.parametrize("ends", [EOS, [EOS, 7]])
@pytest.mark.parametrize("length", [3, 4, 5])
def test_no_end_before_its_time_as_transformers_has_it(ends, length):
    ids, scores = torch.randint(3, 9, (2, length)), torch.randn(2, 9)
    for processor in (MinLengthLogitsProcessor(4, ends), MinNewTokensLengthLogitsProcessor(1, 4, ends)):
        expected = processor(ids, scores)
        assert torch.equal(process_scores(scores.clone(), ids.tolist(), [processor]), expected)
