"""The code that cards and pages show runs, for every task in each of its languages."""

import pytest
import small_checkpoints
import transformers
from PIL import Image

import ofa_hf
from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor
from ofa_hf.configuration_ofa import PIPELINE_CLASSES
from ofa_hf.conversion.english_vocabulary import build_english_tokenizer, read_byte_pairs
from ofa_hf.model_card.snippets import snippet
from ofa_hf.tasks_ofa import TASKS, Task


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Run a snippet of a task, with a tiny model for whatever it names; returns what it prints."""
    work = tmp_path_factory.mktemp("snippets")
    tokenizer = build_english_tokenizer(
        read_byte_pairs(small_checkpoints.write_english_vocabulary(work / "BPE"))  # its bytes write Chinese too
    )
    values = small_checkpoints.make_config(len(tokenizer)).to_dict() | {"max_position_embeddings": 512}
    config = OFAConfig(**values)
    model = OFAForConditionalGeneration(config).eval()
    Image.new("RGB", (320, 280), "red").save(work / "photo.jpg")

    def run(task: Task, language: str, monkeypatch) -> list[str]:
        processor = OFAProcessor(
            OFAImageProcessor(size=96),
            tokenizer,
            tasks={task.name: {"prompt": task.prompts[language], "answer": task.answer, "choices": task.choices}},
            language=language,
        )

        def pipeline(name: str, model_name: str = "", **options):
            assert options == {"model": "shop/tiny", "trust_remote_code": True}
            return getattr(ofa_hf, PIPELINE_CLASSES[name])(model=model, processor=processor, max_new_tokens=5)

        monkeypatch.setattr(transformers, "pipeline", pipeline)
        monkeypatch.chdir(work)
        printed = []
        exec(snippet(task, language, "shop/tiny"), {"print": printed.append})
        return printed

    return run


@pytest.mark.parametrize(
    ("task", "language"),
    [(name, language) for name, task in TASKS.items() if task.answer != "image" for language in task.prompts],
)
def test_a_snippet_prints_an_answer(ask, monkeypatch, task, language):
    (printed,) = ask(TASKS[task], language, monkeypatch)
    assert isinstance(printed, (str, list))


def test_tasks_of_ones_own_have_snippets_too(ask, monkeypatch):
    color = Task("color", {"zh": "什么颜色?"}, answer="choice", choices=("red", "what"))
    assert ask(color, "zh", monkeypatch)[0] in color.choices
    place = Task("place", {"en": " where is {thing}?"}, answer="boxes")
    assert list(ask(place, "en", monkeypatch)[0]) == ["xmin", "ymin", "xmax", "ymax"]
