"""`ofa-hf demo`: everything once, on a shop that the demo draws itself."""

import argparse
import json
import sys


HELP = "convert, finetune, score and caption once, on an embedded shop, in about five minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder for data, model and report; an earlier demo is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of drawing and training (default: 0)")
    parser.add_argument("--json", action="store_true", help="end with the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    from ofa_hf.demo.journey import run_demo

    result = run_demo(args.out, seed=args.seed, tell=lambda line: print(line, file=sys.stderr, flush=True))
    values = result.as_dict()
    print(f"{values['caption_accuracy']:.1%} of unseen pictures get kind and colour right.")
    print(
        f"CIDEr-D {values['cider_d']:.1f} (before finetuning {values['before']['cider_d']:.1f}), "
        f"BLEU-4 {values['bleu_4']:.1f}, ROUGE-L {values['rouge_l']:.1f}"
    )
    print(f"Model:  {values['model']}\nReport: {values['report']}")
    if args.json:
        print(json.dumps(values, ensure_ascii=False))
    return 0
