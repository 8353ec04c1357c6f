"""Find the columns of a table with images, targets, ids and the fields of a task."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.tables.column_names import FIELDS, IDS, IMAGES, TARGETS, is_usual_name, matches, plain_name


IMAGE_IDS = frozenset({"imageid", "imgid", "图片id", "图片编号"})  # ids of images rather than rows
OPTIONS = {  # how a column is named, on the command line and in Python
    "image": "--image_column",
    "caption": "--caption_column (target_column in Python)",
    "id": "--id_column",
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns with the parts of a row.

    Without an id column, a row without fields is named after its image (in a data set after its row number), and rows
    of the same image are joined; a row with fields is named after its line.

    Args:
        fields: of the task.
        field_columns: the columns that hold them; those of the same names by default.
        optional: fields that can be empty.
        confidence: column with the confidence of the target.
        usual_target, usual_confidence: names used by default if such columns exist.
    """

    image: str | None = "image"  # None: rows without images
    target: str | None = "caption"  # None: rows without targets
    id: str | None = None
    fields: tuple[str, ...] = ()
    field_columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    confidence: str | None = None
    usual_target: str | None = None
    usual_confidence: str | None = None

    def by_field(self) -> dict[str, str]:
        """Column of each field."""
        return dict(zip(self.fields, self.field_columns or self.fields, strict=True))

    def names(self) -> list[str]:
        return [
            name for name in (self.image, self.target, self.id, self.confidence, *self.by_field().values()) if name
        ]

    def texts(self) -> list[str]:
        """The columns that can be read without the images."""
        return sorted({name for name in self.names() if name != self.image})

    def assumed(self) -> dict[str, str]:
        """Column of each part, for the report."""
        parts = {"image": self.image, "caption": self.target, "id": self.id, **self.by_field()}
        return {part: column for part, column in parts.items() if column}

    def require_in(self, found: Iterable[str], source: str) -> None:
        """Raises `UserError` that names the missing columns."""
        found = list(found)
        missing = [name for name in self.names() if name not in found]
        if missing:
            raise missing_columns(source, missing, found)


def missing_columns(source: str, missing: Sequence[str], found: Iterable[str]) -> UserError:
    found = list(map(str, found))
    has_names = any(map(is_usual_name, found))
    first = "" if has_names else "If these are no names of columns, add a first line that has them. "
    if len(found) == 1 and not has_names:
        first += "If they are several, name the character between them with --separator. "
    return UserError(
        f"{source} has no column {', '.join(missing)}; it has {', '.join(found)[:500] or 'none'}. {first}Name its "
        f"columns with {', '.join(OPTIONS.values())}; a task's field is a column of its own name."
    )


def image_column_of(found: Sequence[str], named: str | None = None) -> str | None:
    """The column that names images: the user's, or one with a common name; None if there is none."""
    if named:
        return named if named in found else None
    return next(iter(matches(found, IMAGES)), None)


def find_columns(
    source: str,
    found: Sequence[str],
    wanted: Columns,
    *,
    has_images: bool = True,
    needs_targets: bool = True,
) -> Columns:
    """Find the columns of a table: those named by the user, otherwise those with common names.

    Args:
        source: name of the table, for messages.
        wanted: names given by the user; None if not given.
        has_images, needs_targets: whether a row must have them.

    Raises:
        UserError: a column is missing, or several have names that usually mean the target.
    """
    usual_target, confidence = (
        name if name in found else None for name in (wanted.usual_target, wanted.usual_confidence)
    )
    wanted = replace(wanted, target=wanted.target or usual_target, confidence=wanted.confidence or confidence)
    taken = {name for name in (wanted.image, wanted.target, wanted.id, wanted.confidence) if name}
    by_field = {}
    for field in wanted.fields:
        named = field if field in found else next(iter(matches(_free(found, taken), FIELDS.get(field, ()))), field)
        by_field[field] = named
        taken.add(named)
    image = None
    if has_images:
        image = wanted.image or next(iter(matches(_free(found, taken), IMAGES)), None)
        taken.add(image)
    target = wanted.target or _target(source, _free(found, taken), taken, needs_targets)
    ids = matches(_free(found, taken | {target}), IDS) if has_images else []
    # A number in a column called id can identify the row; then two captions of one image have two ids. Rows with
    # fields are questions, and an image can have several.
    image_ids = [name for name in ids if plain_name(name) in IMAGE_IDS and not wanted.fields]
    row_id = wanted.id or next(iter(image_ids), None)
    columns = replace(wanted, image=image, target=target, id=row_id, field_columns=tuple(by_field.values()))
    missing = ["image"] * (has_images and image is None) + ["caption"] * (needs_targets and target is None)
    missing += [name for name in columns.names() if name not in found]
    if missing:
        raise missing_columns(source, missing, found)
    return columns


def _free(found: Iterable[str], taken: set) -> list[str]:
    return [name for name in found if name not in taken]


def _target(source: str, found: list[str], taken: set[Any], needs_targets: bool) -> str | None:
    usual = matches(found, TARGETS)
    plain = [name for name in usual if plain_name(name) in ("caption", "captions")]
    if len(usual) > 1 and not plain and needs_targets:
        raise UserError(
            f"{source} has several columns that may hold the captions: {', '.join(usual)}. Name one with "
            f"{OPTIONS['caption']}."
        )
    return (plain or usual or [None])[0]
