"""Runs in a fresh process that cannot import `ofa_hf`: load a Hub-ready folder as a stranger would, say what it does.

`python -c <this text> REQUEST.json PARENT`: answers in the files that the request names, and ends when the process
with the number PARENT does. It shares no code with the package on purpose.
"""

import json
import os
import sys
import threading
import time


class NoPackage:
    """Finder that makes the package impossible to import, as on a machine where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "ofa_hf" or name.startswith("ofa_hf."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def end_with(parent: int) -> None:
    """End this process when its parent is gone: nobody waits for the answer."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def load_processor(folder: str, image):
    """What the folder's own processor makes of one image and its prompt."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=image, return_tensors="pt")
    return {name: inputs[name].contiguous() for name in ("input_ids", "pixel_values")}


def compare_parameters(model, folder: str, files: list[str]) -> int:
    """Number of tensors of the files that the loaded model holds unchanged; outputs cannot show all of them."""
    import torch
    from safetensors import safe_open

    loaded, equal = model.state_dict(), 0
    for file in files:
        with safe_open(f"{folder}/{file}", framework="pt") as written:
            for name in written.keys():
                tensor = written.get_tensor(name)
                equal += torch.equal(loaded[name], tensor.to(loaded[name].dtype))
    return equal


def main(request: dict) -> None:
    import torch
    import transformers
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(request["threads"])
    tensors = load_file(request["inputs"])
    answers = load_processor(request["folder"], Image.fromarray(tensors.pop("image").numpy()))
    begin = time.perf_counter()
    model, info = AutoModelForImageTextToText.from_pretrained(
        request["folder"], trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    seconds = time.perf_counter() - begin
    with torch.inference_mode():
        answers["logits"] = model.eval()(**tensors).logits.contiguous()
    save_file(answers, request["answers"])
    report = {
        "missing": sorted(map(str, info["missing_keys"])),
        "unexpected": sorted(map(str, info["unexpected_keys"])),
        "equal": compare_parameters(model, request["folder"], request["files"]),
        "model_class": type(model).__name__,
        "module": type(model).__module__,
        "load_seconds": round(seconds, 2),
        "transformers": transformers.__version__,
    }
    with open(request["report"], "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[2]),), daemon=True).start()
    sys.meta_path.insert(0, NoPackage())
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
