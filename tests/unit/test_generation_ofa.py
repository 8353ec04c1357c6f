"""Every way to generate; a cache of any kind never changes a token."""

import copy
import warnings

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import utils
from transformers.generation.streamers import BaseStreamer
from transformers.utils import generic

from ofa_hf.fast_decoding_ofa import TextCache
from ofa_hf.generation_ofa import AnswerTrie, OFAEncoderOutput


PAD, EOS = 1, 2
WAYS = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "beam with several returns": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "beam, official rules": {
        "num_beams": 3,
        "early_stopping": True,
        "no_repeat_ngram_size": 2,
        "min_length": 4,
        "suppress_tokens": [PAD],
        "end_at_max_length": True,
    },
    "beam with temperature": {"num_beams": 3, "temperature": 1.7},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "top_p": 0.95, "temperature": 1.3},
    "beam sampling": {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.5, "bad_words_ids": [[17], [5, 6]]},
}
OWN_ARGUMENTS = {  # of `generate`, beside the configuration
    "streamer",
    "assistant_model",
    "decoder_input_ids",
    "decoder_attention_mask",
    "code_masks",
    "prefix_allowed_tokens_fn",
    "logits_processor",
}


@pytest.fixture(scope="module")
def inputs(tiny_batch):
    return {key: value for key, value in tiny_batch.items() if key != "labels"}


