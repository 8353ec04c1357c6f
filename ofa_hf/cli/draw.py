"""`ofa-hf draw TEXT… --model DIR_OR_ID --output FOLDER`: draws images of texts."""

import argparse

from ofa_hf.cli.answering import DTYPES
from ofa_hf.cli.table_options import OPTIONS, reading_of


HELP = (
    "Draw images of texts: PNG files, a contact sheet per text, and images.jsonl. An interrupted run can be resumed."
)
TEXTS = "text to draw, file with one text per line, table with a column of texts, or - for the lines of stdin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help=TEXTS)
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of a model that draws")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for the images")
    parser.add_argument("--num-images", type=int, default=4, metavar="N", help="images per text (default: 4)")
    parser.add_argument(
        "--seed", type=int, default=42, help="random seed; the same seed gives the same images (default: 42)"
    )
    columns = "column of texts in a table (default: text, caption, description or prompt)"
    parser.add_argument("--column", metavar="NAME", help=columns)
    for name in ("encoding", "separator"):
        parser.add_argument(f"--{name}", metavar="NAME", help=OPTIONS[name])
    parser.add_argument("--task", metavar="NAME", help="task of the model (default: the one that draws)")
    parser.add_argument("--clip", metavar="DIR_OR_ID", help="CLIP model that ranks the images of each text")
    parser.add_argument(
        "--num-beams", type=int, metavar="N", help="use beam search instead of sampling; 1 takes the best codes"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="sample among the N best codes (default: 256)")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help=DTYPES)
    parser.add_argument("--json", action="store_true", help="print the lines of images.jsonl instead of file names")


def run(args: argparse.Namespace) -> int:
    """Draw what can be drawn. Returns 1 if any text was left out."""
    from pathlib import Path

    from ofa_hf.prediction.processes import Processes
    from ofa_hf.prediction.text_to_image import RECORD, DrawRequest, draw_files

    options = {"num_beams": args.num_beams, "top_k": args.top_k, "temperature": args.temperature}
    options["do_sample"] = None if args.num_beams is None else False
    request = DrawRequest(
        args.texts,
        args.model,
        args.output,
        num_images=args.num_images,
        seed=args.seed,
        task=args.task,
        clip=args.clip,
        column=args.column,
        device=args.device,
        dtype=args.dtype,
        reading=reading_of(args),
        options={name: value for name, value in options.items() if value is not None},
    )
    failed = draw_files(request)
    record = Path(args.output, RECORD)
    if record.is_file() and Processes().is_first:
        print_images(record, args.json)
    return 1 if failed else 0


def print_images(record, as_json: bool) -> None:
    """Print the best image of each text, or with `--json` the whole record."""
    import json

    for line in record.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        print(line if as_json else f"{record.parent / values['image']}\t{' '.join(values['text'].split())}")
