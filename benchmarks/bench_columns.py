"""How well columns of a table are learned and filled: a drawn shop with a column each for kind, colour and pattern.

    python benchmarks/bench_columns.py OUT [--images N] [--json FILE]

A small model is pretrained on captions of the shop, as in the demo. It is then finetuned on a table of three columns,
some cells of which are empty, fills the table of products that it has never seen, and its cells are compared.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import torch

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import load_muge
from ofa_hf.data.sources import Files
from ofa_hf.demo.pretraining import Pretraining, pretrain
from ofa_hf.image_loading_ofa import load_image
from ofa_hf.prediction.evaluating import evaluate_table
from ofa_hf.prediction.filling import Filling, fill_table
from ofa_hf.samples.shop import Product, read_products, vocabulary, write_shop
from ofa_hf.training import finetune, parse_arguments


COLUMNS = {"品类": "kind", "颜色": "colour", "图案": "pattern"}  # of the table → of a product
PIXELS = 64  # that the model reads
EMPTY_EVERY = 10  # a training cell in so many is empty
WORDS = "这件商品的颜色类图案是什么?"  # of the questions, which the shop's captions lack


def write_tables(folder: Path, num_train: int, num_test: int) -> dict[str, Product]:
    """A shop as MUGE's files, and of each split a table with its folder of images."""
    files = write_shop(folder, num_train=num_train, num_valid=num_test, size=2 * PIXELS)
    files.vocab_file.write_text("\n".join(dict.fromkeys([*vocabulary(), *WORDS])) + "\n", encoding="utf-8")
    products = read_products(files.label_file)
    for split in ("train", "valid"):
        rows = load_muge(None, folder / f"IC_{split}.tsv", cache_dir=folder / "cache")
        (folder / split).mkdir(exist_ok=True)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as table:
            lines = csv.writer(table)
            lines.writerow(["图片", *COLUMNS])
            for number, row in enumerate(rows):
                load_image(row["image"]).save(folder / split / f"{row['id']}.jpg", quality=90)
                cells = [getattr(products[row["id"]], name) for name in COLUMNS.values()]
                if split == "train" and number % EMPTY_EVERY == 0:
                    cells[number // EMPTY_EVERY % len(cells)] = ""
                lines.writerow([f"{row['id']}.jpg", *cells])
    return products


def write_base_model(folder: Path, products: dict[str, Product], epochs: int) -> Path:
    """A model that has learned captions of the shop."""
    processor = OFAProcessor(OFAImageProcessor(size=PIXELS), build_tokenizer(folder / "vocab.txt"))
    rows = load_muge(None, folder / "IC_train.tsv", cache_dir=folder / "cache")
    model = pretrain(rows, products, processor, Pretraining(epochs=epochs), seed=0)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    return folder / "base"


def finetune_columns(folder: Path, base: Path, epochs: float) -> Path:
    """The base model, all of it, trained on the table's columns."""
    words = ["--model_name_or_path", base, "--output_dir", folder / "model", "--columns", *COLUMNS]
    words += ["--train_caption_file", folder / "train.csv", "--train_image_file", folder / "train"]
    words += ["--per_device_train_batch_size", 48, "--learning_rate", 1e-3, "--num_train_epochs", epochs]
    words += ["--use_cpu", not torch.cuda.is_available(), "--save_strategy", "no", "--dropout", 0.0]
    words += ["--freeze_encoder", False, "--disable_tqdm", True, "--logging_steps", 20]
    return finetune(*parse_arguments(None, list(map(str, words)))).folder


def cells_right(filled: Path, products: dict[str, Product]) -> float:
    """Share of cells of a filled table that are right, 0 to 1."""
    rows = list(csv.DictReader(filled.open(encoding="utf-8-sig", newline="")))
    pairs = [
        (row[column], getattr(products[Path(row["图片"]).stem], name))
        for row in rows
        for column, name in COLUMNS.items()
    ]
    return sum(found == true for found, true in pairs) / len(pairs)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2500, help="products to train on (2500)")
    parser.add_argument("--test-images", type=int, default=160, help="products to fill (160)")
    parser.add_argument("--pretraining-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args(argv)
    started = time.monotonic()
    products = write_tables(args.out, args.images, args.test_images)
    base = write_base_model(args.out, products, args.pretraining_epochs)
    pretrained = time.monotonic()
    model = finetune_columns(args.out, base, args.epochs)
    trained = time.monotonic()
    result = evaluate_table(str(model), Files(args.out / "valid.csv", args.out / "valid"), columns=[])
    empty = args.out / "empty.csv"
    names = [row["图片"] for row in csv.DictReader((args.out / "valid.csv").open(encoding="utf-8"))]
    empty.write_text("图片\n" + "\n".join(names) + "\n", encoding="utf-8")
    filled = args.out / "filled.csv"
    filled.unlink(missing_ok=True)
    fill_table(Filling(table=str(empty), images=str(args.out / "valid"), model=str(model), output=str(filled)))
    found = {
        "cells_right": cells_right(filled, products),
        "scores": result.scores.as_dict(),
        "seconds": {
            "pretraining": pretrained - started,
            "finetuning": trained - pretrained,
            "filling": time.monotonic() - trained,
        },
    }
    print(result.table(), file=sys.stderr)
    print(json.dumps(found, ensure_ascii=False))
    if args.json:
        args.json.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
