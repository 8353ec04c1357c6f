"""`ofa-hf evaluate`: score existing answers, or those of a model."""

import argparse
import json
import sys

from ofa_hf.cli.answering import positive
from ofa_hf.cli.table_options import add_table_options, table_form
from ofa_hf.files import refuse_unwritable


CLIP = "score drawings with this CLIP model (a folder that transformers loads, or a Hub id)"
COLUMNS = "score the model on these columns of --captions, with an accuracy per column (no names: all it can fill)"
HELP = "Score answers against references with the metric of the task (captions: CIDEr-D, BLEU-4 and ROUGE-L)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--predictions", metavar="FILE", help="answers to score: a file written by these commands, or any table"
    )
    source.add_argument("--model", metavar="DIR_OR_ID", help="model to score; it answers --images first")
    parser.add_argument("--task", metavar="NAME", help="task of the answers (default: that of the model, or caption)")
    parser.add_argument("--captions", metavar="FILE", help="references: MUGE captions, or a table that finetune reads")
    parser.add_argument("--images", metavar="TSV_OR_FOLDER", help="MUGE image file, or folder of the images")
    parser.add_argument("--columns", nargs="*", metavar="NAME", help=COLUMNS)
    parser.add_argument("--clip", metavar="DIR_OR_ID", help=CLIP)
    parser.add_argument(
        "--num-images",
        type=positive,
        metavar="N",
        help="with --clip: drawings per text; the best one counts (default: 1)",
    )
    parser.add_argument("--drawn", metavar="FOLDER", help="with --clip: keep the drawings here, and resume from them")
    parser.add_argument("--data-format", choices=["official"], help="--captions is a TSV file of the official code")
    parser.add_argument("--selected-cols", metavar="NUMBERS", help="columns of that file, as in the official scripts")
    parser.add_argument("--json", action="store_true", help="print the scores as one line of JSON")
    parser.add_argument("--output", metavar="FILE", help="write the scores and the settings as JSON")
    parser.add_argument("--report", metavar="FILE", help="write a page with the best and the worst answers")
    parser.add_argument("--submission", metavar="FILE", help="write the answers in MUGE's format; needs no --captions")
    parser.add_argument("--limit", type=positive, metavar="N", help="score only the first N images of --captions")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images per batch (default: 8)")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="number of beams (default: the model's)")
    parser.add_argument(
        "--max-length", type=positive, metavar="N", help="maximum tokens of an answer (default: the model's)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    add_table_options(parser)
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    check_usage(args)
    refuse_unwritable(filter(None, (args.output, args.report, args.submission)))
    from ofa_hf.evaluation import write_submission
    from ofa_hf.prediction.inputs import open_images

    images = (
        None
        if args.clip or is_table(args)
        else open_images(args.images, args.cache_dir, args.captions)
        if args.images
        else None
    )
    if not args.captions:
        from ofa_hf.prediction.evaluating import answer_images

        answers = answer_images(args.model, images, task=args.task, device=args.device, **settings(args))
        write_submission(answers, args.submission)
        print(f"{len(answers)} answers in {args.submission}", file=sys.stderr)
        return 0
    result = evaluate(args, images)
    if args.submission:
        write_submission(result.predictions, args.submission)
    if args.output:
        result.save(args.output)
    if args.report:
        from ofa_hf.pages.scores import write_report

        write_report(result, args.report, images)
    print(json.dumps(result.scores.as_dict()) if args.json else result.table())
    return 0


def check_usage(args: argparse.Namespace) -> None:
    if args.predictions and not args.captions:
        args.usage_error("--predictions needs --captions, the references to compare with")
    if args.model and not args.images and not args.captions:
        args.usage_error("--model needs --images, the images to answer")
    if args.clip and (not args.model or not args.captions or args.columns is not None):
        args.usage_error("--clip scores what a --model draws of the texts in --captions")
    if args.clip and (args.report or args.submission):
        args.usage_error("drawn images have no page of answers: leave --report and --submission out; see --drawn")
    if not args.clip and (args.drawn or args.num_images):
        args.usage_error("--drawn and --num-images are about images that --clip scores: add --clip")
    if args.columns is not None and not args.model:
        args.usage_error("--columns are filled by a --model; score a table that is filled with --task")
    if args.columns is not None and (args.task or args.report):
        args.usage_error("--columns are tasks of their own and have no page: leave --task and --report out")
    if not args.captions and not args.submission:
        args.usage_error("without --captions there is nothing to score: add --captions, or --submission FILE")
    if not args.captions and (args.report or args.output or args.limit or args.json):
        args.usage_error("--report, --output, --limit and --json are about scores and need --captions")


def evaluate(args: argparse.Namespace, images):
    """Score the given predictions, or those of a model."""
    if args.predictions:
        from ofa_hf.evaluation import evaluate_files

        options = {"task": args.task or "caption", "limit": args.limit, "form": table_form(args)}
        return evaluate_files(args.predictions, args.captions, **options)
    if args.clip:
        return evaluate_drawn(args)
    from ofa_hf.prediction.evaluating import evaluate_images, evaluate_table

    run = {"model": args.model, "captions": args.captions, "images": args.images, "limit": args.limit}
    options = {"limit": args.limit, "task": args.task, "device": args.device, "run": run, **settings(args)}
    if is_table(args):
        return evaluate_table(args.model, files_of(args), columns=args.columns, **options)
    options["form"] = table_form(args)
    return evaluate_images(args.model, images, args.captions, **options)


def files_of(args: argparse.Namespace):
    """The rows to answer, as `Files`."""
    from ofa_hf.data.sources import Files

    official = args.data_format == "official"
    return Files(args.captions, args.images, table_form(args), official, args.selected_cols, True, "--images")


def evaluate_drawn(args: argparse.Namespace):
    """Let a model draw, and score its images."""
    from ofa_hf.prediction.evaluating_drawings import evaluate_drawings

    options = {"task": args.task, "drawn": args.drawn, "limit": args.limit, "device": args.device}
    options |= {"num_images": args.num_images or 1}
    run = {"model": args.model, "captions": args.captions, "limit": args.limit}
    return evaluate_drawings(args.model, files_of(args), args.clip, **options, run=run)


def is_table(args: argparse.Namespace) -> bool:
    """Whether the references are rows of a table that a model answers, rather than captions by image."""
    if not args.model or not args.captions:
        return False
    if args.columns is not None or args.data_format or not args.images:
        return True
    from ofa_hf.models import load_processor
    from ofa_hf.prediction.loop import find_task

    task = find_task(load_processor(args.model), args.task)
    return bool(task.fields) or task.answer != "text" or not task.needs_image


def settings(args: argparse.Namespace) -> dict:
    values = {"batch_size": args.batch_size, "num_beams": args.num_beams, "max_length": args.max_length}
    return {name: value for name, value in values.items() if value is not None}
