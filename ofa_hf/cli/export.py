"""`ofa-hf export`: ONNX graphs, or a folder with int8 weights."""

import argparse


HELP = "Export a model to ONNX, with scripts that run without torch, or to int8 weights."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="Hub-ready folder, or Hub id")
    parser.add_argument("out", metavar="OUT", help="folder to write; it must not exist yet")
    parser.add_argument("--format", choices=("onnx", "int8"), required=True, help="format to export to")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="int8: precision of what is not quantized (default: as stored)",
    )
    parser.add_argument(
        "--parts", choices=("all", "decoder"), default="all", help="int8: what to quantize (default: all)"
    )
    parser.add_argument(
        "--images", metavar="FOLDER", help="int8: images on which to compare captions (default: a few drawn ones)"
    )
    parser.add_argument("--json", action="store_true", help="print the full report as one JSON object")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    def progress(step: str) -> None:
        print(step, file=sys.stderr)

    if args.format == "onnx":
        if args.dtype or args.images or args.parts != "all":
            args.usage_error("--dtype, --parts and --images go with --format int8; ONNX graphs are float32")
        from ofa_hf.export.onnx import export_onnx

        export = export_onnx(args.model, args.out, progress)
    else:
        from ofa_hf.export.int8 import export_int8

        export = export_int8(
            args.model, args.out, dtype=args.dtype, parts=args.parts, images=args.images, progress=progress
        )
    print(json.dumps(export.values, ensure_ascii=False) if args.json else "\n".join(export.lines))
    return 0
