"""The model card of a folder, made from its own files: a score stands in it only if a result file backs it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ofa_hf.errors import UserError
from ofa_hf.files import write_text
from ofa_hf.model_card.facts import (
    ACCOUNT_FILE,
    CARD_FILE,
    CURVE_FILE,
    EVALUATION_FILE,
    RESULTS_FILE,
    FolderFacts,
    is_path,
    last_name,
    read_folder,
    without_paths,
)
from ofa_hf.tasks_ofa import default_prompt


MARKER = "<!-- Written by ofa_hf from the files beside it. Delete this line, and the card stays as you change it. -->"
UNPUBLISHED = "PATH_OR_ID"  # stands for the model until it has a repository
METRICS = {"cider_d": ("CIDEr-D", "cider"), "bleu_4": ("BLEU-4", "bleu"), "rouge_l": ("ROUGE-L", "rouge")}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Arguments of a run that say nothing about the model, and those that count only beside another one.
SILENT_ARGUMENTS = {"model_name_or_path", "num_proc", "strict", "image_column", "target_column"}
DEPENDENT_ARGUMENTS = {"lora_alpha": "lora_rank", "merge_lora": "lora_rank"}
DEPENDENT_ARGUMENTS |= {"dataset_split": "dataset_name", "eval_split": "dataset_name"}
SILENT_GENERATION = {"transformers_version", "_from_model_config", "use_cache"}

INTRODUCTION = """# {title}

