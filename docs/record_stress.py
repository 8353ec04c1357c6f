"""Write the figures of a stress run into docs/promises.md and keep the run in docs/stress.json: after `make stress`.

python docs/record_stress.py [outputs/stress.json]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any


DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "promises.md", DOCS / "stress.json"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
sys.path.insert(0, str(DOCS.parent / "tests"))

from stress.pieces import PIECES  # noqa: E402


def figures(record: dict[str, Any]) -> str:
    """The recorded run as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [f"Recorded {record['date'][:10]} with seed {record['seed']} on {record['machine']}: {versions}."]
    lines += ["", "| promise | piece | amount | measured |", "| --- | --- | --- | --- |"]
    for name, outcome in record["pieces"].items():
        amount = f"{outcome['amount']:,} {outcome['unit']}, {outcome['seconds']:,} s"
        lines.append(f"| {PIECES[name].promise} | `{name}` | {amount} | {measured(outcome)} |")
    return "\n".join(lines)


def measured(outcome: dict[str, Any]) -> str:
    if "reason" in outcome:
        return f"**{outcome['outcome']}**: {' '.join(outcome['reason'].split())[:300]}"
    parts = []
    for key, value in outcome["figures"].items():
        told = ", ".join(f"{name} {number(one)}" for name, one in value.items()) if isinstance(value, dict) else ""
        parts.append(f"{key}: {told}" if told else f"{key} {number(value)}")
    return "; ".join(parts)


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def main(path: str = "outputs/stress.json") -> None:
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    text, block = PAGE.read_text(encoding="utf-8"), f"{BEGIN}\n{figures(record)}\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    RECORD.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
