"""`ofa-hf caption IMAGE_OR_FOLDER… --model DIR_OR_ID`: captions on stdout, in a file, or as a page."""

import argparse
import sys


HELP = "Caption images: files, or folders with all their subfolders."
MODELS = "folder of a converted model, or Hub id; several run one after another, and each line names its model"
REPORT = (
    "write a table with a row per image and a column per model. page.html: a self-contained page, and the same as "
    "page.md with small images in page_files/; page.md: only Markdown. 200 images per page"
)
SEVERAL_PROCESSES = """\
Several GPUs or processes: torchrun --nproc_per_node 2 -m ofa_hf caption photos/ --model … --output captions.jsonl.
Each process takes a share and writes captions.part-0.jsonl, …, merged into captions.jsonl at the end. If one is
killed, all stop; run the same command again, with or without torchrun, to complete the job. With --engine ray the
model is loaded once per GPU (or core), a worker that dies is replaced, and the same command completes a killed job."""
RAY = "send the images to Ray Data workers, here or in the cluster of RAY_ADDRESS; needs `pip install 'ofa-hf[ray]'`"
TABLES = "with --engine ray, parquet files, folders of them and data sets on disk work too; their "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = SEVERAL_PROCESSES
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files and folders of them")
    parser.add_argument("--model", required=True, action="append", metavar="DIR_OR_ID", help=MODELS)
    parser.add_argument("--num-captions", type=positive, default=1, metavar="N", help="captions per image (1)")
    parser.add_argument("--prompt", help="question about the image (default: the one the model was trained with)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="B", help="images per batch (8)")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="beams (default: the model's)")
    parser.add_argument("--max-length", type=positive, metavar="N", help="tokens at most (default: the model's)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, with scores")
    parser.add_argument("--output", metavar="FILE", help="write a .jsonl or .csv file, or resume one")
    parser.add_argument("--report", metavar="FILE", help=REPORT)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help=f"ray: {RAY}")
    parser.add_argument("--workers", type=positive, metavar="N", help="of Ray (default: one per GPU, or per core)")
    parser.add_argument("--image-column", default="image", metavar="NAME", help=TABLES + "column of images (image)")
    parser.add_argument("--id-column", metavar="NAME", help="the column that names a row (image_id, id, file, …)")
    parser.set_defaults(usage_error=parser.error)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Caption everything that can be read; 1 if anything could not."""
    check_usage(args)
    options = {"prompt": args.prompt, "num_beams": args.num_beams, "max_length": args.max_length}
    options["batch_size"] = args.batch_size
    if args.engine == "ray":
        return run_on_ray(args, options)
    from ofa_hf.pages.comparison import ComparisonReport
    from ofa_hf.prediction.files import Request, answer_files

    report = ComparisonReport(args.report) if args.report else None
    request = Request(
        command="caption",
        answer="caption",
        inputs=args.inputs,
        models=args.model,
        output=args.output,
        as_json=args.json,
        num_answers=args.num_captions,
        device=args.device,
        dtype=args.dtype,
        options=options,
    )
    num_unreadable = answer_files(request, report)
    if report:
        print(report.path)
    return 1 if num_unreadable else 0


def check_usage(args: argparse.Namespace) -> None:
    if args.engine == "ray":
        if not args.output or args.report or args.device or len(args.model) > 1:
            args.usage_error("--engine ray needs --output FILE and one --model, and takes no --report and no --device")
    elif args.workers or args.id_column or args.image_column != "image":
        args.usage_error("--workers, --image-column and --id-column are for --engine ray")
    elif args.json and args.report and not args.output:
        args.usage_error("--json prints captions, but --report puts them on a page; use --output FILE.jsonl instead")


def run_on_ray(args: argparse.Namespace, options: dict) -> int:
    from ofa_hf.prediction.ray_data import predict_with_ray

    def report_failure(name: str, reason: str) -> None:
        print(f"ofa-hf caption: skipped: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)

    counts = predict_with_ray(
        args.inputs,
        args.model[0],
        args.output,
        answer="caption",
        num_answers=args.num_captions,
        workers=args.workers,
        dtype=args.dtype,
        image_column=args.image_column,
        id_column=args.id_column,
        on_failure=report_failure,
        progress=True,
        **options,
    )
    before = f", {counts.before} done before" if counts.before else ""
    print(f"ofa-hf caption: {counts.answered} images done, {counts.failed} not readable{before}.", file=sys.stderr)
    return 1 if counts.failed else 0
