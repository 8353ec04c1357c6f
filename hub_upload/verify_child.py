"""Runs in a fresh process that cannot import `ofa_hf`: use a Hub-ready folder as a stranger would, and tell.

`python -c <this text> FOLDER IMAGE ANSWER.json`. It shares no code with the package on purpose.
"""

import json
import sys


class NoPackage:
    """Finder that makes the package impossible to import, as on a machine where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ofa_hf", "hub_upload"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_model(folder: str):
    """The captioning model with nothing missing and nothing left over; the base class must load as well."""
    import torch
    from transformers import AutoModel, AutoModelForImageTextToText

    AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if wrong:
        raise ValueError(f"weights missing or left over: {wrong[:3]}")
    if not type(model).__module__.startswith("transformers_modules"):
        raise ValueError(f"the code came from {type(model).__module__}, not from the folder")
    return model.eval()


def equal_tensors(model, folder: str) -> int:
    """Number of tensors of the files, all of which the loaded model must hold unchanged."""
    from pathlib import Path

    import torch
    from safetensors import safe_open

    loaded, number = model.state_dict(), 0
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as written:
            for name in written.keys():
                if not torch.equal(loaded[name], written.get_tensor(name).to(loaded[name].dtype)):
                    raise ValueError(f"{name} is not what {file.name} holds")
                number += 1
    return number


def main(folder: str, image: str, answer: str) -> None:
    import huggingface_hub
    import torch
    import transformers
    from transformers import AutoConfig, AutoProcessor, pipeline

    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = load_model(folder)
    number = equal_tensors(model, folder)
    del model
    captioner = pipeline(
        "image-to-text", model=folder, trust_remote_code=True, dtype=torch.float32, device=torch.device("cpu")
    )
    seen = {
        "transformers": transformers.__version__,
        "huggingface_hub": huggingface_hub.__version__,
        "caption": captioner(image)[0]["generated_text"],
        "equal_tensors": number,
    }
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(seen, file)


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPackage())
    main(*sys.argv[1:])
