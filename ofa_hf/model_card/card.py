"""The model card of a folder, made from its own files: it shows a score only if a result file backs it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import GenerationConfig

from ofa_hf.errors import UserError
from ofa_hf.evaluation import METRICS
from ofa_hf.files import write_text
from ofa_hf.model_card.facts import (
    ACCOUNT_FILE,
    CARD_FILE,
    EVALUATION_FILE,
    RESULTS_FILE,
    FolderFacts,
    is_path,
    last_name,
    read_folder,
    without_paths,
)
from ofa_hf.model_card.snippets import snippet
from ofa_hf.tasks_ofa import Task, checkpoint_task


TEMPLATE = Path(__file__).with_name("template.md")
MARKER = "<!-- Written by ofa_hf from the files next to it. Delete this line to keep the card as you change it. -->"
OLD_MARKER = "<!-- Written by ofa_hf from the files beside it."  # of cards written by earlier versions
UNPUBLISHED = "PATH_OR_ID"  # stands for the model until it has a repository
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LANGUAGES = {"zh": "Chinese", "en": "English"}
SUBTITLES = {  # kind of answer → a summary in Chinese
    "text": "看图回答：输入图片和问题，输出中文。",
    "boxes": "图文定位：输入图片和短语，输出短语所指物体的框。",
    "choice": "看图选择：输入图片和候选答案，按概率排序。",
    "image": "看文画图：输入文字，输出图片。",
}
ANSWER_NOTES = {
    "text": "It gives short answers, in {language} only.",
    "boxes": "It returns a box for every phrase, even for things that are not in the image: look at the score.",
    "choice": "It always chooses one of the given answers, even if none of them is right: look at the score.",
    "image": "It draws from texts in {language} only, and draws any text: review images before you share them.",
}
SCORES_NOTE = {"caption": "Scores are percentages over characters; a run of Latin letters or digits is one token."}

# Arguments of a run that are not shown, and those shown only if another argument is set.
SILENT_ARGUMENTS = {"model_name_or_path", "num_proc", "strict", "image_column", "target_column", "id_column"}
SILENT_ARGUMENTS |= {"encoding", "separator", "cache_dir"}
DEPENDENT_ARGUMENTS = {"lora_alpha": "lora_rank", "merge_lora": "lora_rank"}
DEPENDENT_ARGUMENTS |= {"dataset_split": "dataset_name", "eval_split": "dataset_name"}
SILENT_GENERATION = {"transformers_version", "use_cache"}
OWN_GENERATION = {"end_at_max_length"}  # settings of OFA's generation that transformers does not know


def write_card(folder: str | Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Write the card of a folder into it, unless its owner has edited the card that is there.

    Raises:
        UserError: a file of the folder is missing, or the owner's card has broken metadata.
    """
    path = Path(folder) / CARD_FILE
    write_text(path, current_card(folder, repo_id, license))
    return path


def current_card(folder: str | Path, repo_id: str | None = None, license: str | None = None) -> str:
    """The card to publish: the owner's own if there is one, else a new one."""
    path = Path(folder) / CARD_FILE
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be read: {error}. A card is UTF-8 text; fix the file, or delete it to get a new card."
            ) from error
        check_metadata(text, path)
        if MARKER not in text and OLD_MARKER not in text and not written_by_trainer(text):
            return text
    return model_card(read_folder(folder), repo_id, license)


def written_by_trainer(text: str) -> bool:
    """Whether a card is the generated one that transformers' Trainer leaves."""
    return "generated_from_trainer" in text and "This model card has been generated automatically" in text


def check_metadata(text: str, path: Path) -> None:
    """Raises `UserError` if the block of metadata at the head of a card cannot be read."""
    advice = "It begins with a block of YAML between two lines `---`. Fix it, or delete the file to get a new card."
    if text.lstrip("\ufeff").startswith("---") and not re.match(r"\ufeff?---\s*\n.*?\n---\s*(\n|$)", text, re.DOTALL):
        raise UserError(f"{path} has broken metadata: the block that opens with --- is never closed. {advice}")
    try:
        ModelCard(text)
    except Exception as error:  # of the YAML reader or of the Hub's library
        raise UserError(f"{path} has broken metadata: {' '.join(str(error).split())[:300]}. {advice}") from error


