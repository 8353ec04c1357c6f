"""Columns of a table as tasks: each column is a question with its name, answered from a list or freely."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from ofa_hf.errors import UserError
from ofa_hf.processing_ofa import OFAProcessor
from ofa_hf.tasks_ofa import TASKS


PROMPTS = {"zh": "这件商品的{}是什么?", "en": " what is the {} of the product?"}
MAX_CHOICES = 200  # values of a closed list
MIN_REPEATS = 2  # average number of occurrences of a value of a closed list


def column_task(column: str, language: str, choices: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings of the task that asks for the value of a column.

    Args:
        column: its name, which is part of the question.
        choices: the values of a closed list → their usual spelling; None if any text is possible.

    Raises:
        UserError: the name is that of a built-in task.
    """
    if column in TASKS:
        raise UserError(
            f"The column {column} has the name of the task {column}, which has a question of its own. Rename the "
            f"column, or train the task with --task {column}."
        )
    prompt = PROMPTS[language].format(column.replace("{", "(").replace("}", ")"))
    if choices is None:
        return {"prompt": prompt, "answer": "text", "metric": "ocr"}
    others = {value: usual for value, usual in choices.items() if value != usual}
    values = list(dict.fromkeys(choices.values()))
    return {"prompt": prompt, "answer": "choice", "choices": values, "labels": others, "metric": "accuracy"}


def values_of(rows: Dataset, columns: Sequence[str]) -> dict[str, Counter]:
    """Counts of the values of each column. The images are not read."""
    found = {column: Counter() for column in columns}
    for row in rows.select_columns(["tasks", "targets"]):
        for column, value in zip(row["tasks"], row["targets"]):
            found[column][value] += 1
    return found


def closed_list(processor: OFAProcessor, values: Counter) -> dict[str, str]:
    """The values of a column → their most frequent spelling among those that the model tokenizes alike.

    Raises:
        ValueError: a value is not in the vocabulary.
    """
    usual: dict[tuple[int, ...], str] = {}
    choices = {}
    for value, _ in values.most_common():
        (ids,) = processor.encode_choices([value])
        choices[value] = usual.setdefault(tuple(ids), value)
    return choices


def looks_closed(values: Counter) -> bool:
    """Whether a column has few values that occur repeatedly."""
    return 1 < len(values) <= MAX_CHOICES and values.total() >= MIN_REPEATS * len(values)


def column_tasks(
    processor: OFAProcessor,
    columns: Sequence[str],
    closed: Sequence[str] | None,
    train_rows: Dataset,
    others: Iterable[Dataset] = (),
) -> dict[str, dict[str, Any]]:
    """Settings of the task of each column.

    Args:
        closed: the columns with a closed list; None: detected from the training data.
        others: other rows whose values belong to the lists.

    Raises:
        UserError: a column of `closed` has a value that is not in the vocabulary.
    """
    values, tasks = values_of(train_rows, columns), {}
    for rows in others:
        for column, counts in values_of(rows, columns).items():
            values[column].update({value: 0 for value in counts if value not in values[column]})
    for column in columns:
        choices = None
        if column in closed if closed is not None else looks_closed(+values[column]):
            try:
                choices = closed_list(processor, values[column])
            except ValueError as error:
                if closed is not None:
                    raise UserError(f"The column {column} cannot be a closed list: {error}") from error
        tasks[column] = column_task(column, processor.language, choices)
    return tasks


def describe_columns(tasks: Mapping[str, Mapping[str, Any]], rows: Dataset) -> dict[str, str]:
    """The kind of values in each column, for the summary of a run."""
    lines, values = {}, values_of(rows, list(tasks))
    for column, settings in tasks.items():
        empty = len(rows) - values[column].total()
        kind = f"one of {len(settings['choices']):,} values" if settings["answer"] == "choice" else "free text"
        lines[column] = f"{kind}" + (f", {empty:,} of {len(rows):,} cells are empty" if empty else "")
    return lines
