"""Files of captions, images, predictions and arguments with any bytes and any JSON in them."""

import base64
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

from stress import fuzz, mutation
from stress.images import originals
from stress.pieces import Figures

from ofa_hf.data import load_muge, load_table, report_of
from ofa_hf.errors import UserError
from ofa_hf.evaluation import evaluate_files
from ofa_hf.evaluation.predictions import write_submission
from ofa_hf.image_loading_ofa import load_image
from ofa_hf.training.arguments import parse_arguments


WORDS = (
    "红色连衣裙",
    "a",
    "",
    " ",
    "T恤 100% cotton",
    "\u3000",
    "🛒👗",
    "e\u0301",
    "line\nbreak",
    "tab\there",
    "\x00",
    "\ud83d",
    "字" * 300,
)
WORDS += (
    "../../etc/passwd",
    "/dev/stdin",
    "a/b",
    ".",
    "..",
    "shoe.png",
    "NaN",
    "null",
    "-1",
    "<code_0>",
    "\ufeff",
    "\u2028",
    "\x1b[31m",
)
NUMBERS = (0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf)


def odd_value(chance: random.Random, depth: int = 0) -> Any:
    """A value that JSON can hold, and some that only Python's reader takes."""
    kind = chance.randrange(8 if depth < 3 else 5)
    if kind <= 1:
        return chance.choice(WORDS)
    if kind == 2:
        return chance.choice(NUMBERS)
    if kind <= 4:
        return chance.choice((None, True, False))
    if kind <= 6:
        return [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(WORDS): odd_value(chance, depth + 1) for _ in range(chance.randrange(4))}


def odd_line(row: dict, chance: random.Random) -> bytes:
    """A row as a line of JSON: as it is, with an odd value, or as something else altogether."""
    kind = chance.randrange(25)
    if kind == 0:
        row = {**row, chance.choice((*row, "other")): odd_value(chance)}
    elif kind == 1:
        row = {name: value for name, value in row.items() if chance.random() < 0.6}
    elif kind == 2:
        row = odd_value(chance)
    elif kind == 3 and chance.random() < 0.3:
        return b"[" * chance.choice((10, 100_000)) + b"\n"
    text = json.dumps(row, ensure_ascii=chance.random() < 0.7)
    return text.encode("utf-8", "surrogatepass") + chance.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b""))


def spoiled(data: bytes, chance: random.Random, share: float = 0.3) -> bytes:
    """Bytes changed at random, or written in another encoding, or left alone."""
    if chance.random() < 0.05:
        return data.decode("utf-8", "replace").encode(chance.choice(("utf-16", "gb18030", "utf-8-sig")), "replace")
    return mutation.mutate(data, chance) if chance.random() < share else data


# --------------------------------------------------------------------------------------------------- data


class DataTarget(fuzz.Target):
    """MUGE's two files, and a folder with a table of captions."""

    refusals = (UserError,)
    megabytes = 400

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.images = list(originals().values())
        self.shop = folder / "shop"
        self.shop.mkdir()
        for number, data in enumerate(self.images[:6]):
            (self.shop / f"shoe{number}.png").write_bytes(data)

    def make(self, chance: random.Random) -> dict[str, Any]:
        options = {"strict": chance.random() < 0.05, "check_images": chance.random() < 0.8}
        if chance.random() < 0.5:
            captions = b"".join(odd_line({"image_id": name, "text": texts(chance)}, chance) for name in ids(chance))
            images = b"".join(self.image_line(name, chance) for name in ids(chance))
            return {"muge": (spoiled(captions, chance), spoiled(images, chance)), "options": options}
        suffix = chance.choice((".csv", ".tsv", ".jsonl"))
        make_table = json_table if suffix == ".jsonl" else csv_table
        table = make_table(chance, "\t" if suffix == ".tsv" else ",")
        encoding = chance.choices(("utf-8-sig", "gb18030", "no-such-encoding"), weights=(8, 2, 1))[0]
        options |= {"id_column": chance.choice((None, None, "id")), "encoding": encoding}
        return {"folder": (spoiled(table, chance), suffix), "options": options}

    def image_line(self, name: str, chance: random.Random) -> bytes:
        encode = chance.choice((base64.b64encode, base64.urlsafe_b64encode))
        data = chance.choice(self.images)
        payload = encode(spoiled(data, chance, 0.2))
        payload = chance.choice((payload, payload, payload.rstrip(b"="), payload[:-1], b"", b"?" + payload))
        ends = (b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"")
        return (
            name.encode("utf-8", "replace")
            + (b" " if chance.random() < 0.05 else b"\t")
            + payload
            + chance.choice(ends)
        )

    def attempt(self, made: dict[str, Any]) -> str:
        work = self.folder / "work"
        work.mkdir()
        try:
            rows = self.load(work, **made)
            check_rows(rows, made["options"]["check_images"])
            return "loaded"
        finally:
            shutil.rmtree(work)

    def load(self, work: Path, options: dict, muge=None, folder=None):
        if muge:
            (work / "a.jsonl").write_bytes(muge[0])
            (work / "a.tsv").write_bytes(muge[1])
            return load_muge(work / "a.jsonl", work / "a.tsv", num_proc=0, cache_dir=work / "cache", **options)
        table = work / f"captions{folder[1]}"
        table.write_bytes(folder[0])
        return load_table(table, self.shop, num_proc=0, cache_dir=work / "cache", **options)


