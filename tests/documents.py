"""The code of README and of the pages under docs/, and how it is run: as a reader would."""

import re
import shlex
from pathlib import Path

from hub_upload.__main__ import main as publishing_main
from ofa_hf.cli import main


ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?:(?P<mark><!-- not a test[^\n]*)\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and code of every block that is to run."""
    return [(found["language"], found["code"]) for found in BLOCK.finditer(text_of(document)) if not found["mark"]]


def run(language: str, code: str) -> None:
    """Run a block in this process, since each process of its own takes seconds to start."""
    if language == "python":
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        return
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        starts = {"ofa-hf": (1, main), "python -m hub_upload": (3, publishing_main)}
        count, command = next(found for start, found in starts.items() if line.startswith(start))
        assert command(words[count:]) == 0, line
