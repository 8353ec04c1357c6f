"""Configuration of an OFA network, with the names that `config.json` files of OFA-Chinese use.

Source: OFA (arXiv 2202.03052), `models/ofa/unify_transformer.py` and the architectures of `models/ofa/ofa.py`.
"""

import dataclasses
import inspect
from collections.abc import Iterable

from transformers import PretrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Bottleneck blocks of the three stages that OFA keeps of each ResNet; `resnet18` is OFA's own name for [2, 2, 2].
RESNET_BLOCKS = {
    "resnet18": (2, 2, 2),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}

# Switches of the original code that every published checkpoint sets the same way. This network is written for these
# values; another value is another network, so it is refused instead of silently ignored.
FIXED_SWITCHES = {
    "normformer": True,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "code_layernorm_embedding": True,
    "add_type_embedding": True,
    "share_decoder_input_output_embed": True,
    "scale_embedding": False,
    "entangle_position_embedding": False,
    "interpolate_position": False,
    "activation_function": "gelu",
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "resnet_model_path": None,
}

# Fields of old files that OFA's network does not read.
UNUSED_FIELDS = ("classifier_dropout", "num_hidden_layers", "init_std", "label_smoothing")

# Private fields that transformers itself passes to a config. Others can only come from a foreign config.json.
PRIVATE_FIELDS = ("_name_or_path", "_commit_hash")

# Fields of transformers that hold a dict. Any other dict would be taken for the config of a part of the model.
TABLES = ("id2label", "label2id", "quantization_config", "task_specific_params", "pruned_heads")

AUTO_MAP = {
    "AutoConfig": "configuration_ofa.OFAConfig",
    "AutoModel": "modeling_ofa.OFAModel",
    "AutoModelForSeq2SeqLM": "modeling_ofa.OFAForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_ofa.OFAForConditionalGeneration",
    "AutoModelForVision2Seq": "modeling_ofa.OFAForConditionalGeneration",  # read by transformers 4 only
    "AutoImageProcessor": "image_processing_ofa.OFAImageProcessor",
    "AutoProcessor": "processing_ofa.OFAProcessor",
}
PIPELINE_CLASSES = {  # transformers' names of pipelines → classes of `pipeline_ofa`
    "image-to-text": "OFAImageToTextPipeline",
    "zero-shot-object-detection": "OFAObjectDetectionPipeline",
    "summarization": "OFASummarizationPipeline",
    "text-classification": "OFATextClassificationPipeline",
    "text-to-image": "OFATextToImagePipeline",
    "visual-question-answering": "OFAQuestionAnsweringPipeline",
    "zero-shot-image-classification": "OFAClassificationPipeline",
}


def belongs_to_class(name: str) -> bool:
    """Whether a name belongs to the class `OFAConfig` rather than to an instance."""
    fields = dataclasses.fields(PretrainedConfig) if dataclasses.is_dataclass(PretrainedConfig) else ()
    attribute = inspect.getattr_static(OFAConfig, name, None)
    is_settable = name in {field.name for field in fields} or getattr(attribute, "fset", None) is not None
    return attribute is not None and not is_settable


def custom_pipelines(names: Iterable[str]) -> dict[str, dict]:
    """Entries of `custom_pipelines` in a `config.json`, by which `pipeline()` finds the classes."""
    return {
        name: {
            "impl": f"pipeline_ofa.{PIPELINE_CLASSES[name]}",
            "pt": ["AutoModelForImageTextToText"],
            "tf": [],
            "type": "multimodal",
        }
        for name in names
    }


DEFAULT_PIPELINES = custom_pipelines(["image-to-text"])


