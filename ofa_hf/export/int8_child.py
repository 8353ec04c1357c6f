"""Runs in a fresh process that cannot import `ofa_hf`: caption images from a folder with int8 weights.

`python -c <this text> FOLDER SCRATCH THREADS`: greedy tokens of `SCRATCH/*.png` go to `SCRATCH/tokens.json`. It shares
no code with the package on purpose.
"""

import json
import sys
from pathlib import Path


class NoPackage:
    """Finder that makes the package impossible to import, as on a machine where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "ofa_hf" or name.startswith("ofa_hf."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(folder: str, scratch: Path, threads: int) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(threads)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    tokens = []
    for image in sorted(scratch.glob("*.png")):
        inputs = processor(images=Image.open(image), return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        tokens.append(model.generate(**inputs, num_beams=1)[0].tolist())
    (scratch / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPackage())
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
