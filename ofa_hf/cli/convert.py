"""`ofa-hf convert`: converts an official or legacy checkpoint to a Hub-ready folder."""

import argparse

from ofa_hf.cli.answering import positive


HELP = "Convert an official .pt file, a legacy folder or a published checkpoint to a verified Hub-ready folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="official .pt file, legacy folder (pytorch_model.bin), published name (caption_cn_base), Hub id, "
        "or the published .zip of a model that draws",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--vocab",
        metavar="PATH",
        help="Chinese: BERT's vocab.txt. English: the folder with encoder.json, vocab.bpe and dict.txt, or with "
        "vocab.json and merges.txt (default: that of the source, otherwise downloaded)",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="task the checkpoint was trained for, such as vqa (default: read from its settings)",
    )
    parser.add_argument("--prompt", help="question to ask about an image (default: that of the checkpoint)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images the model reads")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="number of beams")
    parser.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="maximum length of an answer, with start and end token"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the weights (default: as in the source)",
    )
    parser.add_argument("--vqgan", metavar="CKPT", help="last.ckpt of the VQGAN, for a model that draws")
    parser.add_argument("--vqgan-config", metavar="YAML", help="model.yaml of the VQGAN")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion at OUT")
    parser.add_argument("--no-verify", action="store_true", help="skip the verification in a fresh process")
    parser.add_argument("--json", action="store_true", help="print the full report as one JSON object")


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from ofa_hf.conversion.convert import convert

    generation = {"num_beams": args.num_beams, "max_length": args.max_length}
    account = convert(
        args.checkpoint,
        args.out,
        args.vocab,
        dtype=args.dtype,
        task=args.task,
        prompt=args.prompt,
        image_size=args.image_size,
        generation={name: value for name, value in generation.items() if value is not None},
        overwrite=args.overwrite,
        verify=not args.no_verify,
        vqgan=args.vqgan,
        vqgan_config=args.vqgan_config,
        progress=lambda step: print(step, file=sys.stderr),
    )
    print(json.dumps(account.values, ensure_ascii=False) if args.json else "\n".join(account.lines()))
    return 0
