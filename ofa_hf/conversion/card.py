"""The README of a converted folder: what it was made from and how that was proven; no scores nobody ran."""

import json
from typing import Any

from ofa_hf.conversion.checkpoints import LEGACY_REPOSITORY, OFFICIAL_REPOSITORY
from ofa_hf.conversion.sources import OFFICIAL_KIND


TEMPLATE = """---
language: zh
library_name: transformers
pipeline_tag: image-to-text
tags:
- ofa
- image-captioning
---

# {title}

OFA ([arXiv 2202.03052](https://arxiv.org/abs/2202.03052)), {size} size, {parameters}, as a transformers model with its
own code. Chinese.

```python
from transformers import pipeline

captioner = pipeline("image-to-text", model="PATH_OR_ID", trust_remote_code=True)
captioner("photo.jpg")
```

## What it was made from

- Source: {kind} `{name}`{origin}, {bytes} bytes, sha256 `{sha256}`.
- Task: {task}. Prompt: `{prompt}`. Pictures: {image_size} × {image_size} pixels.
- Generation: `{generation}`.
- Weights: {dtype}; {counts}.

## How it was proven

{proof} Every decision is in `conversion.json`. No score was measured on this folder.

## Licence

The code files are Apache-2.0. The authors published the weights with the Apache-2.0 licensed repository
[{repository}]({repository}) and name no separate licence for them; check before you redistribute them.
"""

PROVEN = (
    "Every weight was accounted for and compared with the written file bit by bit. Loaded through the Auto classes in "
    "a fresh process without the converter, the folder gave logits of shape {logits_shape} whose largest difference "
    "from the source tensors' own is {max_difference}."
)
NOT_PROVEN = "Every weight was accounted for. The final proof in a fresh process was switched off for this folder."


def model_card(account: dict[str, Any]) -> str:
    """The card of a folder, from its account."""
    source, checkpoint = account["source"], account["checkpoint"]
    repository = OFFICIAL_REPOSITORY if source["kind"] == OFFICIAL_KIND else LEGACY_REPOSITORY
    counts = account["weights"]["counts"]
    return TEMPLATE.format(
        title=one_line(source["name"].removesuffix(".pt")),
        size=account["model"]["size"],
        parameters=f"{account['model']['parameters'] / 1e6:.0f} million parameters",
        kind=source["kind"],
        name=one_line(source["name"]),
        origin=f" ({source['url']})" if source["url"] else "",
        bytes=f"{source['bytes']:,}",
        sha256=source["sha256"],
        task=checkpoint["task"],
        prompt=one_line(checkpoint["prompt"]),
        image_size=checkpoint["image_size"],
        generation=json.dumps(checkpoint["generation"]),
        dtype=account["model"]["dtype"],
        counts=", ".join(f"{number} {word}" for word, number in counts.items() if number),
        proof=PROVEN.format(**account["proof"]) if account["proof"] else NOT_PROVEN,
        repository=repository,
    )


def one_line(text: str) -> str:
    """Text from outside as part of a line of Markdown."""
    return " ".join(text.split()).replace("`", "'")
