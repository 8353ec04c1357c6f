"""Caption images with the ONNX files next to this script.

    pip install numpy onnxruntime pillow tokenizers
    python caption.py photo.jpg more.jpg [--num-beams 1] [--json]

An example to build on: how the two graphs work together, with greedy and beam search as in transformers and the
settings of generation_config.json.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


NEVER = np.float32(-np.inf)
# Settings without effect here: they control sampling, or the outputs of transformers.
WITHOUT_EFFECT = frozenset(
    "top_k top_p min_p typical_p use_cache output_attentions output_hidden_states output_scores output_logits "
    "return_dict_in_generate bos_token_id pad_token_id transformers_version cache_implementation "
    "encoder_drop_path_rate decoder_drop_path_rate resnet_drop_path_rate".split()
)


# ---------------------------------------------------------------------------------------------- settings


@dataclass
class Settings:
    """Settings of generation; lengths count the start token and `</s>`."""

    decoder_start_token_id: int = 0
    eos_token_id: int = 2
    num_beams: int = 1
    max_length: int = 20
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str | None = False
    end_at_max_length: bool = False  # at the last position only `</s>`, with its true log-probability
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    first_place: int | None = None  # id of `<bin_0>`: the answer is four places and `</s>`

    @classmethod
    def of(cls, values: dict) -> "Settings":
        """From the values of generation_config.json.

        Raises:
            ValueError: a setting that is not implemented here would change the captions.
        """
        values = {name: value for name, value in values.items() if name[0] != "_" and name not in WITHOUT_EFFECT}
        for number, length in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if values.get(number):
                values[length] = values.pop(number) + 1
        unknown = sorted(name for name in values if name not in cls.__annotations__ and not is_off(values[name]))
        if unknown:
            raise ValueError(
                f"generation_config.json sets {', '.join(unknown)}, which this script does not know. It knows "
                f"{', '.join(cls.__annotations__)}. Take the setting out, or add it to `constrain`."
            )
        known = {name: value for name, value in values.items() if name in cls.__annotations__ and value is not None}
        return cls(**known)


def is_off(value) -> bool:
    """Whether a value switches its setting off: 0 or 1 for penalties and numbers of groups."""
    return value is None or value is False or value == [] or (value is not True and value in (0, 1))


def constrain(scores: np.ndarray, sequences: np.ndarray, settings: Settings) -> np.ndarray:
    """Mask tokens as the settings require: scores `(rows, vocabulary)` after sequences `(rows, length)`."""
    length = sequences.shape[1]
    allowed = scores.copy() if settings.first_place is None else only_places(scores, length, settings)
    for row, sequence in zip(allowed, sequences):
        row[repeated(sequence.tolist(), settings.no_repeat_ngram_size)] = NEVER
    if length < settings.min_length:
        allowed[:, settings.eos_token_id] = NEVER
    if length == 1:
        allowed[:, list(settings.begin_suppress_tokens or ())] = NEVER
    allowed[:, list(settings.suppress_tokens or ())] = NEVER
    if settings.end_at_max_length and length >= settings.max_length - 1:
        end = allowed[:, settings.eos_token_id].copy()
        allowed[:] = NEVER
        allowed[:, settings.eos_token_id] = end
    return allowed


def only_places(scores: np.ndarray, length: int, settings: Settings) -> np.ndarray:
    """Log-probabilities among places and special tokens; then only four places and `</s>` are allowed."""
    kept = [*range(4), *range(settings.first_place, settings.first_place + 1000)]
    allowed, among = np.full_like(scores, NEVER), log_softmax(scores[:, kept])
    chosen = slice(4, None) if length < 5 else slice(settings.eos_token_id, settings.eos_token_id + 1)
    allowed[:, kept[chosen]] = among[:, chosen]
    return allowed


def repeated(sequence: list[int], size: int) -> list[int]:
    """Tokens that would end an n-gram of this size that the sequence has already."""
    last = sequence[len(sequence) - size + 1 :]
    if not 0 < size <= len(sequence):
        return []
    starts = range(len(sequence) - size + 1)
    return [sequence[i + size - 1] for i in starts if sequence[i : i + size - 1] == last]


# -------------------------------------------------------------------------------------------- generation


class Model:
    """The two graphs.

    Args:
        encoder, decoder: functions from arrays by name to arrays by name.
        num_layers, num_heads, head_dim: of the decoder's cache.
    """

    def __init__(self, encoder, decoder, num_layers: int, num_heads: int, head_dim: int):
        self.encoder, self.decoder = encoder, decoder
        self.states = [f"{what}.{layer}" for layer in range(num_layers) for what in ("keys", "values")]
        self.empty = (num_heads, 0, head_dim)

    @classmethod
    def load(cls, folder: Path) -> "Model":
        import onnxruntime

        encoder, decoder = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder")
        )
        shapes = {one.name: one.shape for one in decoder.get_inputs()}
        layers = sum(name.startswith("self_keys") for name in shapes)
        _, heads, _, head_dim = shapes["self_keys.0"]
        return cls(caller(encoder), caller(decoder), layers, heads, head_dim)

    def encode(self, pixel_values: np.ndarray, input_ids: list[int]) -> "Steps":
        """One image `(3, height, width)` and its prompt, ready for the decoder."""
        ids = np.array([input_ids], dtype=np.int64)
        inputs = {"pixel_values": pixel_values[None], "input_ids": ids, "attention_mask": np.ones_like(ids)}
        return Steps(self, self.encoder(inputs))


def caller(session):
    """An onnxruntime session as a function."""
    names = [one.name for one in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs)))


class Steps:
    """Decoding of one image: its fixed states, and the cache, which grows by a token per step."""

    def __init__(self, model: Model, image: dict[str, np.ndarray]):
        self.model, self.image, self.cache = model, image, None

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """New tokens `(rows,)` or `(rows, n)` → scores `(rows, vocabulary)` of the next; rows stay constant."""
        if self.cache is None:
            empty = np.zeros((len(tokens), *self.model.empty), dtype=np.float32)
            self.cache = {f"self_{name}": empty for name in self.model.states}
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        outputs = self.model.decoder({"decoder_input_ids": tokens, **self.image, **self.cache})
        self.cache = {f"self_{name}": outputs[f"next_{name}"] for name in self.model.states}
        return outputs["scores"]

    def reorder(self, rows: np.ndarray) -> None:
        """Reorder the cache to these rows."""
        self.cache = {name: state[rows] for name, state in self.cache.items()}


def greedy(steps: Steps, settings: Settings, start: tuple[int, ...] = (0,)) -> tuple[list[int], float]:
    """Greedy search: the most probable token at each step.

    Args:
        start: tokens that the text starts with.

    Returns:
        tokens with start and end, and the mean log-probability of the generated ones.
    """
    sequence, total, new = np.array([start], dtype=np.int64), 0.0, len(start)
    while sequence.shape[1] < settings.max_length:
        scores, new = log_softmax(steps(sequence[:, -new:])), 1
        token = constrain(scores, sequence, settings)[0].argmax()
        total += float(scores[0, token])
        sequence = np.append(sequence, [[token]], axis=1)
        if token == settings.eos_token_id:
            break
    return sequence[0].tolist(), total / max(sequence.shape[1] - len(start), 1)


def beam_search(steps: Steps, settings: Settings, start: tuple[int, ...] = (0,)) -> tuple[list[int], float]:
    """Beam search; arguments and results are those of `greedy`."""
    beams, penalty, given, new = settings.num_beams, settings.length_penalty, len(start), len(start)
    running = np.tile(np.array(start, dtype=np.int64), (beams, 1))
    totals = np.full(beams, -1e9, dtype=np.float32)
    totals[0] = 0  # all beams are the same at first, so only one counts
    finished: list[tuple[float, list[int]]] = []
    while True:
        length = running.shape[1]
        scores = constrain(log_softmax(steps(running[:, -new:])), running, settings) + totals[:, None]
        new = 1
        best = largest(scores.ravel(), 2 * beams)  # enough to continue even if every beam ends
        rows, tokens = np.divmod(best, scores.shape[1])
        found, candidates = scores.ravel()[best], np.append(running[rows], tokens[:, None], axis=1)
        ends = (tokens == settings.eos_token_id) | (length + 1 == settings.max_length)
        finished += [
            (found[i] / (length + 1 - given) ** penalty, candidates[i].tolist()) for i in np.flatnonzero(ends[:beams])
        ]
        finished = sorted(finished, key=lambda one: -one[0])[:beams]
        going = np.flatnonzero(~ends)[:beams]
        if len(going) == 0 or (len(finished) == beams and settings.early_stopping is True):
            break
        running, totals = candidates[going], found[going]
        longest = settings.max_length if settings.early_stopping == "never" and penalty > 0 else length + 1
        if len(finished) == beams and totals[0] / (longest - given) ** penalty <= finished[-1][0]:
            break
        steps.reorder(rows[going])
    score, sequence = finished[0]
    return sequence, float(score)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, the largest first."""
    some = np.argpartition(-values, count)[:count]
    return some[np.argsort(-values[some], kind="stable")]


