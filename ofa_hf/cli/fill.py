"""`ofa-hf fill TABLE IMAGES --model DIR --output FILE`: fills columns of a table of images, such as color."""

import argparse
import sys

from ofa_hf.cli.answering import DTYPES, positive, probability
from ofa_hf.cli.table_options import add_table_options


HELP = "Fill columns of a table of images, with a score per cell. Each image is encoded once for all columns."
TABLE = "CSV, JSONL, Excel or parquet file with a row per image and a column that names the image"
COLUMNS = "columns to fill (default: all that the model was trained to fill)"
OUTPUT = "where to write the filled table: .csv or .jsonl; an unfinished one is resumed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help=TABLE)
    parser.add_argument("images", metavar="IMAGES", nargs="?", help="folder of the images (default: the table's own)")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder of a finetuned model, or Hub id")
    parser.add_argument("--output", required=True, metavar="FILE", help=OUTPUT)
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME", help=COLUMNS)
    add_table_options(parser, without=("caption_column", "id_column"))
    parser.add_argument("--overwrite", action="store_true", help="fill cells that have a value, too")
    text = "leave a cell empty whose value is less probable (0); its score is written all the same"
    parser.add_argument("--min-score", type=probability, default=0.0, metavar="P", help=text)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="B", help="images per batch (default: 8)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help=DTYPES)


def run(args: argparse.Namespace) -> int:
    """Fill what can be filled. Returns 1 if any row was left out."""
    from tqdm import tqdm

    from ofa_hf.prediction.filling import Filling, fill_table

    def say(text: str) -> None:
        tqdm.write(f"ofa-hf fill: {text}", file=sys.stderr)

    names = ("table", "images", "model", "output", "columns", "image_column", "overwrite", "min_score", "batch_size")
    names += ("device", "dtype", "encoding", "separator", "cache_dir")
    filling = Filling(**{name: getattr(args, name) for name in names})
    interval = 0.2 if sys.stderr.isatty() else 30
    with tqdm(unit="row", file=sys.stderr, mininterval=interval) as bar:
        counts = fill_table(filling, say, bar.update)
    before = f", {counts['before']} rows done before" if counts["before"] else ""
    below = f", {counts['below']} below --min-score" if counts["below"] else ""
    cells = f"{counts['filled']} cells filled, {counts['kept']} kept{below}"
    say(f"{counts['rows']} rows written to {args.output}: {cells}; {counts['failed']} rows not filled{before}.")
    return 1 if counts["failed"] else 0