def ids(chance: random.Random) -> list[str]:
    names = [f"shoe{number}" for number in range(6)]
    return [chance.choice(names if chance.random() < 0.7 else WORDS) for _ in range(chance.randrange(1, 6))]


def texts(chance: random.Random) -> Any:
    return chance.choice(([chance.choice(WORDS) for _ in range(chance.randrange(4))], chance.choice(WORDS)))


def json_table(chance: random.Random, _) -> bytes:
    rows = ({"image": name, "caption": texts(chance), "id": chance.choice(WORDS)} for name in ids(chance))
    return b"".join(odd_line(row, chance) for row in rows)


def csv_table(chance: random.Random, delimiter: str) -> bytes:
    lines = [delimiter.join(("image", "caption", "id"))]
    for name in ids(chance):
        cells = [name, chance.choice(WORDS), chance.choice(WORDS)][: chance.choice((3, 3, 3, 2, 1))]
        lines.append(delimiter.join(f'"{cell}"' if chance.random() < 0.5 else cell for cell in cells))
    return chance.choice(("\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass")


def check_rows(rows, check_images: bool) -> None:
    """What a row promises, and that the report counts what is there."""
    report, captions = report_of(rows), 0
    for row in rows:
        assert row["id"].strip(), row["id"]
        assert row["targets"], row
        assert all(caption.strip() for caption in row["targets"]), row["targets"]
        captions += len(row["targets"])
        if check_images:
            load_image(row["image"])
    assert len(rows) == len(set(rows["id"])) == report.rows > 0
    assert captions == report.targets


def data(seed: int, amount: int, folder: Path) -> Figures:
    """Changed data sets through the readers."""
    return fuzz.try_inputs(DataTarget, seed, amount, folder)


# -------------------------------------------------------------------------------------------- predictions


class PredictionTarget(fuzz.Target):
    """Predictions and captions as `ofa-hf evaluate --predictions … --captions …` takes them."""

    refusals = (UserError,)
    megabytes = 200

    def make(self, chance: random.Random) -> tuple[bytes, bytes]:
        names = [
            chance.choice((f"shoe{number}", number, chance.choice(WORDS))) for number in range(chance.randrange(4))
        ]
        odd = chance.random() < 0.5
        files = []
        for text in (lambda: chance.choice(WORDS), lambda: [chance.choice(WORDS) for _ in range(3)]):
            rows = [{"image_id": name, "text": text()} for name in names]
            lines = [odd_line(row, chance) if odd else (json.dumps(row) + "\n").encode() for row in rows]
            files.append(spoiled(b"".join(lines), chance, 0.4 if odd else 0.1))
        return files[0], files[1]

    def attempt(self, made: tuple[bytes, bytes]) -> str:
        paths = self.folder / "predictions.jsonl", self.folder / "captions.jsonl"
        for path, content in zip(paths, made, strict=True):
            path.write_bytes(content)
        result = evaluate_files(*paths)
        for name, value in result.scores.as_dict().items():
            assert 0 <= value <= 1000.0001, f"{name} is {value}"  # false of NaN too
        result.save(self.folder / "result.json")
        write_submission(result.predictions, self.folder / "submission.jsonl")
        return "scored"


def predictions(seed: int, amount: int, folder: Path) -> Figures:
    """Changed predictions and captions through the scorer."""
    return fuzz.try_inputs(PredictionTarget, seed, amount, folder)


# ---------------------------------------------------------------------------------------------- arguments


class ArgumentTarget(fuzz.Target):
    """The argument file of `ofa-hf finetune`."""

    refusals = (UserError,)
    megabytes = 200
    base = {"model_name_or_path": "model", "train_caption_file": "a.jsonl", "train_image_file": "a.tsv"}
    base |= {"output_dir": "out", "num_train_epochs": 1, "learning_rate": 1e-4, "use_cpu": True, "save_steps": 10}

    def make(self, chance: random.Random) -> bytes:
        from dataclasses import fields

        from transformers import Seq2SeqTrainingArguments

        from ofa_hf.training.arguments import RENAMED, WITHOUT_EFFECT, FinetuneArguments

        names = [item.name for kind in (FinetuneArguments, Seq2SeqTrainingArguments) for item in fields(kind)]
        names += [*RENAMED, *sorted(WITHOUT_EFFECT), "leraning_rate", "", "\x00"]
        values = {**self.base, **{chance.choice(names): odd_value(chance) for _ in range(chance.choice((0, 1, 1, 2)))}}
        text = json.dumps(values, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        return spoiled(text, chance, 0.3)

    def attempt(self, made: bytes) -> str:
        path = self.folder / "arguments.json"
        path.write_bytes(made)
        ours, trainers = parse_arguments(path)
        assert isinstance(ours.model_name_or_path, str)
        assert trainers.logging_nan_inf_filter is False
        return "read"


def arguments(seed: int, amount: int, folder: Path) -> Figures:
    """Odd argument files through the reader."""
    return fuzz.try_inputs(ArgumentTarget, seed, amount, folder)