def model_card(facts: FolderFacts, repo_id: str | None = None, license: str | None = None) -> str:
    """The card of a folder.

    Args:
        repo_id: where it will be published; None: nowhere yet, and the snippet says so.
        license: of the weights, a name of the Hub's list; None: what the account of the conversion says, else unknown.
    """
    try:
        published = facts.conversion.get("published", {})
        return compose(facts, repo_id, license or published.get("license") or published.get("licence"))  # old accounts
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"No card can be made from {facts.folder}: {ACCOUNT_FILE} or {RESULTS_FILE} is not what this package "
            f"writes ({type(error).__name__}: {error}). Convert or finetune again, or take the file out."
        ) from error


def compose(facts: FolderFacts, repo_id: str | None, license: str | None) -> str:
    scores = measured_scores(facts)
    card = ModelCard.from_template(
        metadata(facts, repo_id, license, scores),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        marker=MARKER,
        **introduction(facts, repo_id),
        **settings(facts),
        training=training_table(facts),
        has_curve=facts.has_curve,
        **origin(facts),
        results=results_table(facts, scores),
        results_note=results_note(facts, scores),
        is_shop_data=is_shop_data(trained_on(facts)),
        license=license and one_line(license),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).strip() + "\n"


def metadata(facts: FolderFacts, repo_id: str | None, license: str | None, scores: list["Measured"]) -> ModelCardData:
    """The block that the Hub reads."""
    base = facts.finetuning.get("base_model")
    return ModelCardData(
        language=facts.language,
        license=license or "unknown",
        library_name="transformers",
        pipeline_tag=facts.task.pipeline,
        tags=["ofa", *sorted(facts.tasks)],
        base_model=base if base and HUB_ID.fullmatch(base) and not is_path(base) else None,
        model_name=title_of(facts, repo_id) if scores else None,
        eval_results=eval_results(facts, scores) or None,
    )


def title_of(facts: FolderFacts, repo_id: str | None) -> str:
    if repo_id:
        return repo_id.rpartition("/")[2]
    source = facts.conversion.get("source", {}).get("name", "")
    return one_line(last_name(source).removesuffix(".pt")) if source else facts.folder.resolve().name


def introduction(facts: FolderFacts, repo_id: str | None) -> dict[str, Any]:
    model, task = facts.conversion.get("model"), facts.task
    return {
        "title": title_of(facts, repo_id),
        "tasks_table": tasks_table(facts),
        "subtitle": SUBTITLES[task.answer] if facts.language == "zh" and task.needs_image else "",
        "language_name": LANGUAGES[facts.language],
        "size": f": {model['size']} size, {model['parameters'] / 1e6:.0f} million parameters" if model else "",
        "snippet": snippet(task, facts.language, repo_id or UNPUBLISHED),
        "answer_note": ANSWER_NOTES[task.answer].format(language=LANGUAGES[facts.language]),
    }


def tasks_table(facts: FolderFacts) -> str:
    """What the model can be asked: a row per task, the default one first."""
    names = dict.fromkeys([facts.task.name, *facts.tasks])
    tasks = [checkpoint_task(name, facts.tasks[name], facts.language) for name in names]
    rows = [
        (f"`{task.name}`", f"`{one_line(task.prompts[facts.language])}`", f"`{task.pipeline}`", metric_title(task))
        for task in tasks
    ]
    return table(rows, ("Task", "Prompt", "Pipeline", "Scored by"))


def metric_title(task: Task) -> str:
    """Title of the task's score, or the metric's name if it is unknown here."""
    metric = METRICS.get(task.metric)
    return metric.titles[metric.best] if metric else one_line(task.metric or "none")


