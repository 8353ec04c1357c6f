"""`ofa-hf caption IMAGE_OR_FOLDER… --model DIR_OR_ID`: captions on stdout or in a file."""

import argparse
import sys


HELP = "Caption pictures: files, or folders with all their subfolders."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="picture files and folders of them")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted folder or a model on the Hub")
    parser.add_argument("--num-captions", type=_positive, default=1, metavar="N", help="captions a picture (1)")
    parser.add_argument("--prompt", help="question about the picture (default: the one the model was trained with)")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="B", help="pictures at a time (8)")
    parser.add_argument("--num-beams", type=_positive, metavar="N", help="beams (default: the model's)")
    parser.add_argument("--max-length", type=_positive, metavar="N", help="tokens at most (default: the model's)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with scores")
    parser.add_argument("--output", metavar="FILE", help="write a .jsonl or .csv file, continuing one that is there")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Caption everything that can be read; 1 if anything could not."""
    import os

    from ofa_hf.captioning.folder import find_pictures
    from ofa_hf.captioning.output import CaptionFile, CaptionPrinter

    files = find_pictures(args.inputs)
    several = len(files) > 1 or any(map(os.path.isdir, args.inputs))
    with CaptionFile(args.output, args.num_captions) if args.output else CaptionPrinter(args.json, several) as output:
        remaining = [file for file in files if os.path.abspath(file) not in output.done]
        num_failed = _caption(args, remaining, output) if remaining else 0
    if several or args.output:
        already = len(files) - len(remaining)
        print(
            f"ofa-hf caption: {len(remaining) - num_failed} of {len(files)} pictures captioned, {num_failed} not "
            f"readable" + (f", {already} were captioned before." if already else "."),
            file=sys.stderr,
        )
    return 1 if num_failed else 0


def _caption(args: argparse.Namespace, files: list[str], output) -> int:
    """Caption files into `output`, with a progress bar; returns how many could not be read."""
    from tqdm import tqdm
    from transformers.utils import logging

    from ofa_hf.captioning.folder import beam_settings, caption_files, load_captioner

    logging.disable_progress_bar()  # of the weights; the pictures have their own
    captioner = load_captioner(args.model, args.device, args.dtype)
    options = beam_settings(captioner, args.num_captions, args.num_beams)
    options |= {"prompt": args.prompt, "return_scores": bool(args.json or args.output)}
    if args.max_length is not None:
        options["max_length"] = args.max_length
    failed = []
    quiet = len(files) < 2 or (not args.output and sys.stdout.isatty())  # captions on the screen show the progress
    interval = 0.2 if sys.stderr.isatty() else 30
    with tqdm(total=len(files), unit="picture", file=sys.stderr, disable=quiet, mininterval=interval) as bar:

        def skip(file: str, error: Exception) -> None:
            failed.append(file)
            bar.write(f"ofa-hf caption: skipped: {error}", file=sys.stderr)
            bar.update()

        for file, captions in caption_files(captioner, files, batch_size=args.batch_size, on_failure=skip, **options):
            output.write(file, captions)
            bar.update()
    return len(failed)