def run(model, inputs: dict, **settings):
    """Texts of 12 tokens at most, with a fixed seed and nothing from the checkpoint's own settings."""
    ids = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0}
    own = {key: settings.pop(key) for key in list(settings) if key in OWN_ARGUMENTS}
    torch.manual_seed(3)
    return model.generate(**inputs, **own, generation_config=GenerationConfig(**{"max_length": 12, **ids, **settings}))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_never_changes_a_token(tiny_model, inputs, way, cache):
    settings = {} if cache == "dynamic" else {"cache_implementation": "static"}
    without = run(tiny_model, inputs, use_cache=False, **WAYS[way])
    assert torch.equal(run(tiny_model, inputs, **settings, **WAYS[way]), without)
    assert without.shape[0] == 3 * WAYS[way].get("num_return_sequences", 1)
    assert len({tuple(text) for text in without.tolist()}) > 1
    assert max(len(set(text)) for text in without.tolist()) > 5


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("way", "lengths"), [("steps", [1, 1, 1]), ("layers", [1, 1, 1]), ("static", [1, 1, 1]), ("without", [1, 2, 3])]
)
def test_a_step_computes_no_more_than_the_new_token(tiny_model, inputs, monkeypatch, num_beams, way, lengths):
    """Also where transformers calls the cache by another name than it used to."""
    if way == "layers":
        monkeypatch.setattr(tiny_model._decoding_weights, "make_cache", lambda *_: None)
    settings = {"static": {"cache_implementation": "static"}, "without": {"use_cache": False}}.get(way, {})
    seen, decode = [], tiny_model.decoder.forward

    def watched(*args, input_ids, **kwargs):
        seen.append(input_ids.shape[1])
        return decode(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(tiny_model.decoder, "forward", watched)
    run(tiny_model, inputs, num_beams=num_beams, max_length=4, min_length=4, **settings)
    assert seen == lengths


def test_no_name_is_used_that_transformers_warns_of(tiny_model, inputs, monkeypatch):
    for logger in (generic.logger, utils.logger):
        monkeypatch.setattr(logger, "warning_once", lambda message, *_: pytest.fail(message), raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for settings in ({"num_beams": 1}, {"num_beams": 3, "return_dict_in_generate": True}, {"use_cache": False}):
            run(tiny_model, inputs, **settings)
        with torch.no_grad():
            tiny_model(**inputs, decoder_input_ids=torch.zeros(3, 2, dtype=torch.long))


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_prompts_for_the_decoder_may_be_padded_on_the_left(tiny_model, inputs, cache, num_beams):
    start = {
        "decoder_input_ids": torch.tensor([[0, 40, 41], [PAD, 0, 50], [PAD, PAD, 0]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]]),
    }
    texts = run(tiny_model, inputs, **start, **cache, num_beams=num_beams)
    assert torch.equal(texts[:, :3], start["decoder_input_ids"])
    assert torch.equal(texts, run(tiny_model, inputs, **start, use_cache=False, num_beams=num_beams))
    mask = torch.cat([start["decoder_attention_mask"], torch.ones(3, texts.shape[1] - 3)], dim=1)
    if num_beams == 1:  # each token is the best one after those before it
        with torch.no_grad():
            best = tiny_model(**inputs, decoder_input_ids=texts, decoder_attention_mask=mask).logits.argmax(-1)
        ended = (texts == EOS).cumsum(1) > 0
        assert torch.equal(best[:, 2:-1][~ended[:, 2:-1]], texts[:, 3:][~ended[:, 2:-1]])


@pytest.mark.parametrize("flags", [[True, True, True], [False, True, False]])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_image_codes_are_generated_with_a_flag_a_sample(tiny_model, inputs, flags, num_beams):
    settings = {"num_beams": num_beams, "suppress_tokens": [PAD, EOS]}
    texts = run(tiny_model, inputs, code_masks=torch.tensor(flags), **settings)
    assert torch.equal(texts, run(tiny_model, inputs, code_masks=torch.tensor(flags), use_cache=False, **settings))
    plain = run(tiny_model, inputs, **settings)
    assert [not torch.equal(*pair) for pair in zip(texts, plain, strict=True)] == flags


def test_several_samples_of_an_image_equal_the_image_repeated(tiny_model, inputs):
    settings = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    together = run(tiny_model, inputs, num_return_sequences=3, **settings)
    repeated = run(tiny_model, {key: value.repeat_interleave(3, 0) for key, value in inputs.items()}, **settings)
    assert torch.equal(together.sequences, repeated.sequences)
    torch.testing.assert_close(together.scores[0], repeated.scores[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("way", ["greedy", "beam", "sampling"])
def test_given_encoder_outputs_are_used(tiny_model, inputs, way):
    with torch.no_grad():
        encoded = tiny_model.get_encoder()(**inputs)
    texts = run(tiny_model, {"encoder_outputs": encoded}, **WAYS[way])
    assert torch.equal(texts, run(tiny_model, inputs, **WAYS[way]))


def test_text_of_a_padded_batch_equals_the_text_alone(tiny_model, inputs):
    together = run(tiny_model, inputs, num_beams=3)
    for row, length in enumerate((6, 3, 5)):
        own = {"input_ids": inputs["input_ids"][row : row + 1, :length]}
        alone = run(tiny_model, {**own, "pixel_values": inputs["pixel_values"][row : row + 1]}, num_beams=3)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert (together[row, len(alone) :] == PAD).all()


@pytest.mark.parametrize("in_steps", [True, False])
def test_encoder_runs_once_an_image_and_its_keys_are_not_repeated_for_beams(tiny_model, inputs, monkeypatch, in_steps):
    seen = []
    if not in_steps:
        monkeypatch.setattr(tiny_model._decoding_weights, "make_cache", lambda *_: None)
    encode = tiny_model.encoder.forward
    monkeypatch.setattr(
        tiny_model.encoder, "forward", lambda *args, **kwargs: seen.append(1) or encode(*args, **kwargs)
    )
    output = run(tiny_model, inputs, num_beams=4, return_dict_in_generate=True)
    assert seen == [1]
    assert output.past_key_values.cross_attention_cache.layers[0].keys.shape[0] == 3
    texts = output.past_key_values.self_attention_cache
    assert (texts.owners if isinstance(texts, TextCache) else texts.layers[0].keys).shape[0] == 12


class Collecting(BaseStreamer):
    def __init__(self):
        self.tokens, self.has_ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.has_ended = True


def only_first(inputs: dict) -> dict:
    return {key: value[:1] for key, value in inputs.items()}


def test_streamer_receives_every_token(tiny_model, inputs):
    streamer = Collecting()
    text = run(tiny_model, only_first(inputs), streamer=streamer)
    assert streamer.tokens == text[0].tolist()
    assert streamer.has_ended


def test_prompt_lookup_and_an_assistant_give_the_greedy_text(tiny_model, inputs):
    greedy = run(tiny_model, only_first(inputs), max_length=20)
    assert torch.equal(run(tiny_model, only_first(inputs), max_length=20, prompt_lookup_num_tokens=3), greedy)
    assistant = copy.deepcopy(tiny_model)
    with torch.no_grad():
        assistant.decoder.layers[2].fc2.weight.mul_(0.5)  # guesses wrong now and then
    assert torch.equal(run(tiny_model, only_first(inputs), max_length=20, assistant_model=assistant), greedy)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_attentions_and_hidden_states_are_returned_on_request(tiny_model, inputs, num_beams):
    settings = {"num_beams": num_beams, "return_dict_in_generate": True}
    output = run(tiny_model, inputs, output_attentions=True, output_hidden_states=True, **settings)
    steps = len(output.cross_attentions)
    assert steps == output.sequences.shape[1] - 1 or num_beams > 1
    for step in range(steps):
        assert [weights.shape for weights in output.cross_attentions[step]] == [(3 * num_beams, 2, 1, 22)] * 3
        assert [weights.shape for weights in output.decoder_attentions[step]] == [(3 * num_beams, 2, 1, step + 1)] * 3
        assert [states.shape for states in output.decoder_hidden_states[step]] == [(3 * num_beams, 1, 32)] * 4
    assert len(output.encoder_attentions) == 2
    assert len(output.encoder_hidden_states) == 3
    assert torch.equal(output.sequences, run(tiny_model, inputs, num_beams=num_beams))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_allowed_tokens_may_depend_on_the_image(tiny_model, inputs, num_beams):
    texts = run(tiny_model, inputs, num_beams=num_beams, prefix_allowed_tokens_fn=lambda row, _: [20 + row, 40 + row])
    for row, text in enumerate(texts[:, 1:].tolist()):
        assert set(text) <= {20 + row, 40 + row}


def test_generation_leaves_gradients_to_later_training(tiny_model, inputs, tiny_batch):
    model = copy.deepcopy(tiny_model)
    run(model, inputs, num_beams=3)
    model(**tiny_batch).loss.backward()
    assert model.decoder.self_pos_q_linear.weight.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------- own rules


@pytest.mark.parametrize("length", [{"max_length": 6}, {"max_new_tokens": 5, "max_length": 90}])
def test_every_text_ends_within_its_length_when_asked_to(tiny_model, inputs, length):
    texts = run(tiny_model, inputs, num_beams=3, end_at_max_length=True, suppress_tokens=[PAD], **length)
    assert texts.shape[1] <= 6
    assert ((texts == EOS).sum(1) == 1).all()


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_sampled_text_ends_within_its_length_though_top_k_rules_its_end_out(tiny_model, inputs, num_beams):
    texts = run(tiny_model, inputs, num_beams=num_beams, do_sample=True, top_k=2, max_length=6, end_at_max_length=True)
    assert texts.shape[1] <= 6
    assert (texts == EOS).any(1).all()


def test_a_static_cache_serves_other_numbers_of_images_and_beams(tiny_model, inputs):
    model = copy.deepcopy(tiny_model)
    for count, num_beams in ((2, 1), (1, 2), (2, 1), (2, 2), (3, 1)):
        some = {key: value[:count] for key, value in inputs.items()}
        texts = run(model, some, num_beams=num_beams, cache_implementation="static")
        assert torch.equal(texts, run(tiny_model, some, num_beams=num_beams))


def test_temperature_divides_the_logits_in_beam_search_too(tiny_model, inputs):
    settings = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    plain, warm = (run(tiny_model, inputs, temperature=one, **settings) for one in (1.0, 1.7))
    assert (plain.sequences_scores - warm.sequences_scores).abs().min() > 1e-2


@pytest.mark.parametrize("given", ["inputs", "encoder outputs"])
@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_sequence_scores_equal_the_scores_of_beam_search(tiny_model, inputs, given, num_return_sequences):
    settings = {"num_return_sequences": num_return_sequences, "return_dict_in_generate": True, "output_scores": True}
    output = run(
        tiny_model, inputs, num_beams=3, length_penalty=1.0, end_at_max_length=True, suppress_tokens=[PAD], **settings
    )
    if given == "inputs":
        scores = tiny_model.sequence_scores(output.sequences, **inputs)
    else:
        with torch.no_grad():
            encoded = tiny_model.get_encoder()(**inputs)
        assert isinstance(encoded, OFAEncoderOutput)
        scores = tiny_model.sequence_scores(output.sequences, encoder_outputs=encoded)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores, output.sequences_scores, rtol=0, atol=1e-5)


CHOICES = [[17], [17, 20], [17, 20, 33], [17, 21], [40], [41, 5, 6, 7], [41, 5, 6, 8], [41, 90]]


def by_hand(model, inputs, choices, starts):
    """Log-probabilities among the choices, word by word from whole logits."""
    scores = torch.zeros(len(starts), len(choices))
    encoded = model.encode(**inputs)
    for row, start in enumerate(starts):
        for column, choice in enumerate(choices):
            tokens = [*choice, EOS]
            logits = model(
                encoder_outputs=encoded.rows([row]), decoder_input_ids=torch.tensor([[*start, *choice]])
            ).logits
            for place, token in enumerate(tokens):
                following = {(*one, EOS)[place] for one in choices if (*one, EOS)[:place] == tuple(tokens[:place])}
                among = logits[0, len(start) - 1 + place, sorted(following)].log_softmax(-1)
                scores[row, column] += among[sorted(following).index(token)]
    return scores


@pytest.mark.parametrize("paths", [1, 3, 64])
def test_choices_are_scored_among_each_other(tiny_model, inputs, paths):
    with torch.no_grad():
        expected = by_hand(tiny_model, inputs, CHOICES, [[0]] * 3)
    scores = tiny_model.score_choices(CHOICES, **inputs, paths_per_batch=paths)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert torch.allclose(scores.exp().sum(1), torch.ones(3), atol=1e-5)
    assert tiny_model.score_choices([[17, 20]], **inputs).tolist() == [[0.0]] * 3


def test_choices_follow_the_start_of_the_answer_whichever_side_is_padded(tiny_model, inputs):
    starts = [[0, 9, 14, 60], [0, 31], [0, 8, 8]]
    with torch.no_grad():
        expected = by_hand(tiny_model, inputs, CHOICES, starts)
    for is_left in (True, False):
        padding = [[PAD] * (4 - len(start)) for start in starts]
        ids = torch.tensor([fill + own if is_left else own + fill for own, fill in zip(starts, padding)])
        scores = tiny_model.score_choices(CHOICES, **inputs, decoder_input_ids=ids, decoder_attention_mask=ids != PAD)
        assert torch.allclose(scores, expected, atol=1e-5)


def test_thousands_of_one_word_choices_cost_one_step(tiny_model, inputs, monkeypatch):
    encodes, decodes, decode = [], [], tiny_model.decoder.forward
    encode = tiny_model.encode
    monkeypatch.setattr(tiny_model, "encode", lambda **given: encodes.append(1) or encode(**given))
    monkeypatch.setattr(
        tiny_model.decoder, "forward", lambda **given: decodes.append(given["input_ids"].shape) or decode(**given)
    )
    tiny_model.score_choices([[token] for token in range(4, 120)], **inputs)
    assert encodes == [1]
    assert decodes == [(3, 1)]


def test_choices_that_are_none_are_refused(tiny_model, inputs):
    for choices in ([], [[17], []], [[17], [17]]):
        with pytest.raises(ValueError, match="score_choices needs answers"):
            tiny_model.score_choices(choices, **inputs)


def test_a_search_in_the_trie_finds_the_best_choice(tiny_model, inputs):
    best = tiny_model.score_choices(CHOICES, **inputs).argmax(1).tolist()
    found = run(
        tiny_model,
        inputs,
        num_beams=8,
        length_penalty=0.0,
        early_stopping=False,
        logits_processor=[AnswerTrie(CHOICES, EOS)],
    )
    texts = [[token for token in row[1:] if token not in (PAD, EOS)] for row in found.tolist()]
    assert texts == [CHOICES[index] for index in best]
