"""The English OFA vocabulary as a plain fast byte-level BPE tokenizer: specials, GPT-2's pieces, codes and bins.

Source: OFA `fairseq/fairseq/data/encoders/gpt2_bpe.py` and `utils/BPE`; ids in the order fairseq's dictionary gives
them, which is also BART's.

The class is `RobertaTokenizer`, which transformers 4 and 5 both load without remote code. As in the official code,
special tokens, `<code_i>` and `<bin_i>` in a text are ordinary characters: no merge leads to a code or bin, and
`split_special_tokens`, which is saved with the tokenizer, splits special tokens.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import RobertaTokenizerFast

from ofa_hf.conversion.vocabulary import BOS, EOS, MASK, PAD, TOKENIZER_SETTINGS, UNK, vocabulary_ids
from ofa_hf.errors import UserError


OFFICIAL_FILES = ("encoder.json", "vocab.bpe", "dict.txt")  # files of OFA's utils/BPE
BART_FILES = ("vocab.json", "merges.txt")  # files of BART and of the 2022 folders
FILLER = "madeupword"  # fillers that make the size of fairseq's dictionary a multiple of 8
VOCABULARY_REPOSITORY = "facebook/bart-base"
VOCABULARY_DIGEST = "2b23d5accf1316911929c37014dc7691b11a248667f69d0fe87d5f7dca37df83"
ADVICE = "Get encoder.json, vocab.bpe and dict.txt from OFA's repository (utils/BPE) and pass their folder as --vocab."


@dataclass(frozen=True)
class BytePairs:
    """GPT-2's pieces in the order of their ids, and the ordered merges that produce them."""

    pieces: list[str]  # without the four special tokens before them and `<mask>` after them
    merges: list[tuple[str, str]]

    @property
    def digest(self) -> str:
        """sha256 of the content, which does not depend on the file format."""
        return hashlib.sha256(json.dumps([self.pieces, self.merges]).encode()).hexdigest()


def has_english_vocabulary(folder: str | os.PathLike) -> bool:
    """Whether a folder holds the files of an English vocabulary, in one of the two formats."""
    return any(all((Path(folder) / name).is_file() for name in files) for files in (OFFICIAL_FILES, BART_FILES))


def read_byte_pairs(folder: str | os.PathLike) -> BytePairs:
    """Read the English vocabulary: `encoder.json`, `vocab.bpe` and `dict.txt`, or `vocab.json` and `merges.txt`.

    Raises:
        UserError: the files are not there, cannot be read, or do not belong together.
    """
    folder = Path(folder)
    if not has_english_vocabulary(folder):
        raise UserError(
            f"{folder} holds no English vocabulary. Expected: {', '.join(OFFICIAL_FILES)} or {', '.join(BART_FILES)}. "
            f"{ADVICE}"
        )
    try:
        is_official = all((folder / name).is_file() for name in OFFICIAL_FILES)
        pieces = official_pieces(folder) if is_official else bart_pieces(folder)
        merges = read_merges(folder / (OFFICIAL_FILES[1] if is_official else BART_FILES[1]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"The English vocabulary in {folder} cannot be read: {error}. {ADVICE}") from error
    check_byte_pairs(pieces, merges, folder)
    return BytePairs(pieces, merges)


def official_pieces(folder: Path) -> list[str]:
    """Pieces in the order of fairseq's `dict.txt`, whose lines are GPT-2 ids (or fillers) and counts."""
    encoder = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    pieces = {str(index): piece for piece, index in encoder.items()}
    lines = (folder / "dict.txt").read_text(encoding="utf-8").splitlines()
    names = [line.rpartition(" ")[0] for line in lines]
    return [name if name.startswith(FILLER) else pieces[name] for name in names]


def bart_pieces(folder: Path) -> list[str]:
    """Pieces of a `vocab.json` that also holds the specials, and perhaps codes and bins."""
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pieces = sorted(ids, key=ids.__getitem__)
    end = pieces.index(MASK)
    if pieces[:4] != [BOS, PAD, EOS, UNK] or [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"vocab.json starts with {pieces[:4]} or skips an id; expected {[BOS, PAD, EOS, UNK]}")
    return pieces[4:end]


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of pieces, one per line after the line of the version."""
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path.name} has a line that is not a pair of pieces")
    return pairs


def check_byte_pairs(pieces: list[str], merges: list[tuple[str, str]], folder: Path) -> None:
    """Refuse pieces that are repeated, lack a byte, or do not match the merges."""
    known = set(pieces)
    lacking = [piece for piece in pre_tokenizers.ByteLevel.alphabet() if piece not in known]
    lacking += [piece for pair in merges for piece in (*pair, "".join(pair)) if piece not in known]
    if lacking or len(known) != len(pieces):
        reason = f"lacks {sorted(lacking)[:3]}" if lacking else "holds a piece twice"
        raise UserError(f"The English vocabulary in {folder} {reason}: its files do not belong together. {ADVICE}")


def build_english_tokenizer(pairs: BytePairs) -> RobertaTokenizerFast:
    """The tokenizer of the English checkpoints, which encodes text as `<s> text </s>`."""
    ids = vocabulary_ids(pairs.pieces)
    backend = Tokenizer(BPE(ids, pairs.merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing((EOS, ids[EOS]), (BOS, ids[BOS]), add_prefix_space=False)
    specials: dict[str, Any] = {"bos_token": BOS, "cls_token": BOS, "eos_token": EOS, "sep_token": EOS}
    specials |= {"pad_token": PAD, "unk_token": UNK, "mask_token": MASK}
    return RobertaTokenizerFast(
        tokenizer_object=backend, add_prefix_space=False, split_special_tokens=True, **specials, **TOKENIZER_SETTINGS
    )


def fetch_byte_pairs() -> BytePairs:
    """Get the English vocabulary from the Hub (or its cache on this machine) and check its content.

    Raises:
        UserError: the Hub cannot be reached, or the content is not what OFA was trained with.
    """
    try:
        vocab, _ = (Path(hf_hub_download(VOCABULARY_REPOSITORY, name)) for name in BART_FILES)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The vocabulary of {VOCABULARY_REPOSITORY} cannot be fetched: {reason} {ADVICE}") from error
    pairs = read_byte_pairs(vocab.parent)
    if pairs.digest != VOCABULARY_DIGEST:
        raise UserError(
            f"The vocabulary fetched from {VOCABULARY_REPOSITORY} has the digest {pairs.digest}, but OFA's has "
            f"{VOCABULARY_DIGEST}. {ADVICE}"
        )
    return pairs
