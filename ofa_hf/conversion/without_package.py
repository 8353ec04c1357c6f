"""Use a Hub-ready folder as people without this package do: load it through the Auto classes, compute, caption.

`ofa_hf.fresh_process.run_fresh` runs this file where the package cannot be imported; it shares no code with it.
"""

import time
from pathlib import Path


TENSORS_AT_ONCE = 100


def main(request: dict) -> dict:
    """Use a folder.

    Args:
        request: `folder`, `threads`, and optionally
            `dtype`: of the weights, by default float32; "auto" as stored.
            `auto_classes`: more Auto classes of transformers that must load the folder.
            `exact`: compare each loaded tensor with the files.
            `inputs`, `outputs`: safetensors files; `logits` of the inputs are written to the outputs.
            `images`: image files; `input_ids` and `pixel_values` of the first are written to `outputs`.
            `text`: text or slot values for the images, instead of the checkpoint's prompt.
            `greedy`: generate from each image with greedy search.
            `pipeline`: keywords for a call of the image-to-text pipeline on each image.
            `call`: a call of any pipeline: its `name`, the arguments `given` and `asked`.

    Returns:
        versions, `load_seconds`, and the requested results: `equal_tensors`, `tokens`, `texts`, and `answers` or the
        reason why there are none, `not_asked`.

    Raises:
        ValueError: weights are missing, left over or not what the files hold, or the code is not the folder's.
    """
    import huggingface_hub
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    folder = request["folder"]
    for name in request.get("auto_classes", ()):
        getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    answer = {"transformers": transformers.__version__, "huggingface_hub": huggingface_hub.__version__}
    begin = time.perf_counter()
    model = load_model(folder, request.get("dtype", "float32"))
    answer["load_seconds"] = round(time.perf_counter() - begin, 2)
    if request.get("exact"):
        answer["equal_tensors"] = count_equal_tensors(model, folder)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    if "inputs" in request:
        write_outputs(model, processor, request)
    if request.get("greedy"):
        text = request.get("text")
        answer["tokens"] = [greedy_tokens(model, processor, image, text) for image in request["images"]]
    del model
    if "pipeline" in request:
        answer["texts"] = pipeline_texts(folder, request["images"], request["pipeline"])
    if "call" in request:
        call = request["call"]
        pipe = load_pipeline(folder, call["name"])
        try:
            found = pipe(*call["given"], **call["asked"])
        except ImportError as error:  # a library that only drawing needs is missing
            found, answer["not_asked"] = [], str(error)
        answer["answers"] = [{name: written(value) for name, value in one.items()} for one in found]
    return answer


def written(value):
    """A value of an answer as JSON has it: an image by its size."""
    return f"image of {value.width} x {value.height} pixels" if hasattr(value, "width") else value


def load_model(folder: str, dtype: str):
    """The model, loaded with the folder's code; no weights may be missing or left over."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, dtype=dtype, output_loading_info=True
    )
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    if wrong:
        raise ValueError(f"weights missing or left over: {wrong[:3]}")
    if not type(model).__module__.startswith("transformers_modules"):
        raise ValueError(f"the code came from {type(model).__module__}, not from the folder")
    return model.eval()


def count_equal_tensors(model, folder: str) -> int:
    """Number of tensors in the files; the loaded model must have all of them unchanged."""
    import torch
    from safetensors import safe_open

    loaded, number = model.state_dict(), 0
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as written:
            names = list(written.keys())
        for index, name in enumerate(names):
            if index % TENSORS_AT_ONCE == 0:  # map the file again, so that its pages are not all in memory
                written = safe_open(file, framework="pt")
            if not torch.equal(loaded[name], written.get_tensor(name).to(loaded[name].dtype)):
                raise ValueError(f"{name} is not what {file.name} holds")
            number += 1
    return number


def write_outputs(model, processor, request: dict) -> None:
    """Logits of given inputs, and what the folder's own processor makes of the first image and its prompt."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file

    with torch.inference_mode():
        outputs = {"logits": model(**load_file(request["inputs"])).logits.contiguous()}
    image = Image.open(request["images"][0])
    prepared = processor(images=image, text=request.get("text"), return_tensors="pt")
    outputs |= {name: prepared[name].contiguous() for name in ("input_ids", "pixel_values")}
    save_file(outputs, request["outputs"])


def greedy_tokens(model, processor, image: str, text) -> list[int]:
    from PIL import Image

    inputs = processor(images=Image.open(image), text=text, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return model.generate(**inputs, num_beams=1)[0].tolist()


def load_pipeline(folder: str, name: str):
    import torch
    from transformers import pipeline

    return pipeline(name, model=folder, trust_remote_code=True, dtype=torch.float32, device=torch.device("cpu"))


def pipeline_texts(folder: str, images: list[str], keywords: dict) -> list[str]:
    read = load_pipeline(folder, "image-to-text")
    return [read(image, **keywords)[0]["generated_text"] for image in images]