def settings(facts: FolderFacts) -> dict[str, Any]:
    known = vars(GenerationConfig()).keys() | OWN_GENERATION  # nothing else that a training run may have left there
    generation = {
        name: value
        for name, value in facts.generation.items()
        if value is not None and name in known - SILENT_GENERATION and not name.startswith(("_", "output_"))
    }
    return {
        "prompt": one_line(facts.task.prompts[facts.language]),
        "draws": facts.task.answer == "image",
        "fit": facts.task.image.get("fit", "stretch"),
        "image_size": facts.task.image.get("size", facts.image_size),
        "dtype": facts.config.get("dtype") or facts.config.get("torch_dtype"),
        "generation": json.dumps(generation, ensure_ascii=False),
    }


# ----------------------------------------------------------------------------------------------- origin


def origin(facts: FolderFacts) -> dict[str, Any]:
    """What was converted and how that was verified; for a finetuned folder, what became of its base model."""
    account = facts.conversion
    if not account:
        return {}
    source, weights = account["source"], account["weights"]["counts"]
    url = f" ({source['url']})" if source.get("url") else ""
    digest = f"sha256 `{source['sha256']}`{identity(source)}"
    return {
        "source": f"{source['kind']} `{one_line(source['name'])}`{url}, {source['bytes']:,} bytes, {digest}",
        "source_task": account["checkpoint"]["task"] + described(trained_on(facts)),
        "source_versions": versions_line(account.get("versions", {})),
        "weight_counts": ", ".join(f"{number} {word}" for word, number in weights.items() if number),
        "verification": account.get("proof"),
        "vqgan": account.get("vqgan"),
    }


def identity(source: Mapping[str, Any]) -> str:
    """How a published checkpoint was recognized: by its name, since no digests were published."""
    name = source.get("published_as")
    return f"; by its name the published `{one_line(name)}`, which has no known digest to compare with" if name else ""


def described(data: str) -> str:
    return f"; trained on {one_line(data)}" if data else ""


def trained_on(facts: FolderFacts) -> str:
    """The data, in the words of the catalogue or of a run."""
    base, own = (facts.conversion.get("published") or {}).get("trained_on", ""), data_arguments(facts)
    names = ["train_caption_file", "dataset_name", *(["test_caption_file"] if own.get("merge_test") else [])]
    return "; ".join(filter(None, [base, *(own.get(name) for name in names)]))


def is_shop_data(data: str) -> bool:
    return "MUGE" in data or "IC_train" in data  # the latter is the name of MUGE's file


def data_arguments(facts: FolderFacts) -> dict[str, Any]:
    names = ("train_caption_file", "test_caption_file", "dataset_name", "merge_test")
    arguments = without_paths(facts.finetuning.get("arguments", {}))
    return {name: last_name(str(arguments[name])) for name in names if arguments.get(name)}


def training_table(facts: FolderFacts) -> str:
    """What a finetuning run did; empty for a folder that was not finetuned here."""
    results = without_paths(facts.finetuning)
    if not results:
        return ""
    arguments = {**results.get("arguments", {}), **results.get("trainer_arguments", {})}
    rows = [("Base model", base_line(results)), ("Steps", results.get("steps"))]
    rows += [(f"Data: {name}", text) for name, text in results.get("data", {}).items()]
    rows += sorted((f"`{name}`", value) for name, value in arguments.items() if worth_reporting(name, arguments))
    rows += [("Training loss, mean", as_number(results.get("metrics", {}).get("train_loss")))]
    rows += [("Versions", versions_line(results.get("versions", {})))]
    return table(rows)


