"""`ofa-hf check CAPTIONS IMAGES`: what `finetune` would train on, what was assumed, and what looks wrong."""

import argparse
import json
import sys

from ofa_hf.cli.answering import positive
from ofa_hf.cli.table_options import add_table_options, table_form
from ofa_hf.files import refuse_unwritable


HELP = "Check captions and images before training: what would be used, what was assumed, and what looks wrong."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "table of captions (CSV, JSON, Excel, parquet), MUGE captions, or folder of images with .txt files"
    parser.add_argument("captions", metavar="CAPTIONS", help=text)
    text = "folder, .zip or .tar of the images that the table names, or MUGE image file"
    parser.add_argument("images", nargs="?", metavar="IMAGES", help=text)
    parser.add_argument("--task", metavar="NAME", help="task to train (default: that of the model, or caption)")
    text = "model to finetune; counts characters that its vocabulary lacks"
    parser.add_argument("--model", metavar="DIR_OR_ID", help=text)
    parser.add_argument(
        "--vocab", metavar="VOCAB_TXT", help="vocabulary in which to look for missing characters, instead of --model"
    )
    parser.add_argument("--test", metavar="CAPTIONS", help="captions of the test set, to find images in both sets")
    parser.add_argument("--test-images", metavar="IMAGES", help="images of the test set (default: IMAGES)")
    parser.add_argument("--report", metavar="FILE", help="write a page with thumbnails")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument(
        "--num-proc", type=positive, default=1, metavar="N", help="processes that read images (default: 1)"
    )
    add_table_options(parser)
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Print the check; 1 if nothing would be trained on."""
    if args.report:
        refuse_unwritable([args.report])
    from ofa_hf.checking.checking import check_data

    task, unknown = task_and_vocabulary(args)
    test = (args.test, args.test_images or args.images) if args.test else None
    options = {"form": table_form(args), "test": test, "unknown": unknown, "num_proc": args.num_proc}
    check = check_data(args.captions, args.images, task, **options)
    if args.report:
        from ofa_hf.pages.data_check import write_check_page

        write_check_page(check, args.report)
        print(f"ofa-hf check: wrote {args.report}", file=sys.stderr)
    print(json.dumps(check.as_dict(), ensure_ascii=False) if args.json else check.text())
    if check.why_empty:
        print(f"ofa-hf check: {check.why_empty}", file=sys.stderr)
    elif not args.model and not args.vocab:
        print(
            "ofa-hf check: pass --model to count the characters that your model's vocabulary lacks. Only those that "
            "no published Chinese checkpoint has, such as emoji, were counted.",
            file=sys.stderr,
        )
    return 1 if check.why_empty else 0


def task_and_vocabulary(args: argparse.Namespace):
    """The task, and a function that tells which characters the vocabulary lacks."""
    from ofa_hf.checking.text_check import unknown_to, unknown_to_list, unknown_to_published
    from ofa_hf.errors import UserError
    from ofa_hf.tasks_ofa import find_task

    try:
        if args.model:
            from ofa_hf.models import load_processor

            processor = load_processor(args.model)
            return processor.find_task(args.task), unknown_to(processor.tokenizer)
        return find_task(args.task or "caption"), unknown_to_list(args.vocab) if args.vocab else unknown_to_published
    except ValueError as error:
        raise UserError(str(error)) from error
