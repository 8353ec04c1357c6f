"""The Chinese OFA vocabulary as a plain fast BERT tokenizer: special tokens, word pieces, image codes and places.

Source: OFA `tasks/mm_tasks/caption.py` and `utils/BERT_CN_dict`; ids in the order fairseq's dictionary gives them.

The tokenizer encodes typed symbols as the official code does, and transformers 4 and 5 load it without remote code (5
rebuilds it from only its vocabulary and its added tokens):

- `<code_i>` and `<bin_i>` are entries of the word-piece vocabulary. Text is cut at `<`, so no word ever matches one.
- A bare `<` is an added token matched in the raw text, the specials `<s>`, `<pad>`, … are matched in the normalized
  text. The raw match comes first, so a typed `<s>` has lost its `<` by the time a special could match.
- `[CLS]`, `[SEP]`, `[UNK]`, `[MASK]`, `[PAD]` are added tokens matched in the raw text, so they stay whole.
"""

import hashlib
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertTokenizerFast

from ofa_hf.errors import UserError


BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
NUM_CODES, NUM_BINS = 8192, 1000  # codes of the published image tokenizer; places along a side of an image
BERT_SYMBOLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the official encoding keeps them whole in text
MAX_TEXT_TOKENS = 1024  # text positions
VOCABULARY_REPOSITORY = "google-bert/bert-base-chinese"
VOCABULARY_SHA256 = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"
TOKENIZER_SETTINGS = {
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": MAX_TEXT_TOKENS,
    "clean_up_tokenization_spaces": False,
}


def read_word_pieces(vocab_file: str | os.PathLike) -> list[str]:
    """Read a BERT `vocab.txt`, one word piece per line, in the order of their BERT ids.

    Lines end with a line feed (or carriage return and line feed) and nothing else: two word pieces of the Chinese
    vocabulary are line separators to Python's `splitlines`.

    Raises:
        UserError: no such file, not UTF-8, or lines that are empty or appear twice.
    """
    try:
        lines = Path(vocab_file).read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The vocabulary {vocab_file} cannot be read: {error}. Expected: a BERT vocab.txt in UTF-8, one piece "
            f"per line. Pass the path of OFA's utils/BERT_CN_dict/vocab.txt."
        ) from error
    if not lines[-1]:  # the file ends with a line break
        lines.pop()
    pieces = [line.removesuffix("\r") for line in lines]
    first_line = {}
    doubtful = [
        line for line, piece in enumerate(pieces, 1) if not piece or first_line.setdefault(piece, line) != line
    ]
    if doubtful or not pieces:
        raise UserError(
            f"The vocabulary {vocab_file} is empty, or repeats or lacks a word piece at lines {doubtful[:5]}. "
            f"Expected: one word piece per line, each once. Pass the unchanged vocab.txt of bert-base-chinese."
        )
    return pieces


def vocabulary_ids(pieces: list[str], num_codes: int = NUM_CODES) -> dict[str, int]:
    """Number every entry: four specials, the word pieces, `<mask>`, image codes, 1,000 places.

    The 21,128 Chinese word pieces and 8,192 codes give 30,325 entries.
    """
    codes = [f"<code_{index}>" for index in range(num_codes)]
    bins = [f"<bin_{index}>" for index in range(NUM_BINS)]
    return {entry: index for index, entry in enumerate([BOS, PAD, EOS, UNK, *pieces, MASK, *codes, *bins])}


