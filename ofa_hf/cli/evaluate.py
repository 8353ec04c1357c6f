"""`ofa-hf evaluate`: score captions that exist, or caption images with a model first."""

import argparse
import json
import sys


HELP = "Score captions against references: CIDEr-D, BLEU-4, ROUGE-L"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", metavar="FILE", help='captions to score, JSONL {"image_id", "text": "…"}')
    source.add_argument("--model", metavar="DIR_OR_ID", help="model that captions --images first")
    parser.add_argument("--captions", metavar="FILE", help='references, JSONL {"image_id", "text": ["…", …]}')
    parser.add_argument("--images", metavar="TSV_OR_FOLDER", help="MUGE's image file, or a folder of <image_id>.jpg")
    parser.add_argument("--json", action="store_true", help="print the scores as one line of JSON")
    parser.add_argument("--output", metavar="FILE", help="write scores and what was run as JSON")
    parser.add_argument("--report", metavar="FILE", help="write a page with the best and the worst captions")
    parser.add_argument("--submission", metavar="FILE", help="write the captions in MUGE's form; needs no --captions")
    parser.add_argument("--limit", type=positive, metavar="N", help="take the first N images of --captions alone")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="default: the checkpoint's own")
    parser.add_argument("--max-length", type=positive, metavar="N", help="tokens; default: the checkpoint's own")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the fastest there is")
    parser.set_defaults(usage_error=parser.error)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def run(args: argparse.Namespace) -> int:
    check_usage(args)
    if args.model and not args.captions:
        return write_captions_alone(args)
    from ofa_hf.evaluation import read_references, write_submission

    references = dict(list(read_references(args.captions).items())[: args.limit])
    images = open_images(args.images) if args.images else None
    result = evaluate_with_model(args, images, references) if args.model else score_file(args, references)
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
    if args.model and not args.images:
        args.usage_error("--model needs --images, the images to caption")
    if not args.captions and not args.submission:
        args.usage_error("without --captions there is nothing to score: add --captions, or --submission FILE")
    if not args.captions and (args.report or args.output or args.limit or args.json):
        args.usage_error("--report, --output, --limit and --json are about scores and need --captions")


def score_file(args: argparse.Namespace, references: dict):
    from ofa_hf.evaluation import evaluate_predictions, read_predictions

    predictions = read_predictions(args.predictions)
    if args.limit:
        predictions = {image_id: text for image_id, text in predictions.items() if image_id in references}
    return evaluate_predictions(predictions, references, {"predictions": args.predictions, "captions": args.captions})


def evaluate_with_model(args: argparse.Namespace, images, references: dict):
    from ofa_hf.models import load_model
    from ofa_hf.prediction.evaluating import evaluate_model

    model, processor = load_model(args.model, device=args.device)
    rows = ({"id": image_id, "image": images[image_id]} for image_id in references if image_id in images)
    what = {"model": args.model, "captions": args.captions, "images": args.images, "limit": args.limit}
    what |= {"device": str(model.device), "dtype": str(model.dtype)}
    return evaluate_model(
        model, processor, rows, references, batch_size=args.batch_size, run=what, **generation_settings(args)
    )


def write_captions_alone(args: argparse.Namespace) -> int:
    from ofa_hf.evaluation import write_submission
    from ofa_hf.models import load_model
    from ofa_hf.prediction.loop import predict, show_progress

    images = open_images(args.images)
    model, processor = load_model(args.model, device=args.device)
    rows = ({"id": image_id, "image": images[image_id]} for image_id in images)
    captions = predict(model, processor, rows, batch_size=args.batch_size, **generation_settings(args))
    predictions = {caption.id: caption.text for caption in show_progress(captions, len(images))}
    write_submission(predictions, args.submission)
    print(f"{len(predictions)} captions in {args.submission}", file=sys.stderr)
    return 0


def generation_settings(args: argparse.Namespace) -> dict:
    settings = {"num_beams": args.num_beams, "max_length": args.max_length}
    return {name: value for name, value in settings.items() if value is not None}


def open_images(images: str):
    """Images by id: a folder's by their names, or those of a MUGE file."""
    from pathlib import Path

    from ofa_hf.data import FolderImages, ImagesById, load_muge

    if Path(images).is_dir():
        return FolderImages(images)
    return ImagesById(load_muge(None, images, check_images=False))  # a broken one is noticed when it is captioned
