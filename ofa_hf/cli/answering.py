"""What `caption`, `ground`, `ocr`, `vqa`, `classify` and `summarize` share: their arguments and how they run."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ofa_hf.cli.table_options import add_table_options, reading_of
from ofa_hf.files import refuse_unwritable


MODELS = "folder of a converted model, or Hub id; may be repeated, and each line then names its model"
REPORT = (
    "write a page with a row per image or question and a column per model: .html (self-contained, with a Markdown "
    "copy next to it) or .md (Markdown only); 200 rows per page"
)
SEVERAL_PROCESSES = """\
Several GPUs or processes: torchrun --nproc_per_node 2 -m ofa_hf {name} photos/ --model … --output {plural}.jsonl.
Each process takes a share and writes {plural}.part-0.jsonl, …, merged into {plural}.jsonl at the end. If one is
killed, all stop; run the same command again, with or without torchrun, to complete the job. With --engine ray the
model is loaded once per GPU (or core), a worker that dies is replaced, and the same command completes a killed job."""
RAY = "run on Ray Data workers, on this machine or in the cluster at RAY_ADDRESS; needs `pip install 'ofa-hf[ray]'`"
IMAGES = "images, folders (searched with their subfolders), and tables (CSV, JSONL, Excel, parquet) that name images"
TEXTS = "texts, files with one text per line, tables (CSV, JSONL, Excel, parquet), or - for the lines of stdin"
DTYPES = "precision to compute in (default: that of the stored weights)"


@dataclass(frozen=True)
class Command:
    """A command that asks a model: its task, and what it calls the answers.

    Args:
        task: the task unless --task names another.
        answer, plural: what one answer, and several, are called in the output.
        field, field_option: the field of the prompt that has an option of its own, and that option.
        choices_option: the option that takes the answers to choose from.
        has_images: the inputs are images; otherwise texts.
        as_probabilities: scores are probabilities between 0 and 1; otherwise mean log-probabilities.
    """

    name: str
    task: str
    answer: str
    plural: str
    field: str = ""
    field_option: str = ""
    choices_option: str = ""
    has_images: bool = True
    as_probabilities: bool = True

    @property
    def ask_with(self) -> dict[str, str]:
        """Field → its option, for messages."""
        return {self.field: self.field_option} if self.field_option else {}


def add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add the shared arguments. The module of the command adds its own."""
    parser.epilog = SEVERAL_PROCESSES.format(name=command.name, plural=command.plural)
    what = "IMAGE_FOLDER_OR_TABLE" if command.has_images else "TEXT_OR_TABLE"
    parser.add_argument("inputs", nargs="+", metavar=what, help=IMAGES if command.has_images else TEXTS)
    parser.add_argument("--model", required=True, action="append", metavar="DIR_OR_ID", help=MODELS)
    if command.field_option:
        text = f"{command.field} to ask about every image; may be repeated (default: the column of a table)"
        parser.add_argument(command.field_option, dest="texts", action="append", metavar="TEXT", help=text)
    text = "value of a slot of the prompt, such as hypothesis=一件红色的衣服; may be repeated"
    parser.add_argument("--field", dest="fields", action="append", default=[], metavar="NAME=TEXT", help=text)
    if command.choices_option:
        text = "answers to choose from: a file with one per line, or a comma-separated list; may be repeated"
        parser.add_argument(command.choices_option, dest="choices", action="append", metavar="FILE_OR_LIST", help=text)
    text = f"task of the model (default: {command.task})"
    parser.add_argument("--task", metavar="NAME", help=text)
    text = f"{command.plural} per {'image' if command.has_images else 'text'}, best first (default: 1)"
    names = ["--num-answers"] if command.name != "caption" else ["--num-captions", "--num-answers"]
    parser.add_argument(*names, dest="num_answers", type=positive, default=1, metavar="N", help=text)
    if command.has_images and not command.field:
        text = "question about the image (default: the one the model was trained with)"
        parser.add_argument("--prompt", help=text)
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="B", help="images or texts per batch (default: 8)"
    )
    parser.add_argument("--num-beams", type=positive, metavar="N", help="number of beams (default: the model's)")
    parser.add_argument(
        "--max-length", type=positive, metavar="N", help="maximum tokens of an answer (default: the model's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, with scores")
    parser.add_argument("--output", metavar="FILE", help="write to a .jsonl, .csv or .xlsx file, or resume it")
    parser.add_argument("--report", metavar="FILE", help=REPORT)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help=DTYPES)
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help=f"ray: {RAY}")
    parser.add_argument("--workers", type=positive, metavar="N", help="Ray workers (default: one per GPU or core)")
    if command.has_images:
        text = "folder of the images that a table names (default: the table's own folder)"
        parser.add_argument("--images", metavar="FOLDER", help=text)
        text = "write the answers for each image to a .txt file next to it; skip images that have one"
        parser.add_argument("--txt", action="store_true", help=text)
    text = "with --engine ray and parquet or a saved data set: the column that names a row (image_id, id, file, …)"
    parser.add_argument("--id-column", "--id_column", metavar="NAME", help=text)
    others = () if command.has_images else ("image_column", "cache_dir")
    add_table_options(parser, without=("caption_column", "id_column", *others))
    unset = dict.fromkeys(("images", "texts", "choices", "prompt"))
    unset |= {} if command.has_images else dict.fromkeys(("image_column", "cache_dir"))
    parser.set_defaults(usage_error=parser.error, txt=False, **unset)


