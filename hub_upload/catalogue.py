"""The models this project stands for: what `ofa_hf/conversion/catalogue.json` says, as a list and as a table."""

from dataclasses import asdict

from ofa_hf.catalogue.published import CATALOGUE


COLUMNS = "{:28} {:6} {:8} {:>5}  {:9} {}"


def catalogue() -> list[dict]:
    """Every fact about every entry; a licence of None was never stated."""
    return [asdict(entry) for entry in CATALOGUE.values()]


def catalogue_lines() -> list[str]:
    """A line a model: name, size, task, pixels, licence, published scores."""
    heads = COLUMNS.format("name", "size", "task", "px", "licence", "published scores (by their authors)")
    return [heads] + [
        COLUMNS.format(
            entry.name,
            entry.size,
            entry.task,
            entry.defaults.image_size,
            entry.licence or "unknown",
            "; ".join(f"{row['data']} {scores_line(row['values'])}" for row in entry.scores) or "none",
        ).rstrip()
        for entry in CATALOGUE.values()
    ]


def scores_line(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
