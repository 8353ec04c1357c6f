"""Every difference between the accepted versions of transformers (4.57 to 5.x) that OFA's code must know.

Each is named once, here. A fork is detected by the feature itself where that is possible, so versions in between work.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import Seq2SeqLMOutput


TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

# Output field and `generate` keyword of the decoder's cache: renamed in transformers 5.24.
CACHE_NAME = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"

# Auto classes that load OFA with its language-modeling head: the last one left with transformers 5.
AUTO_CLASSES_WITH_HEAD = ("AutoModelForSeq2SeqLM", "AutoModelForImageTextToText")
if hasattr(transformers, "AutoModelForVision2Seq"):
    AUTO_CLASSES_WITH_HEAD += ("AutoModelForVision2Seq",)

# transformers 5 reads a processor's parts from the arguments of `__init__` and warns about class attributes.
PROCESSOR_DECLARES_PARTS = not TRANSFORMERS_5

# Keywords of `AutoImageProcessor.from_pretrained` for images that Pillow prepares, as in original code.
PILLOW_BACKEND = {"backend": "pil"} if TRANSFORMERS_5 else {"use_fast": False}

# transformers 4 cannot save torchao's int8 weights as safetensors.
CAN_SAVE_INT8 = TRANSFORMERS_5

# transformers 4 and Gradio 6 need different versions of huggingface_hub.
CAN_RUN_IN_A_SPACE = TRANSFORMERS_5


def tied_weights_keys(tied: Mapping[str, str]) -> dict[str, str] | list[str]:
    """`_tied_weights_keys` from target → source: transformers 5 takes the mapping, 4 the names of the targets."""
    return dict(tied) if TRANSFORMERS_5 else list(tied)


def fixed_cache_length(cache: Any) -> int:
    """Number of positions of a static cache; transformers 5 renamed the method."""
    return cache.get_max_length() if hasattr(cache, "get_max_length") else cache.get_max_cache_shape()


def image_processor_classes(image_processor: type) -> dict[str, Any]:
    """Keywords of `AutoImageProcessor.register`; transformers 5 looks for a torchvision variant at every load unless
    it is named."""
    if TRANSFORMERS_5:
        return {"image_processor_classes": {"pil": image_processor, "torchvision": image_processor}}
    return {"slow_image_processor_class": image_processor}


def pipeline_generate_kwargs(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for `generate`: the pipeline's generation settings with those that a call gives on top."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):  # transformers 5
        return pipeline._prepare_generate_kwargs(dict(given))
    if "generation_config" in given:
        return dict(given)
    # transformers 4: `generate` would take `num_beams=1` of the pipeline's settings for "not given".
    return {**given, "generation_config": pipeline.generation_config, "use_model_defaults": False}


def clip_text_features(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Features of texts, `(texts, D)`. In transformers 4 the method of Chinese CLIP asks for what its model lacks."""
    if model.config.model_type == "chinese_clip" and not TRANSFORMERS_5:
        return model.text_projection(model.text_model(**inputs).last_hidden_state[:, 0])
    return features_of(model.get_text_features(**inputs))


def features_of(found: Any) -> torch.Tensor:
    """What a CLIP's `get_…_features` found: a tensor, in transformers 5 an output that holds it."""
    return getattr(found, "pooler_output", found)


def http_get(url: str, timeout: float) -> bytes:
    """Download a URL with the HTTP client of transformers itself, which 5 changed.

    Args:
        timeout: seconds to wait for the server.
    """
    from transformers import image_utils  # imports torchvision

    if hasattr(image_utils, "httpx"):
        response = image_utils.httpx.get(url, timeout=timeout, follow_redirects=True)
    else:
        response = image_utils.requests.get(url, timeout=timeout)
    response.raise_for_status()
    return response.content


def mismatched_names(loading_info: Mapping[str, Any]) -> list[str]:
    """Names of weights of another shape in `output_loading_info`; transformers 5 gives their shapes as well."""
    return sorted(item if isinstance(item, str) else item[0] for item in loading_info["mismatched_keys"])


def lacks_word_embedding(model: Any, loading_info: Mapping[str, Any]) -> bool:
    """Whether a checkpoint had none of the tied word embeddings.

    Some versions of transformers 5 do not report that, and leave the weight on the meta device. An offloaded weight is
    there too, but a call brings it in.
    """
    if any(name.endswith("embed_tokens.weight") for name in loading_info["missing_keys"]):
        return True
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        return False
    try:
        return embedding(torch.zeros(1, dtype=torch.long, device="cpu")).is_meta
    except (KeyError, RuntimeError):
        return True
