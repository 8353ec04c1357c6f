"""OFA, one model for images and text, for today's Hugging Face Hub.

Importing this package is instant: torch and transformers are loaded when a public name is first used. This also
registers OFA with the Auto classes, so that `AutoModel.from_pretrained(folder)` finds the classes of this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ofa_hf.configuration_ofa import OFAConfig
    from ofa_hf.image_processing_ofa import OFAImageProcessor
    from ofa_hf.modeling_ofa import OFAForConditionalGeneration, OFAModel, OFAPreTrainedModel
    from ofa_hf.modeling_ofa import OFAForConditionalGeneration as OFAModelForCaption
    from ofa_hf.pipeline_ofa import (
        OFAClassificationPipeline,
        OFAImageToTextPipeline,
        OFAObjectDetectionPipeline,
        OFAQuestionAnsweringPipeline,
        OFASummarizationPipeline,
        OFATextClassificationPipeline,
        OFATextToImagePipeline,
    )
    from ofa_hf.processing_ofa import OFAProcessor


__version__ = "0.1.0"

__all__ = [
    "OFAClassificationPipeline",
    "OFAConfig",
    "OFAForConditionalGeneration",
    "OFAImageProcessor",
    "OFAImageToTextPipeline",
    "OFAModel",
    "OFAModelForCaption",
    "OFAObjectDetectionPipeline",
    "OFAPreTrainedModel",
    "OFAProcessor",
    "OFAQuestionAnsweringPipeline",
    "OFASummarizationPipeline",
    "OFATextClassificationPipeline",
    "OFATextToImagePipeline",
]

_HOMES = {
    "OFAClassificationPipeline": "pipeline_ofa",
    "OFAConfig": "configuration_ofa",
    "OFAForConditionalGeneration": "modeling_ofa",
    "OFAImageProcessor": "image_processing_ofa",
    "OFAImageToTextPipeline": "pipeline_ofa",
    "OFAModel": "modeling_ofa",
    "OFAObjectDetectionPipeline": "pipeline_ofa",
    "OFAPreTrainedModel": "modeling_ofa",
    "OFAProcessor": "processing_ofa",
    "OFAQuestionAnsweringPipeline": "pipeline_ofa",
    "OFASummarizationPipeline": "pipeline_ofa",
    "OFATextClassificationPipeline": "pipeline_ofa",
    "OFATextToImagePipeline": "pipeline_ofa",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    classes = {public: getattr(import_module(f"{__name__}.{home}"), public) for public, home in _HOMES.items()}
    classes["OFAModelForCaption"] = classes["OFAForConditionalGeneration"]  # the name in the 2023 article
    _register(classes)
    globals().update(classes)
    return classes[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register(classes: dict[str, type]) -> None:
    """Register OFA with the Auto classes of transformers."""
    import transformers

    from ofa_hf.versions_ofa import AUTO_CLASSES_WITH_HEAD, image_processor_classes

    config, captioner = classes["OFAConfig"], classes["OFAForConditionalGeneration"]
    transformers.AutoConfig.register("ofa", config, exist_ok=True)
    transformers.AutoModel.register(config, classes["OFAModel"], exist_ok=True)
    for auto in AUTO_CLASSES_WITH_HEAD:
        getattr(transformers, auto).register(config, captioner, exist_ok=True)
    variants = image_processor_classes(classes["OFAImageProcessor"])
    transformers.AutoImageProcessor.register(config, **variants, exist_ok=True)
    transformers.AutoProcessor.register(config, classes["OFAProcessor"], exist_ok=True)
