"""`ofa-hf review CAPTIONS IMAGES`: accept, edit or reject captions on a page in the browser of this machine."""

import argparse
import sys

from ofa_hf.cli.table_options import add_table_options, table_form


HELP = "Accept, edit or reject captions in the browser, with the keyboard. Writes a CSV for finetune."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "table of captions, such as the output of ofa-hf caption"
    parser.add_argument("captions", metavar="CAPTIONS", help=text)
    parser.add_argument("images", metavar="IMAGES", help="folder, .zip or .tar of the images that it names")
    text = "CSV of the accepted captions, saved as you go (default: CAPTIONS with .reviewed.csv)"
    parser.add_argument("--output", metavar="FILE", help=text)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port of the page (default: a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_table_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from ofa_hf.checking.review import Review
    from ofa_hf.data.build import cache_root
    from ofa_hf.images.packed import unpacked
    from ofa_hf.serving.review import ReviewServer
    from ofa_hf.tables.problems import counted

    images = unpacked(args.images, cache_root(args.cache_dir))
    review = Review(args.captions, images, args.output, table_form(args))
    for note in review.notes:
        print(f"ofa-hf review: {note}", file=sys.stderr)
    if review.problems:
        print(f"ofa-hf review: left out: {counted(review.problems)}.", file=sys.stderr)
    with ReviewServer(review, args.port) as server:
        print(server.address, flush=True)
        print(
            "ofa-hf review: open this address in your browser and press Ctrl-C to stop; decisions are saved at once.",
            file=sys.stderr,
        )
        if args.open:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            state = review.state(0)
            counts = ", ".join(f"{state[name]:,} {name}" for name in ("accepted", "rejected", "open"))
            print(f"ofa-hf review: {counts}. {review.output}", file=sys.stderr)
    return 0
