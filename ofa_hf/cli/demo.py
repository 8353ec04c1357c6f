"""`ofa-hf demo`: everything once, on a shop that the demo draws itself."""

import argparse
import json
import sys


HELP = "convert, finetune, score and caption once, on an embedded shop, in about five minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder for data, model and report; an earlier demo is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of drawing and training (default: 0)")
    parser.add_argument(
        "--compare-freeze",
        action="store_true",
        help="train twice more, with the word embedding trained and locked: loss, time and memory of both",
    )
    parser.add_argument("--json", action="store_true", help="end with the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    from ofa_hf.demo.journey import run_demo

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = run_demo(args.out, seed=args.seed, with_comparison=args.compare_freeze, tell=tell)
    values, before = result.as_dict(), result.before.scores
    print(f"{values['caption_accuracy']:.1%} of unseen pictures get kind and colour right.")
    for name, title in (("cider_d", "CIDEr-D"), ("bleu_4", "BLEU-4"), ("rouge_l", "ROUGE-L")):
        print(f"{title:8} {values[name]:6.1f}   before finetuning {getattr(before, name):6.1f}")
    for label, run in values["compare_freeze"].items():
        print(f"{label}: loss {run['loss']:.3f} after {run['seconds']:.0f} s, peak memory {run['peak_mib']:,} MiB")
    print(f"Model    {values['model']}\nReport   {values['report']}")
    if args.json:
        print(json.dumps(values, ensure_ascii=False))
    return 0