# -------------------------------------------------------------------------------------- images and text


def read_image(source, settings: dict) -> np.ndarray:
    """An image file as `(3, height, width)` float32, prepared as preprocessor_config.json says."""
    with Image.open(source) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(gray_to_8_bit(np.asarray(image)))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    size = (settings["size"]["width"], settings["size"]["height"])
    if settings["do_resize"] and settings.get("fit", "stretch") == "center" and image.size != size:
        image = on_square(image, size[0], settings["resample"])
    elif settings["do_resize"]:
        image = image.resize(size, settings["resample"])
    values = (np.arange(256) * (settings["rescale_factor"] if settings["do_rescale"] else 1)).astype(np.float32)
    pixels = values[np.asarray(image).transpose(2, 0, 1)]
    if settings["do_normalize"]:
        mean, std = (np.array(settings[name], dtype=np.float32)[:, None, None] for name in ("image_mean", "image_std"))
        pixels = (pixels - mean) / std
    return pixels


def on_square(image: Image.Image, side: int, resample: int) -> Image.Image:
    """Center an image in a square with its aspect ratio kept; the other pixels repeat its edge."""
    longer = max(image.size)
    pixels = np.asarray(image.resize([max(64, int(side * (own / longer))) for own in image.size], resample))
    rooms = [side - own for own in pixels.shape[:2]]
    return Image.fromarray(np.pad(pixels, [*((room // 2, room - room // 2) for room in rooms), (0, 0)], mode="edge"))


def gray_to_8_bit(gray: np.ndarray) -> np.ndarray:
    """Scale gray values `(height, width)` of 16 bits, 32 bits or floating point to 8 bits, as the processor does."""
    if gray.dtype == np.uint16:
        return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65,535 = 255 × 257
    low, high = float(gray.min()), float(gray.max())
    if low >= 0 and high <= 1 and gray.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((gray.astype(np.float32) - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)


UNSPOKEN = frozenset(
    "<s> <pad> </s> <unk> <mask> [PAD] [UNK] [CLS] [SEP] [MASK] madeupword0000 madeupword0001 madeupword0002".split()
)
BLANK = "\u0120"  # the space in the English vocabulary
UNSPACED = (  # scripts that are written without spaces
    "\u2e80-\u2fff\u3000-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uffef\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[^\W_{UNSPACED}]")
WORD_AT_END = re.compile(rf"[^\W_{UNSPACED}]\Z")
MARK_AT_END = re.compile(rf"[^\W\d_{UNSPACED}][,;!?]\Z")


def join_pieces(pieces: list[str]) -> str:
    """Word pieces as text: spaces between Latin words, none between Chinese characters."""
    text = ""
    for piece in pieces:
        if piece in UNSPOKEN:
            continue
        if piece.startswith("##") and len(piece) > 2:
            text += piece[2:]
            continue
        after_mark = MARK_AT_END.search(text[-2:]) and not piece[0].isdigit()
        if WORD.match(piece) and (WORD_AT_END.search(text[-2:]) or after_mark):
            text += " "
        text += piece
    return text


class Captioner:
    """Image file → caption.

    Args:
        folder: folder with the graphs and the settings.
        overrides: overrides of generation_config.json.
    """

    def __init__(self, folder: Path, **overrides):
        from tokenizers import Tokenizer

        folder = Path(folder)
        processor, self.image_settings, generation = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("processor_config", "preprocessor_config", "generation_config")
        )
        self.settings = Settings.of(generation | overrides)
        self.model = Model.load(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(processor["max_prompt_tokens"])
        self.is_byte_level = self.tokenizer.token_to_id(BLANK) is not None  # English
        self.tokenizer.encode_special_tokens = self.is_byte_level  # a typed <s> is text
        self.prompt = processor["tasks"][processor["default_task"]]["prompt"]
        self.generation, self.overrides = generation, overrides

    def __call__(self, source, prompt: str | None = None) -> dict:
        """`{"caption", "score", "tokens"}` of one image file."""
        input_ids = self.tokenizer.encode(self.prompt if prompt is None else prompt).ids
        steps = self.model.encode(read_image(source, self.image_settings), input_ids)
        search = greedy if self.settings.num_beams == 1 else beam_search
        tokens, score = search(steps, self.settings)
        return {"caption": self.text_of(tokens), "score": round(score, 6), "tokens": tokens}

    def text_of(self, tokens: list[int]) -> str:
        """The text of generated tokens."""
        pieces = [self.tokenizer.id_to_token(token) for token in tokens]
        if self.is_byte_level:
            return self.tokenizer.decoder.decode([piece for piece in pieces if piece not in UNSPOKEN]).strip()
        return join_pieces(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption images with onnxruntime.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--prompt", help="default: the model's own")
    parser.add_argument("--num-beams", type=int, metavar="N", help="1 = greedy; default: the model's own")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="default: the model's own")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, with score and tokens")
    args = parser.parse_args()
    overrides = {"num_beams": args.num_beams, "max_length": args.max_length}
    captioner = Captioner(Path(__file__).parent, **{name: value for name, value in overrides.items() if value})
    for image in args.images:
        result = captioner(image, args.prompt)
        line = json.dumps({"file": image, **result}, ensure_ascii=False) if args.json else result["caption"]
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