def say(command: Command, text: str) -> None:
    print(f"ofa-hf {command.name}: {text}", file=sys.stderr)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def run(args: argparse.Namespace, command: Command, reports: Sequence[object] = (), **more: object) -> int:
    """Answer what can be answered. Returns 1 if anything was left out.

    Args:
        reports: files to make of the answers, besides those that the arguments name.
        more: fields of the request that only this command sets.
    """
    check_usage(args, has_reports=bool(reports))
    request = make_request(args, command, **more)
    if args.engine == "ray":
        return run_on_ray(args, request)
    from ofa_hf.prediction.files import answer_files

    reports = list(reports)
    if args.report:
        refuse_unwritable([args.report])
        from ofa_hf.pages.comparison import ComparisonReport

        reports.append(ComparisonReport(args.report))
    num_failed = answer_files(request, reports)
    if args.report:
        print(reports[-1].path)
    return 1 if num_failed else 0


def make_request(args: argparse.Namespace, command: Command, **more: object):
    """The arguments as the engine takes them."""
    from ofa_hf.prediction.files import Request
    from ofa_hf.prediction.questions import Inputs

    options = {"prompt": args.prompt, "num_beams": args.num_beams, "max_length": args.max_length}
    options["batch_size"] = args.batch_size
    inputs = Inputs(args.inputs, texts_of(args, command), args.images, args.image_column, command.ask_with)
    inputs = replace(inputs, reading=reading_of(args), cache_dir=args.cache_dir)
    settings = {
        "command": command.name,
        "answer": command.answer,
        "inputs": inputs,
        "models": args.model,
        "task": args.task or command.task,
        "choices": args.choices or (),
        "choose_with": command.choices_option,
        "output": args.output,
        "beside": args.txt,
        "as_json": args.json,
        "num_answers": args.num_answers,
        "as_probabilities": command.as_probabilities,
        "device": args.device,
        "dtype": args.dtype,
        "options": options,
    }
    return Request(**settings | more)


def texts_of(args: argparse.Namespace, command: Command) -> dict[str, list[str]]:
    """Field → the texts that the arguments give it."""
    texts: dict[str, list[str]] = {command.field: list(args.texts)} if args.texts else {}
    for given in args.fields:
        name, sign, text = given.partition("=")
        if not sign:
            args.usage_error(f"--field {given} has no =; pass it as NAME=TEXT")
        texts.setdefault(name.strip(), []).append(text)
    return texts


def check_usage(args: argparse.Namespace, has_reports: bool = False) -> None:
    if args.engine == "ray":
        if not args.output or args.txt or args.report or has_reports or args.device or len(args.model) > 1:
            args.usage_error(
                "--engine ray needs --output FILE and one --model, and takes no --device, --txt, --report or drawings"
            )
    elif args.workers or args.id_column:
        args.usage_error("--workers and --id-column are for --engine ray")
    elif args.json and (args.report or has_reports) and not args.output:
        args.usage_error("--json prints answers, but --report puts them on a page; use --output FILE.jsonl instead")


def run_on_ray(args: argparse.Namespace, request) -> int:
    from ofa_hf.prediction.files import with_usable_choices
    from ofa_hf.prediction.ray_data import run_with_ray

    def report_failure(name: str, reason: str) -> None:
        request.say(f"skipped: {reason if name in reason else f'{name}: {reason}'}")

    request = with_usable_choices(request, request.models[0])
    counts = run_with_ray(
        request, args.output, args.inputs, args.workers, args.id_column, report_failure, progress=True
    )
    before = f", {counts.before} done before" if counts.before else ""
    request.say(f"{counts.answered} rows done, {counts.failed} not readable{before}.")
    return 1 if counts.failed else 0
