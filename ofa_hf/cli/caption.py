"""`ofa-hf caption IMAGE_OR_FOLDER… --model DIR_OR_ID`: captions on stdout, in a file, or as a page."""

import argparse
import sys


HELP = "Caption images: files, or folders with all their subfolders."
MANY_MODELS = "a converted folder or a model on the Hub; several run one after another, and each line names its model"
REPORT = (
    "write a table, images down and models across. page.html: a page that needs nothing beside it, and the same as "
    "page.md with small images in page_files/; page.md: Markdown alone. 200 images a page, the others follow there"
)


SEVERAL_PROCESSES = """\
Several GPUs or processes: torchrun --nproc_per_node 2 -m ofa_hf caption photos/ --model … --output captions.jsonl.
Each takes its share and writes captions.part-0.jsonl, …, merged into captions.jsonl at the end. When one is killed all
stop; the same command, with or without torchrun, completes the job. With --engine ray the model is loaded once a GPU
(or core), a worker that dies is replaced, and the same command completes a job that was killed."""
RAY = "hand the images to Ray Data workers, here or in the cluster of RAY_ADDRESS; needs `pip install 'ofa-hf[ray]'`"
PARQUET = "with --engine ray: parquet files, folders of them, or a data set on disk work too; its "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = SEVERAL_PROCESSES
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files and folders of them")
    parser.add_argument("--model", required=True, action="append", metavar="DIR_OR_ID", help=MANY_MODELS)
    parser.add_argument("--num-captions", type=_positive, default=1, metavar="N", help="captions per image (1)")
    parser.add_argument("--prompt", help="question about the image (default: the one the model was trained with)")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="B", help="images at a time (8)")
    parser.add_argument("--num-beams", type=_positive, metavar="N", help="beams (default: the model's)")
    parser.add_argument("--max-length", type=_positive, metavar="N", help="tokens at most (default: the model's)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with scores")
    parser.add_argument("--output", metavar="FILE", help="write a .jsonl or .csv file, continuing one that is there")
    parser.add_argument("--report", metavar="FILE", help=REPORT)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help=f"ray: {RAY}")
    parser.add_argument("--workers", type=_positive, metavar="N", help="of Ray (default: one a GPU, else one a core)")
    parser.add_argument("--image-column", default="image", metavar="NAME", help=PARQUET + "column of images (image)")
    parser.add_argument("--id-column", metavar="NAME", help="the column that names a row (image_id, id, file, …)")
    parser.set_defaults(usage_error=parser.error)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Caption everything that can be read; 1 if anything could not."""
    import tempfile

    from ofa_hf.pages.comparison import ComparisonReport
    from ofa_hf.prediction.captioning import check_model, find_images
    from ofa_hf.prediction.processes import Processes

    if args.engine == "ray":
        return _run_on_ray(args)
    if args.workers or args.id_column or args.image_column != "image":
        args.usage_error("--workers, --image-column and --id-column are for --engine ray")
    if args.json and args.report and not args.output:
        args.usage_error("--json prints captions, which --report writes into a page; add --output FILE.jsonl instead")
    processes = Processes()
    if processes.count > 1:
        _refuse_unshareable(args, processes)
    report = ComparisonReport(args.report) if args.report else None
    files = find_images(args.inputs, report.owns) if report else find_images(args.inputs)
    models = _distinct(args.model)
    for model in models[1:]:  # a mistyped name shows now rather than after the first model's hours
        check_model(model)
    captions, broken = {}, set()
    with processes, tempfile.TemporaryDirectory(prefix="ofa_hf_") as scratch:
        files = processes.agree(files)
        for model in models:
            with _output(args, model if len(models) > 1 else None, files, scratch, processes) as output:
                _caption(args, model, files, output, broken, processes)
                if report:
                    captions[model] = output.captions()
    if report:
        _write(report, args, files, captions)
    return 1 if broken else 0


def _run_on_ray(args: argparse.Namespace) -> int:
    if not args.output or args.report or args.device or len(args.model) > 1:
        args.usage_error("--engine ray needs --output FILE and one --model, and takes neither --report nor --device")
    from ofa_hf.prediction.ray_data import caption_with_ray

    def skip(name: str, reason: str) -> None:
        print(f"ofa-hf caption: skipped: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)

    options = {"prompt": args.prompt, **({"max_length": args.max_length} if args.max_length else {})}
    counts = caption_with_ray(
        args.inputs,
        args.model[0],
        args.output,
        workers=args.workers,
        batch_size=args.batch_size,
        num_captions=args.num_captions,
        num_beams=args.num_beams,
        dtype=args.dtype,
        image_column=args.image_column,
        id_column=args.id_column,
        on_failure=skip,
        progress=True,
        **options,
    )
    before = f", {counts.before} were captioned before." if counts.before else "."
    print(f"ofa-hf caption: {counts.captioned} captioned, {counts.failed} not readable{before}", file=sys.stderr)
    return 1 if counts.failed else 0


def _distinct(models: list[str]) -> list[str]:
    import os

    return list(dict.fromkeys(os.path.normpath(model) if os.path.isdir(model) else model for model in models))


def _refuse_unshareable(args: argparse.Namespace, processes) -> None:
    from ofa_hf.errors import UserError

    if args.report or not args.output:
        raise UserError(
            f"{processes.count} processes caption into one file, but "
            + ("--report is written by one process. Caption first, then run " if args.report else "there is no file. ")
            + ("the same command with --report without torchrun." if args.report else "Add --output captions.jsonl.")
        )


def _output(args: argparse.Namespace, model: str | None, files: list[str], scratch: str, processes):
    """Where one model's captions go; `model` is its name if there are several."""
    import os

    from ofa_hf.prediction.outputs import CaptionPrinter
    from ofa_hf.prediction.processes import open_caption_file

    if args.output or args.report:
        path = args.output or os.path.join(scratch, "captions.jsonl")
        return open_caption_file(path, args.num_captions, model, processes, files)
    return CaptionPrinter(args.json, len(files) > 1 or any(map(os.path.isdir, args.inputs)), model)


