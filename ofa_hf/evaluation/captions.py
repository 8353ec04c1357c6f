"""BLEU, ROUGE-L and CIDEr-D over the tokens of `tokenization`, as the COCO caption scorers define them.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr-D), with the constants of the
COCO caption evaluation: closest reference length, β = 1.2, σ = 6, 1- to 4-grams, and document frequencies from the
references of the scored images. Two definitions are ours, since the originals fail there: a caption without tokens
scores 0, and an empty reference matches nothing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ofa_hf.evaluation.scores import Scores, check_ids
from ofa_hf.evaluation.tokenization import tokenize


MAX_ORDER = 4  # 1- to 4-grams, BLEU and CIDEr-D
ROUGE_BETA = 1.2  # weight of recall relative to precision
CIDER_SIGMA = 6.0  # length difference in tokens at which a match counts 60 %
CIDER_FACTOR = 10.0  # the reference scorer's own scale; published percentages multiply by 100 on top
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9  # the reference scorer's guards against 0 / 0, which affect its results


def score_captions(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """Score one caption per image against that image's references.

    Args:
        predictions: image id → caption.
        references: image id → its captions, at least one.

    Returns:
        `bleu_1` … `bleu_4`, `rouge_l` and `cider_d` in the published percentages (0.2623 is 26.23; CIDEr-D is its
        scorer's value × 100), the last two also for each image. CIDEr-D weighs words by how few images use them, so
        it is always 0 for a single image.

    Raises:
        UserError: nothing to score, ids without their counterpart, an image without references.
    """
    check_ids(predictions, references)
    ids = list(references)
    hypotheses = [tokenize(predictions[image_id]) for image_id in ids]
    reference_tokens = [[tokenize(caption) for caption in references[image_id]] for image_id in ids]
    bleu, cider = ngram_scores(hypotheses, reference_tokens)
    rouge = [rouge_l(hypothesis, captions) for hypothesis, captions in zip(hypotheses, reference_tokens, strict=True)]
    bleu = [100 * value for value in bleu]
    totals = {"bleu_4": bleu[3], "rouge_l": 100 * float(np.mean(rouge)), "cider_d": 100 * float(np.mean(cider))}
    totals |= {"bleu_1": bleu[0], "bleu_2": bleu[1], "bleu_3": bleu[2], "num_images": len(ids)}
    each = {"cider_d": cider, "rouge_l": rouge}
    return Scores(totals, {name: {id_: 100 * value for id_, value in zip(ids, each[name])} for name in each})


@dataclass(frozen=True)
class NGramTable:
    """Counts of n-grams of one order per caption: three arrays of equal length, sorted by caption and n-gram.

    The captions are the hypotheses (numbers from 0) followed by the references.
    """

    captions: np.ndarray
    ngrams: np.ndarray
    counts: np.ndarray


def ngram_scores(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[float], list[float]]:
    """Corpus BLEU-1 … BLEU-4 in 0 … 1, and CIDEr-D of every hypothesis on the reference scorer's scale (0 … 10)."""
    captions = [*hypotheses, *(caption for group in references for caption in group)]
    lengths = np.array([len(caption) for caption in captions])
    groups = np.array([len(group) for group in references])
    image_of_caption = np.concatenate([np.arange(len(groups)), np.repeat(np.arange(len(groups)), groups)])
    matches, similarity = np.zeros(MAX_ORDER), np.zeros(len(captions) - len(hypotheses))
    for order, table in enumerate(ngram_tables(captions)):
        matches[order], order_similarity = compare_with_references(table, image_of_caption, len(hypotheses))
        similarity += order_similarity
    similarity *= length_penalty(lengths, image_of_caption, len(hypotheses))
    totals = np.bincount(image_of_caption[len(hypotheses) :], weights=similarity, minlength=len(groups))
    cider = CIDER_FACTOR * totals / (MAX_ORDER * groups)
    return corpus_bleu(matches, lengths, groups), cider.tolist()


def ngram_tables(captions: Sequence[Sequence[str]]) -> Iterator[NGramTable]:
    """Tables of the 1- to 4-grams of all captions; an n-gram is numbered by its first n − 1 tokens and its last."""
    vocabulary: dict[str, int] = {}
    tokens = np.array(
        [vocabulary.setdefault(t, len(vocabulary)) for caption in captions for t in caption], dtype=np.int64
    )
    owner = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    prefixes = np.zeros_like(tokens)
    for order in range(MAX_ORDER):
        num_starts = max(0, len(tokens) - order)
        inside = np.flatnonzero(owner[:num_starts] == owner[order:])  # the n-gram ends in the caption it starts in
        _, numbers = np.unique(prefixes[inside] * len(vocabulary) + tokens[inside + order], return_inverse=True)
        prefixes[inside] = numbers
        yield count_ngrams(owner[inside], numbers)


def count_ngrams(owner: np.ndarray, numbers: np.ndarray) -> NGramTable:
    num_ngrams = int(numbers.max(initial=0)) + 1
    keys, counts = np.unique(owner * num_ngrams + numbers, return_counts=True)
    return NGramTable(*np.divmod(keys, num_ngrams), counts)


def compare_with_references(
    table: NGramTable, image_of_caption: np.ndarray, num_hypotheses: int
) -> tuple[int, np.ndarray]:
    """Clipped matches of all hypotheses (BLEU), and each reference's clipped tf-idf cosine with its hypothesis."""
    num_ngrams = int(table.ngrams.max(initial=0)) + 1
    keys = image_of_caption[table.captions] * num_ngrams + table.ngrams
    first_reference = np.searchsorted(table.captions, num_hypotheses)
    own, theirs = slice(0, first_reference), slice(first_reference, None)
    weights = inverse_document_frequency(keys[theirs], num_ngrams, num_hypotheses)[table.ngrams]
    vectors = table.counts * weights
    norms = np.sqrt(np.bincount(table.captions, weights=vectors**2, minlength=len(image_of_caption)))

    # where the reference's n-gram is in the hypothesis, if it is there
    position = np.searchsorted(keys[own], keys[theirs])
    shared = np.flatnonzero(np.append(keys[own], -1)[position] == keys[theirs])
    position = position[shared]
    best_counts = np.zeros(first_reference, dtype=np.int64)
    np.maximum.at(best_counts, position, table.counts[theirs][shared])

    products = np.minimum(vectors[own][position], vectors[theirs][shared]) * vectors[theirs][shared]
    reference = table.captions[theirs][shared] - num_hypotheses
    dots = np.bincount(reference, weights=products, minlength=len(image_of_caption) - num_hypotheses)
    norm_products = norms[num_hypotheses:] * norms[image_of_caption[num_hypotheses:]]
    cosines = np.divide(dots, norm_products, out=np.zeros(dots.shape), where=norm_products > 0)
    return int(np.minimum(table.counts[own], best_counts).sum()), cosines


def inverse_document_frequency(reference_keys: np.ndarray, num_ngrams: int, num_images: int) -> np.ndarray:
    """log(images / images whose references have the n-gram) by n-gram; one never seen counts as seen once."""
    ordered = np.sort(reference_keys)
    first_per_image = ordered[np.diff(ordered, prepend=-1) > 0]
    frequencies = np.bincount(first_per_image % num_ngrams, minlength=num_ngrams)
    return math.log(num_images) - np.log(np.maximum(1, frequencies))


def length_penalty(lengths: np.ndarray, image_of_caption: np.ndarray, num_hypotheses: int) -> np.ndarray:
    """The discount of each reference for a hypothesis of another length; the reference scorer counts bigrams here."""
    num_bigrams = np.maximum(0, lengths - 1)
    difference = num_bigrams[image_of_caption[num_hypotheses:]] - num_bigrams[num_hypotheses:]
    return np.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


def corpus_bleu(matches: np.ndarray, lengths: np.ndarray, groups: np.ndarray) -> list[float]:
    """BLEU-1 … BLEU-4 of the whole set, in 0 … 1: n-gram precisions with clipped counts times the brevity penalty.

    Args:
        matches: `(4,)`, clipped matches of all hypotheses.
        lengths: tokens of the hypotheses, then of the references; groups: references of each hypothesis.
    """
    own, theirs = lengths[: len(groups)], np.split(lengths[len(groups) :], np.cumsum(groups)[:-1])
    reference_length = sum(closest_length(length, group) for length, group in zip(own, theirs, strict=True))
    guesses = np.array([np.maximum(0, own - order).sum() for order in range(MAX_ORDER)])
    products = np.cumprod((matches + BLEU_TINY) / (guesses + BLEU_SMALL))
    scores = products ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity_penalty(int(own.sum()), int(reference_length))
    return scores.tolist()


def closest_length(length: int, reference_lengths: Iterable[int]) -> int:
    """The reference length nearest to `length`, the shorter one of two equally near."""
    return min(reference_lengths, key=lambda reference: (abs(reference - length), reference))


def brevity_penalty(length: int, reference_length: int) -> float:
    ratio = (length + BLEU_TINY) / (reference_length + BLEU_SMALL)
    return math.exp(1 - 1 / ratio) if 0 < ratio < 1 and 1 / ratio < 700 else float(ratio >= 1)


def rouge_l(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, in 0 … 1: F-measure of the best precision and the best recall among the references."""
    common = [longest_common_subsequence(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(match / len(reference) for match, reference in zip(common, references, strict=True) if reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    One bit of an integer per token of `first`, so that a token of `second` costs a few machine operations.
    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    everything = (1 << len(first)) - 1
    open_bits = everything
    for token in second:
        matched = open_bits & positions.get(token, 0)
        open_bits = ((open_bits + matched) | (open_bits - matched)) & everything
    return len(first) - open_bits.bit_count()