OFA ([arXiv 2202.03052](https://arxiv.org/abs/2202.03052)) reads an image and writes Chinese about it. This is a
transformers model with code of its own, for transformers 5 and 4.57{size}.

看图说话：输入图片，输出中文描述。

```python
from transformers import pipeline

captioner = pipeline("image-to-text", model="{model}", trust_remote_code=True)
print(captioner("photo.jpg"{prompt})[0]["generated_text"])
```
"""

LIMITS = """## Limits and biases

- It writes Chinese alone, and short texts. {data}
- A caption may name what the image does not show: a material, a season, a use, whom a thing is for. Check captions
  before customers read them. Shop texts repeat habits of who wears or uses what, and a model trained on them does too.
- Images unlike those it was trained on give poor captions. It is not made to recognise persons, and must not be
  used where a wrong description does harm.
- Not measured: robustness, fairness, any language but Chinese.
"""

SHOP_DATA = "MUGE's images show goods on sale, and its captions praise them: expect the style of shop texts."
OTHER_DATA = "Its pretraining data are not known here in full: expect their habits, and those of the data named above."

LICENSE = """## License

The code files are Apache-2.0. {weights}
"""
NO_LICENSE = (
    "Whoever trained the weights named no license for them; the official OFA code is Apache-2.0. Ask before you "
    "redistribute them."
)

PROVEN = (
    "Every weight was accounted for ({counts}) and compared with the written file bit by bit. Loaded through the Auto "
    "classes in a fresh process without the converter (transformers {transformers}), the folder held "
    "{equal_tensors} equal tensors and gave logits of shape {logits_shape} whose largest difference from the source "
    "tensors' own is {max_difference}."
)
NOT_PROVEN = "Every weight was accounted for ({counts}). The final proof in a fresh process was switched off."


def write_card(folder: str | Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Write the card of a folder into it, unless its owner has made the card there his own.

    Raises:
        UserError: the folder misses a file, or a card of the owner's has broken metadata.
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
                f"{path} cannot be read: {error}. A card is UTF-8 text; mend the file, or delete it to get a new card."
            ) from error
        check_metadata(text, path)
        if MARKER not in text and not written_by_trainer(text):
            return text
    return model_card(read_folder(folder), repo_id, license)


def written_by_trainer(text: str) -> bool:
    """Whether a card is the one transformers' Trainer leaves, which nobody wrote."""
    return "generated_from_trainer" in text and "This model card has been generated automatically" in text


def check_metadata(text: str, path: Path) -> None:
    """Raises `UserError` if the block of metadata at the head of a card cannot be read."""
    advice = "It begins with a block of YAML between two lines `---`. Mend it, or delete the file to get a new card."
    if text.lstrip("\ufeff").startswith("---") and not re.match(r"\ufeff?---\s*\n.*?\n---\s*(\n|$)", text, re.DOTALL):
        raise UserError(f"{path} has broken metadata: the block that opens with --- is never closed. {advice}")
    try:
        ModelCard(text)
    except Exception as error:  # of the YAML reader or of the Hub's library
        raise UserError(f"{path} has broken metadata: {' '.join(str(error).split())[:300]}. {advice}") from error


def model_card(facts: FolderFacts, repo_id: str | None = None, license: str | None = None) -> str:
    """The card of a folder.

    Args:
        repo_id: where it will stand; None: nowhere yet, and the snippet says so.
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
    sections = [
        f"---\n{metadata(facts, repo_id, license)}\n---",
        MARKER,
        introduction(facts, repo_id),
        settings_section(facts),
        training_section(facts),
        conversion_section(facts),
        results_section(facts),
        LIMITS.format(data=SHOP_DATA if is_shop_data(trained_on(facts)) else OTHER_DATA),
        LICENSE.format(weights=f"The weights: {one_line(license)}." if license else NO_LICENSE),
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def metadata(facts: FolderFacts, repo_id: str | None, license: str | None) -> str:
    """The block that the Hub reads, as YAML."""
    base = facts.finetuning.get("base_model")
    results = measured_results(facts)
    card = ModelCardData(
        language="zh",
        license=license or "unknown",
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["ofa", "image-captioning", "chinese"],
        base_model=base if base and HUB_ID.fullmatch(base) and not is_path(base) else None,
        model_name=title_of(facts, repo_id) if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def title_of(facts: FolderFacts, repo_id: str | None) -> str:
    if repo_id:
        return repo_id.rpartition("/")[2]
    source = facts.conversion.get("source", {}).get("name", "")
    return one_line(last_name(source).removesuffix(".pt")) if source else facts.folder.resolve().name


def introduction(facts: FolderFacts, repo_id: str | None) -> str:
    model = facts.conversion.get("model")
    size = f": {model['size']} size, {model['parameters'] / 1e6:.0f} million parameters" if model else ""
    needs_text = "{}" in default_prompt(facts.processor)
    example = default_prompt(facts.processor).replace("{}", "红色裙子")
    prompt = f", prompt={json.dumps(example, ensure_ascii=False)}"
    return INTRODUCTION.format(
        title=title_of(facts, repo_id),
        size=size,
        model=repo_id or UNPUBLISHED,
        prompt=prompt if needs_text else "",
    )


def settings_section(facts: FolderFacts) -> str:
    generation = {
        name: value
        for name, value in facts.generation.items()
        if value is not None and name not in SILENT_GENERATION and not name.startswith("output_")
    }
    lines = [
        f"- Prompt: `{one_line(default_prompt(facts.processor))}`",
        f"- Images: {facts.image_size} × {facts.image_size} pixels, RGB",
        f"- Weights: {facts.config.get('dtype') or facts.config.get('torch_dtype')}",
        f"- Generation: `{json.dumps(generation, ensure_ascii=False)}`",
    ]
    return "## Settings\n\n" + "\n".join(lines)


# ----------------------------------------------------------------------------------------------- origin


def conversion_section(facts: FolderFacts) -> str:
    """What was converted and how that was proven; of a finetuned folder, of its base model."""
    account, place = facts.conversion, ACCOUNT_FILE
    if not account:
        return ""
    source, checkpoint = account["source"], account["checkpoint"]
    origin = f" ({source['url']})" if source.get("url") else ""
    counts = ", ".join(f"{number} {word}" for word, number in account["weights"]["counts"].items() if number)
    digest = f"sha256 `{source['sha256']}`{identity(source)}"
    told = PROVEN if account.get("proof") else NOT_PROVEN
    proof = told.format(counts=counts, **(account.get("proof") or {}))
    return f"""## What it was made from, and how that was proven

- Source: {source["kind"]} `{one_line(source["name"])}`{origin}, {source["bytes"]:,} bytes, {digest}
- Task: {checkpoint["task"]}{described(trained_on(facts))}
- Converted with: {versions_line(account.get("versions", {}))}

{proof} Every decision is in `{place}`."""


def identity(source: Mapping[str, Any]) -> str:
    """By what a published checkpoint was told: nobody published digests to compare with."""
    name = source.get("published_as")
    return f"; by its name the published `{one_line(name)}`, of which no digest is known to compare" if name else ""


def described(data: str) -> str:
    return f"; trained on {one_line(data)}" if data else ""


def trained_on(facts: FolderFacts) -> str:
    """The data, in the words of the catalogue or of a run."""
    data = [(facts.conversion.get("published") or {}).get("trained_on", "")]
    data += [str(value) for value in data_arguments(facts).values()]
    return "; ".join(filter(None, data)) if facts.finetuning else data[0]


def is_shop_data(data: str) -> bool:
    return "MUGE" in data or "IC_train" in data  # the latter is the name of MUGE's file


def data_arguments(facts: FolderFacts) -> dict[str, Any]:
    names = ("train_caption_file", "test_caption_file", "dataset_name", "merge_test")
    arguments = without_paths(facts.finetuning.get("arguments", {}))
    return {name: last_name(str(arguments[name])) for name in names if arguments.get(name)}


def training_section(facts: FolderFacts) -> str:
    """What a finetuning run did; empty for a folder that was not finetuned here."""
    results = without_paths(facts.finetuning)
    if not results:
        return ""
    arguments = {**results.get("arguments", {}), **results.get("trainer_arguments", {})}
    rows = [("Base model", base_line(results)), ("Steps", results.get("steps"))]
    rows += [(f"Data: {name}", text) for name, text in results.get("data", {}).items()]
    rows += sorted((f"`{name}`", value) for name, value in arguments.items() if worth_telling(name, arguments))
    rows += [("Training loss, mean", as_number(results.get("metrics", {}).get("train_loss")))]
    rows += [("Versions", versions_line(results.get("versions", {})))]
    curve = f"\n\n![Losses and scores by step]({CURVE_FILE})" if facts.has_curve else ""
    opening = f"## Training\n\nFinetuned with `ofa-hf finetune`; `{RESULTS_FILE}` holds every figure."
    return f"{opening}\n\n{table(rows)}{curve}"


def worth_telling(name: str, arguments: Mapping[str, Any]) -> bool:
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


def measured_scores(facts: FolderFacts) -> list[tuple[str, str, dict[str, float]]]:
    """Scores that a file of the folder backs: data, file, values."""
    found, metrics = [], facts.finetuning.get("metrics", {})
    values = {name: metrics[f"eval_{name}"] for name in METRICS if is_number(metrics.get(f"eval_{name}"))}
    if values:
        data = data_arguments(facts)
        arguments = facts.finetuning.get("arguments", {})
        name = data.get("test_caption_file") or f"{data.get('dataset_name')} {arguments.get('eval_split', '')}".strip()
        limit = arguments.get("eval_rows")
        found.append((f"{name}, at most {limit:,} images" if limit else name, RESULTS_FILE, values))
    scores = facts.evaluation.get("scores", {})
    values = {name: scores[name] for name in METRICS if is_number(scores.get(name))}
    if values:
        run = without_paths(facts.evaluation.get("run", {}))
        images = f", {scores['num_images']:,} images" if scores.get("num_images") else ""
        found.append((f"{last_name(str(run.get('captions', 'unnamed data')))}{images}", EVALUATION_FILE, values))
    return found


def measured_results(facts: FolderFacts) -> list[EvalResult]:
    """The same for the Hub's own display."""
    return [
        EvalResult(
            task_type="image-to-text",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.partition(",")[0].lower()).strip("-") or "own-data",
            dataset_name=data,
            metric_type=METRICS[name][1],
            metric_name=METRICS[name][0],
            metric_value=round(value, 4),
        )
        for data, _, values in measured_scores(facts)
        for name, value in values.items()
    ]


def results_section(facts: FolderFacts) -> str:
    """Measured scores with their file, published ones with their page, or that there are none."""
    rows = [
        (data, ", ".join(f"{METRICS[name][0]} {value:.2f}" for name, value in values.items()), f"measured, `{file}`")
        for data, file, values in measured_scores(facts)
    ]
    published = (facts.conversion.get("published") or {}).get("scores", [])
    rows += [] if facts.finetuning else [published_row(row) for row in published]
    if not rows:
        return "## Results\n\nNot measured: no score was computed on this model."
    note = (
        "Not measured: any other data." if measured_scores(facts) else "Not measured here: these are their authors'."
    )
    scale = "CIDEr-D, BLEU-4 and ROUGE-L are percentages over characters, a run of Latin letters being one token."
    return f"## Results\n\n{table(rows, ('Data', 'Scores', 'Where from'))}\n\n{note} {scale}"


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