def _caption(args: argparse.Namespace, model: str, files: list[str], output, broken: set[str], processes) -> None:
    """Caption with one model what is not done yet; images that cannot be read are told once."""
    import os

    mine = processes.share(files)
    remaining = [file for file in mine if os.path.abspath(file) not in output.done and file not in broken]
    num_done = len(mine) - len(remaining) - len(broken)
    num_captioned = _generate(args, model, remaining, output, broken, processes) if remaining else 0
    num_captioned, num_broken, num_done = processes.total(num_captioned, len(broken), num_done)
    several = len(files) > 1 or any(map(os.path.isdir, args.inputs))
    if processes.is_first and (several or args.output or args.report):
        name = f"{model}: " if len(args.model) > 1 else ""
        already = f", {num_done} were captioned before." if num_done else "."
        print(
            f"ofa-hf caption: {name}{num_captioned} of {len(files)} images captioned, {num_broken} not "
            f"readable{already}",
            file=sys.stderr,
        )


def _generate(args: argparse.Namespace, model: str, files: list[str], output, broken: set[str], processes) -> int:
    """Load a model and caption files into `output`, with a progress bar; returns how many."""
    from transformers.utils import logging

    from ofa_hf.prediction.captioning import beam_settings, caption_files, load_captioner

    logging.disable_progress_bar()  # of the weights; the images have their own
    captioner = load_captioner(model, processes.device(args.device), args.dtype)
    options = beam_settings(captioner, args.num_captions, args.num_beams)
    options |= {"prompt": args.prompt, "return_scores": bool(args.json or args.output)}
    if args.max_length is not None:
        options["max_length"] = args.max_length
    num_captioned = 0
    with _progress(args, len(files) if processes.is_first else 0) as bar:

        def skip(file: str, error: Exception) -> None:
            broken.add(file)
            bar.write(f"ofa-hf caption: skipped: {error}", file=sys.stderr)
            bar.update()

        for file, captions in caption_files(captioner, files, batch_size=args.batch_size, on_failure=skip, **options):
            output.write(file, captions)
            num_captioned += 1
            bar.update()
    return num_captioned


def _progress(args: argparse.Namespace, num_files: int):
    from tqdm import tqdm

    on_screen = not (args.output or args.report) and sys.stdout.isatty()  # captions on the screen show the progress
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(
        total=num_files, unit="image", file=sys.stderr, disable=num_files < 2 or on_screen, mininterval=interval
    )


def _write(report, args: argparse.Namespace, files: list[str], captions: dict) -> None:
    """Write the pages, and print the first one's name."""
    from ofa_hf.evaluation.evaluate import package_versions

    own = "each model's own"
    asked = {"models": list(captions), "prompt": args.prompt or own, "beams": args.num_beams or own}
    asked |= {"tokens at most": args.max_length or own, "captions per image": args.num_captions}
    with _progress(args, len(files)) as bar:
        report.write(files, captions, {**asked, **package_versions()}, bar.update)
    print(report.path)