class OFAConfig(PretrainedConfig):
    """Sizes and rates of an OFA network.

    Args:
        vocab_size: rows of the embedding shared by encoder, decoder and output; 30,325 in the Chinese checkpoints,
            59,457 in the English ones.
        d_model: width of encoder and decoder.
        encoder_layers, decoder_layers: number of transformer layers.
        encoder_attention_heads, decoder_attention_heads: heads of each; they divide `d_model`.
        encoder_ffn_dim, decoder_ffn_dim: width inside the feed-forward blocks, 4 × `d_model` in all checkpoints.
        max_position_embeddings: longest text, in tokens, on either side.
        resnet_type: image trunk, a key of `RESNET_BLOCKS`.
        token_bucket_size: distances up to half of this are exact, longer ones share logarithmic buckets.
        image_bucket_size: side, in cells of 16 pixels, of the largest feature map the position tables know.
        code_image_size: pixels a side of a generated image; its image codes form a grid of this / 8 cells a side.
        attn_scale_factor: scores add content and position, so each is scaled by `(2 * head_dim) ** -0.5`.
        dropout, attention_dropout, activation_dropout: probabilities, as in fairseq.
        encoder_drop_path_rate, decoder_drop_path_rate, resnet_drop_path_rate: stochastic depth of the last layer
            (for the trunk: of the last block of every stage); rates rise linearly from 0 at the first.
        init_range: standard deviation of fresh linear weights and embeddings.

    Raises:
        ValueError: sizes that do not fit together, or a switch set to a variant of OFA this network is not.

    Source: OFA `models/ofa/ofa.py`; field names as in OFA-Chinese's `config.json`.
    """

    model_type = "ofa"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # the cache, before and since transformers 5.24
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "decoder_layers",  # what a cache needs one entry for
    }

    def __init__(
        self,
        vocab_size: int = 30325,
        d_model: int = 768,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        encoder_attention_heads: int = 12,
        decoder_attention_heads: int = 12,
        encoder_ffn_dim: int = 3072,
        decoder_ffn_dim: int = 3072,
        max_position_embeddings: int = 1024,
        resnet_type: str = "resnet101",
        token_bucket_size: int = 256,
        image_bucket_size: int = 42,
        code_image_size: int = 128,
        attn_scale_factor: float = 2.0,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        encoder_drop_path_rate: float = 0.0,
        decoder_drop_path_rate: float = 0.0,
        resnet_drop_path_rate: float = 0.0,
        init_range: float = 0.02,
        use_cache: bool = True,
        pad_token_id: int = 1,
        bos_token_id: int = 0,
        eos_token_id: int = 2,
        decoder_start_token_id: int = 0,
        is_encoder_decoder: bool = True,
        tie_word_embeddings: bool = True,
        auto_map: dict | None = None,
        custom_pipelines: dict | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.encoder_attention_heads = encoder_attention_heads
        self.decoder_attention_heads = decoder_attention_heads
        self.encoder_ffn_dim = encoder_ffn_dim
        self.decoder_ffn_dim = decoder_ffn_dim
        self.max_position_embeddings = max_position_embeddings
        self.resnet_type = resnet_type
        self.token_bucket_size = token_bucket_size
        self.image_bucket_size = image_bucket_size
        self.code_image_size = code_image_size
        self.attn_scale_factor = attn_scale_factor
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.encoder_drop_path_rate = encoder_drop_path_rate
        self.decoder_drop_path_rate = decoder_drop_path_rate
        self.resnet_drop_path_rate = resnet_drop_path_rate
        self.init_range = init_range
        self.use_cache = use_cache
        self.auto_map = dict(AUTO_MAP) if auto_map is None else auto_map
        self.custom_pipelines = dict(DEFAULT_PIPELINES) if custom_pipelines is None else custom_pipelines
        self._drop_foreign_code(kwargs)
        self._refuse_other_variants(kwargs)
        self._check_sizes()
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            decoder_start_token_id=decoder_start_token_id,
            is_encoder_decoder=is_encoder_decoder,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @staticmethod
    def _drop_foreign_code(kwargs: dict) -> None:
        """Drop fields by which a config.json could make transformers fetch and import code from the Hub.

        transformers 4.56 to 5.2 loads the kernel that `_attn_implementation_internal` names (CVE-2026-4372), and other
        private fields are as unsafe. A public `…_implementation` must not name a repository. What belongs to the class
        cannot be changed: a new `attribute_map` could give a private field a public name.
        """
        for name, value in list(kwargs.items()):
            is_private = name.startswith("_") and name not in PRIVATE_FIELDS
            is_table = isinstance(value, dict) and name not in TABLES
            names_repository = name.endswith("_implementation") and "/" in str(value)
            is_foreign = is_private or is_table or names_repository or belongs_to_class(name)
            if is_foreign and kwargs.pop(name) != getattr(OFAConfig, name, None):
                logger.warning_once(f"OFAConfig ignores {name}={value!r}: it could name code to be loaded.")

    @staticmethod
    def _refuse_other_variants(kwargs: dict) -> None:
        """Drop old fields with the value that this network always has; raise if the value is another one."""
        for name in UNUSED_FIELDS:
            kwargs.pop(name, None)
        for name, expected in FIXED_SWITCHES.items():
            value = kwargs.pop(name, expected)
            if value != expected:
                raise ValueError(
                    f"OFAConfig got {name}={value!r}, which is another variant of OFA. This network is written for "
                    f"{name}={expected!r}, as all published checkpoints have it. Use the official code for "
                    f"that variant."
                )

    def _check_sizes(self) -> None:
        """Refuse sizes that no OFA network can have; the error names the field."""
        if self.resnet_type not in RESNET_BLOCKS:
            raise ValueError(
                f"Unknown resnet_type {self.resnet_type!r} in OFAConfig. Accepted: {', '.join(RESNET_BLOCKS)}."
            )
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, name)
            if heads < 1 or self.d_model % heads:
                raise ValueError(f"{name}={heads} does not divide d_model={self.d_model}. Choose a divisor.")
        for name in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} in OFAConfig must be at least 1.")
        if self.code_image_size // 8 > self.image_bucket_size:
            raise ValueError(
                f"code_image_size={self.code_image_size} needs {self.code_image_size // 8} positions a side but "
                f"image_bucket_size is {self.image_bucket_size}. Lower the one or raise the other."
            )


OFAConfig.register_for_auto_class()  # otherwise saving would write an auto_map without the files it names