def build_tokenizer(
    vocab_file: str | os.PathLike, unk_token: str = "[UNK]", num_codes: int = NUM_CODES
) -> BertTokenizerFast:
    """Build the tokenizer of the official Chinese checkpoints from a Chinese BERT `vocab.txt`.

    Args:
        vocab_file: one word piece per line; 21,128 of them in the released checkpoints, any number in a small model.
            Two entries matter: `[UNK]`, and `<`, without which a typed `<s>` would become the special.
        unk_token: what stands for text outside the vocabulary: `[UNK]` (id 104) in the official code, `<unk>` (id 3)
            in checkpoints that OFA-Chinese finetuned.
        num_codes: codes of images; fairseq's `--code-dict-size`.

    Returns:
        A tokenizer that encodes text as `<s> text </s>` and saves as a plain BERT tokenizer.

    Raises:
        UserError: the file is not a vocabulary, or `unk_token` is not in it.
    """
    ids = vocabulary_ids(read_word_pieces(vocab_file), num_codes)
    if unk_token not in ids:
        raise UserError(
            f"The vocabulary {vocab_file} has no {unk_token}, which stands for unknown text. Expected: a Chinese BERT "
            f"vocab.txt, which has it at line 101. Pass that file, or unk_token='<unk>'."
        )
    backend = _word_piece_backend(ids, unk_token)
    backend.add_tokens(_added_tokens(ids, unk_token))
    return BertTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        cls_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        sep_token=EOS,
        unk_token=unk_token,
        mask_token=MASK,
        **TOKENIZER_SETTINGS,
    )


def _word_piece_backend(ids: dict[str, int], unk_token: str) -> Tokenizer:
    """Lower-cased BERT word pieces, framed as `<s> text </s>`."""
    backend = Tokenizer(WordPiece(ids, unk_token=unk_token))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS}:0 $A:0 {EOS}:0",
        pair=f"{BOS}:0 $A:0 {EOS}:0 $B:1 {EOS}:1",
        special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])],
    )
    return backend


def _added_tokens(ids: dict[str, int], unk_token: str) -> list[AddedToken]:
    """The tokens that are matched before word pieces; the head of this file says why each is matched where it is."""
    specials = dict.fromkeys([BOS, PAD, EOS, MASK, unk_token])
    in_raw_text = [entry for entry in (*BERT_SYMBOLS, "<") if entry in ids]
    return [
        *(AddedToken(entry, normalized=True, special=True) for entry in specials if entry not in in_raw_text),
        *(AddedToken(entry, normalized=False, special=entry in specials) for entry in in_raw_text),
    ]


def load_legacy_tokenizer(folder: str | os.PathLike) -> BertTokenizerFast:
    """Load the tokenizer of an OFA-Chinese folder; ids and unknown text (`<unk>`, id 3) stay as they were there.

    Raises:
        UserError: the folder has no BERT vocabulary, or one in which the specials have other ids than OFA's.
    """
    if not any((Path(folder) / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(
            f"{folder} has no tokenizer: neither vocab.txt nor tokenizer.json is there. Expected: the files of an "
            f"OFA-Chinese model. Pass a complete folder, or a Chinese BERT vocab.txt with --vocab."
        )
    try:
        tokenizer = BertTokenizerFast.from_pretrained(os.fspath(folder), local_files_only=True, **TOKENIZER_SETTINGS)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UserError(
            f"The tokenizer in {folder} cannot be read: {error}. Expected: the files of an OFA-Chinese model. "
            f"Pass a complete folder, or a Chinese BERT vocab.txt with --vocab."
        ) from error
    found = {entry: tokenizer.convert_tokens_to_ids(entry) for entry in (BOS, PAD, EOS, UNK)}
    if list(found.values()) != [0, 1, 2, 3]:
        raise UserError(f"The tokenizer in {folder} is not OFA's: {found}. Expected: the ids 0, 1, 2, 3. Use --vocab.")
    for trace in ("name_or_path", "is_local", "local_files_only"):  # paths of this machine, which saving would write
        tokenizer.init_kwargs.pop(trace, None)
    return tokenizer


def fetch_vocabulary() -> Path:
    """Get the Chinese BERT `vocab.txt` from the Hub (or its cache on this machine) and check its content.

    Raises:
        UserError: the Hub cannot be reached, or the file is not the one that OFA was trained with.
    """
    advice = "Get vocab.txt from OFA's repository (utils/BERT_CN_dict) and pass it as --vocab."
    try:
        path = Path(hf_hub_download(VOCABULARY_REPOSITORY, "vocab.txt"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The vocabulary of {VOCABULARY_REPOSITORY} cannot be fetched: {reason} {advice}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise UserError(
            f"The vocab.txt fetched from {VOCABULARY_REPOSITORY} has sha256 {digest}, but OFA's has "
            f"{VOCABULARY_SHA256}. {advice}"
        )
    return path
