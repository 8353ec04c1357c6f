"""Options of every command that reads a table, for what cannot be detected from the file."""

import argparse


OPTIONS = {
    "encoding": "encoding of a text table, such as gb18030 (default: detected)",
    "separator": "character between the cells of a table, or tab, semicolon, … (default: detected)",
    "image_column": "column that names the images (default: one with a usual name, such as image, file or 图片)",
    "caption_column": "column of captions or other targets (default: one with a usual name, such as caption or 标题)",
    "id_column": "column of row ids; rows with the same id are joined (default: rows of the same image are)",
    "cache_dir": "folder for prepared, downloaded and unpacked data (default: the cache of datasets)",
}


def add_table_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """Add the options, each with underscores, as `ofa-hf finetune` writes them, and with dashes.

    Args:
        without: options to leave out because the command uses their names otherwise.
    """
    group = parser.add_argument_group("tables")
    for name, text in OPTIONS.items():
        if name not in without:
            names = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
            group.add_argument(*names, dest=name, metavar="FOLDER" if name == "cache_dir" else "NAME", help=text)


def reading_of(args: argparse.Namespace) -> dict[str, str | None]:
    """What the options say about the text of a table."""
    return {"encoding": args.encoding, "separator": args.separator}


def table_form(args: argparse.Namespace):
    """The options as a `TableForm`."""
    from ofa_hf.data.sources import TableForm

    return TableForm(**{name: getattr(args, name, None) for name in OPTIONS})