def worth_reporting(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an argument says something: switches that are off and rates of zero do not."""
    if name in SILENT_ARGUMENTS or not arguments.get(DEPENDENT_ARGUMENTS.get(name, name)):
        return False
    return arguments[name] not in (None, False, 0, 0.0, "")


def base_line(results: Mapping[str, Any]) -> str:
    """The base model, and what it was made from if the run recorded it."""
    base, source = results.get("base_model") or "not recorded", results.get("base_source")
    is_named = bool(HUB_ID.fullmatch(base))
    name = f"[{base}](https://huggingface.co/{base})" if is_named else f"`{one_line(base)}`, a local folder"
    return f"{name}, made from `{one_line(source['name'])}`, sha256 `{source['sha256']}`" if source else name


def versions_line(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# ---------------------------------------------------------------------------------------------- results


class Measured(NamedTuple):
    """Scores that a file of the folder backs."""

    data: str
    file: str
    scores: dict[str, float]


def titles_of(facts: FolderFacts) -> dict[str, str]:
    """Scores of the default task, and of a model of several tasks those of each, which begin with its name."""
    metric = METRICS.get(facts.task.metric)
    titles = dict(metric.titles) if metric else {}
    for name, settings in facts.tasks.items() if len(facts.tasks) > 1 else ():
        metric = METRICS.get(checkpoint_task(name, settings, facts.language).metric)
        own = metric.titles if metric else {}
        titles |= {f"{name}_{score}": f"{name} {title}" for score, title in own.items()}
    return titles


def measured_scores(facts: FolderFacts) -> list[Measured]:
    found, metrics = [], facts.finetuning.get("metrics", {})
    titles = titles_of(facts)
    values = {name: metrics[f"eval_{name}"] for name in titles if is_number(metrics.get(f"eval_{name}"))}
    if values:
        data, arguments = data_arguments(facts), facts.finetuning.get("arguments", {})
        name = data.get("test_caption_file") or f"{data.get('dataset_name')} {arguments.get('eval_split', '')}".strip()
        limit = arguments.get("eval_rows") or arguments.get("eval_images")  # the latter in older folders
        found.append(Measured(f"{name}, at most {limit:,} images" if limit else name, RESULTS_FILE, values))
    scores = facts.evaluation.get("scores", {})
    values = {name: scores[name] for name in titles if is_number(scores.get(name))}
    if values:
        run = without_paths(facts.evaluation.get("run", {}))
        images = f", {scores['num_images']:,} images" if scores.get("num_images") else ""
        found.append(
            Measured(f"{last_name(str(run.get('captions', 'unnamed data')))}{images}", EVALUATION_FILE, values)
        )
    return found


def eval_results(facts: FolderFacts, measured: list[Measured]) -> list[EvalResult]:
    """The same for the Hub's own display."""
    titles = titles_of(facts)
    return [
        EvalResult(
            task_type=facts.task.pipeline,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.partition(",")[0].lower()).strip("-") or "own-data",
            dataset_name=data,
            metric_type=name.partition("_")[0],  # cider, bleu, rouge: the Hub's names
            metric_name=titles[name],
            metric_value=round(value, 4),
        )
        for data, _, scores in measured
        for name, value in scores.items()
    ]


def results_table(facts: FolderFacts, measured: list[Measured]) -> str:
    """Measured scores with their file, published ones with their page; empty if there are none."""
    titles = titles_of(facts)
    rows = [
        (data, ", ".join(f"{titles[name]} {value:.2f}" for name, value in scores.items()), f"measured, `{file}`")
        for data, file, scores in measured
    ]
    published = (facts.conversion.get("published") or {}).get("scores", [])
    rows += [] if facts.finetuning else [published_row(row) for row in published]
    return table(rows, ("Data", "Scores", "Source")) if rows else ""


def results_note(facts: FolderFacts, measured: list[Measured]) -> str:
    where = "Not measured on other data." if measured else "Not measured here: these are the authors' scores."
    return f"{where} {SCORES_NOTE.get(facts.task.metric, '')}".strip()


def published_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    values = ", ".join(f"{name} {value:.2f}" for name, value in row["values"].items())
    note = f"; {row['note']}" if row.get("note") else ""
    return row["data"], values, f"[published]({row['source']}){note}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def as_number(value: Any) -> str | None:
    return f"{value:.4g}" if is_number(value) else None


def table(rows: Iterable[tuple], heads: tuple[str, ...] = ("What", "Value")) -> str:
    """A Markdown table; rows without a value are left out."""
    lines = [heads, ("---",) * len(heads), *(row for row in rows if row[1] not in (None, ""))]
    cells = ([" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def one_line(text: str) -> str:
    """Text from outside as part of a line of Markdown; a backtick would end the code around it."""
    return " ".join(str(text).split()).replace("`", "'")
