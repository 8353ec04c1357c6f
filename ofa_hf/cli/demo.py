"""`ofa-hf demo`: everything once, on a shop that the demo draws itself; `--web`: a page to try models on."""

import argparse
import json
import sys


HELP = "Convert, finetune, score and caption on drawn products, in about five minutes. --web serves a page instead."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        default="outputs/demo",
        help="folder for data, model and report; an earlier demo is replaced (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of drawing and training (default: 0)")
    parser.add_argument(
        "--compare-freeze",
        action="store_true",
        help="train twice more, with the word embedding trained and locked, and compare loss, time and memory",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="also train a model that draws products from their captions; takes about twenty minutes more",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object at the end")
    web = parser.add_argument_group("the page, instead of the demo")
    web.add_argument("--web", action="store_true", help="serve a page for every task of a model, until Ctrl-C")
    web.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DIR_OR_ID",
        help="model to serve; may be repeated to offer a choice (default: the one that a demo left in OUT)",
    )
    web.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for other machines too (default: %(default)s)",
    )
    web.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> int:
    return serve_page(args) if args.web else run_journey(args)


def serve_page(args: argparse.Namespace) -> int:
    from ofa_hf.serving.serve import models_to_serve, serve

    def tell(address: str) -> None:
        print(f"Page     {address}", flush=True)
        print("Press Ctrl-C to stop.", file=sys.stderr, flush=True)

    serve(models_to_serve(args.out, args.model), host=args.host, port=args.port, on_ready=tell)
    return 0


def run_journey(args: argparse.Namespace) -> int:
    from ofa_hf.demo.journey import run_demo

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    options = {"seed": args.seed, "with_comparison": args.compare_freeze, "with_drawing": args.draw}
    result = run_demo(args.out, **options, tell=tell)
    values, before = result.as_dict(), result.before.scores
    print(f"{values['caption_accuracy']:.1%} of captions of unseen images name the right kind and color.")
    for name, title in result.after.metric.titles.items():
        print(f"{title:8} {values[name]:6.1f}   before finetuning {before[name]:6.1f}")
    for label, run in values["compare_freeze"].items():
        print(f"{label}: loss {run['loss']:.3f} after {run['seconds']:.0f} s, peak memory {run['peak_mib']:,} MiB")
    if drawn := values.get("drawing"):
        print(
            f"Of {drawn['drawn']} drawings of unseen products, {drawn['colour_right']} have the right colour and "
            f"{drawn['named_right']} are named rightly; of real images {drawn['real_colour_right']} and "
            f"{drawn['real_named_right']}."
        )
    print(f"Model    {values['model']}\nReport   {values['report']}")
    if args.json:
        print(json.dumps(values, ensure_ascii=False))
    return 0
