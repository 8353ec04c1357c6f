"""`ofa-hf ground IMAGE_OR_FOLDER… --text "…" --model DIR_OR_ID`: boxes of phrases in images."""

import argparse

from ofa_hf.cli import answering
from ofa_hf.cli.answering import Command, probability


HELP = "Locate phrases in images: boxes in pixels, drawn on the images, as COCO JSON, or in a table."
COMMAND = Command("ground", task="grounding", answer="box", plural="boxes", field="text", field_option="--text")
THRESHOLD = (
    "leave out boxes with a lower score, which is the geometric mean of the probabilities of the four sides and the "
    "end of the answer (default: 0)"
)
DRAW = "draw the boxes on copies of the images in this folder"
COCO = "write the boxes as COCO JSON for labeling tools; resumes from the .jsonl file next to it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    answering.add_arguments(parser, COMMAND)
    parser.add_argument("--threshold", type=probability, default=0.0, metavar="P", help=THRESHOLD)
    parser.add_argument("--draw", metavar="FOLDER", help=DRAW)
    parser.add_argument("--coco", metavar="FILE", help=COCO)


def run(args: argparse.Namespace) -> int:
    """Locate what can be located. Returns 1 if anything was left out."""
    if args.coco and len(args.model) > 1:
        args.usage_error("--coco writes the boxes of a single --model")
    if not (args.draw or args.coco):
        return answering.run(args, COMMAND, threshold=args.threshold)
    answering.check_usage(args, has_reports=True)
    from ofa_hf.prediction.coco import CocoFile
    from ofa_hf.prediction.drawing import DrawnImages

    reports = []
    if args.draw:
        reports.append(DrawnImages(args.draw, lambda text: answering.say(COMMAND, text)))
    if args.coco:
        reports.append(CocoFile(args.coco))
        args.output = args.output or str(reports[-1].record)
    return answering.run(args, COMMAND, reports, threshold=args.threshold)
