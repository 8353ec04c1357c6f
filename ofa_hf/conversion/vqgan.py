"""The VQGAN of a checkpoint that draws: `last.ckpt` and `model.yaml` → a folder in the format of diffusers.

The checkpoint is a Lightning pickle that is read like every other one: nothing in it is executed.

Source: OFA `models/taming/`; names of diffusers `VQModel`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from ofa_hf.conversion.fairseq_reader import is_inert
from ofa_hf.conversion.torch_file import FileRefused, StoredTensor, TorchFile
from ofa_hf.conversion.write import WeightsToSave, same_bits, write_safetensors
from ofa_hf.errors import UserError
from ofa_hf.files import file_digest, refuse_pointer, write_json
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE, VQGAN_FOLDER
from ofa_hf.inert_pickle import PickleRefused, shown


OF_LIGHTNING = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|torch\.optim|taming|models\.taming|main|__main__)\."
    r"|functools\.partial$|datetime\."
)
MAX_YAML_BYTES = 1_000_000
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # as diffusers calls it
CODE_LOGITS_NAME = "code_logits.safetensors"  # of the encoder; the class of diffusers has no place for it
CODE_LOGITS = re.compile(r"quantize\.proj\.(weight|bias)")
ONLY_TRAINING = re.compile(r"loss\.|quantize\.temperature$")  # what the loss and its discriminator hold
NEEDS_DIFFUSERS = "A VQGAN is converted and checked with diffusers. Install it with `pip install 'ofa-hf[draw]'`."
NUMBERS = ("z_channels", "resolution", "in_channels", "out_ch", "ch", "num_res_blocks", "embed_dim", "n_embed")
LISTS = ("ch_mult", "attn_resolutions")
MAX_CHANNELS, MAX_BLOCKS, NORM_GROUPS = 2**16, 64, 32
NO_YAML = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what safe_load raises
SAME_PARTS = (  # of names: official, in diffusers
    ("encoder.down.", "encoder.down_blocks."),
    ("decoder.up.", "decoder.up_blocks."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".block.", ".resnets."),
    (".attn.", ".attentions."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
    (".norm.", ".group_norm."),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".proj_out.", ".to_out.0."),
    ("quantize.embed.", "quantize.embedding."),
)
UP_LEVEL = re.compile(r"^(decoder\.up(?:_blocks)?\.)(\d+)(?=\.)")
PROJECTION = re.compile(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")


@dataclass
class Matrix:
    """A 1 × 1 convolution of the source as the matrix that diffusers has."""

    source: StoredTensor

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def shape(self) -> torch.Size:
        return self.source.shape[:2] if self.source.shape[2:] == (1, 1) else self.source.shape

    def load(self) -> torch.Tensor:
        return self.source.load().reshape(self.shape)


class VQGANSource:
    """A VQGAN as found: its configuration is checked, its weights have their names in diffusers and are not read yet.

    Raises:
        UserError: diffusers is missing, a file cannot be used, or it is not the VQGAN that OFA's codes belong to.
    """

    def __init__(self, checkpoint: str | Path, settings: str | Path):
        self.model_class = find_diffusers()
        self.path, self.settings_path = Path(checkpoint), Path(settings)
        self.config = diffusers_config(read_parameters(self.settings_path), self.settings_path)
        self.weights, self.code_logits, self.ignored = self._match(read_state(self.path))

    def _match(self, state: Mapping[str, StoredTensor]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        ignored = [name for name in state if ONLY_TRAINING.match(name)]
        logits = {name: tensor for name, tensor in state.items() if CODE_LOGITS.fullmatch(name)}
        levels = len(self.config["block_out_channels"])
        rest = {name: tensor for name, tensor in state.items() if name not in logits and name not in ignored}
        weights, twice = {}, []
        for name, tensor in rest.items():
            here = name_in_diffusers(name, levels)
            twice += [here] if here in weights else []
            weights[here] = Matrix(tensor) if PROJECTION.search(here) else tensor
        with torch.device("meta"):
            expected = {name: one.shape for name, one in self.model_class(**self.config).state_dict().items()}
        width, codes = self.config["vq_embed_dim"], self.config["num_vq_embeddings"]
        has = {name: tensor.shape for name, tensor in {**weights, **logits}.items()}
        expected |= {"quantize.proj.weight": torch.Size((codes, width, 1, 1)), "quantize.proj.bias": (codes,)}
        problems = {
            "unknown": sorted(map(shown, has.keys() - expected.keys())),
            "missing": sorted(expected.keys() - has.keys()),
            "of another shape": sorted(n for n in has.keys() & expected.keys() if tuple(has[n]) != tuple(expected[n])),
            "there twice": sorted(twice),
            "no floats": sorted(shown(n) for n, one in {**rest, **logits}.items() if not one.dtype.is_floating_point),
        }
        found = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in problems.items() if names]
        if found:
            raise UserError(
                f"{self.path} does not fit {self.settings_path}: of its weights {'; '.join(found)}. Give the "
                f"last.ckpt and the model.yaml of one VQGAN."
            )
        return weights, logits, ignored

    def check_codes(self, num_codes: int) -> None:
        """Check that it has the codes that a checkpoint knows.

        Raises:
            UserError: it has others.
        """
        pixels = 2 ** (len(self.config["block_out_channels"]) - 1)
        if (self.config["num_vq_embeddings"], pixels) != (num_codes, PIXELS_PER_CODE):
            raise UserError(
                f"{self.settings_path} describes {self.config['num_vq_embeddings']:,} codes of {pixels} × {pixels} "
                f"pixels. Accepted: {num_codes:,} codes of {PIXELS_PER_CODE} × {PIXELS_PER_CODE}, as the checkpoint "
                f"knows them. Give the VQGAN that belongs to it."
            )

    def write(self, folder: Path, image_size: int) -> dict[str, Any]:
        """Write `vqgan/` into a model's folder, read it back and draw an image with it; returns the account."""
        target = folder / VQGAN_FOLDER
        target.mkdir()
        write_json(target / "config.json", {"_class_name": "VQModel", **self.config})
        for name, tensors in ((WEIGHTS_NAME, self.weights), (CODE_LOGITS_NAME, self.code_logits)):
            weights = WeightsToSave(tensors, (), torch.float32)
            write_safetensors(target / name, weights, weights.names)
            with safe_open(target / name, framework="pt") as file:
                different = [one for one in weights.names if not same_bits(file.get_tensor(one), weights.load(one))]
            if different:
                raise UserError(f"{name} was not written as it should be: {different[0]} differs. Check the disk.")
            if broken := [one for one in weights.names if not bool(weights.load(one).isfinite().all())]:
                raise UserError(f"{self.path} has weights that are no numbers: {broken[0]}. Download it again.")
        return {
            "source": {"name": self.path.name, "sha256": file_digest(self.path), "config": self.settings_path.name},
            "codes": self.config["num_vq_embeddings"],
            "weights": {"renamed": len(self.weights), "code logits": len(self.code_logits)},
            "ignored": len(self.ignored),
            "largest_color": self._draw(target, image_size),
        }

    def _draw(self, target: Path, image_size: int) -> float:
        """Decode one image with the written folder; returns its largest value, which must be a number."""
        decoder = self.model_class.from_pretrained(target, use_safetensors=True).eval()
        side = image_size // PIXELS_PER_CODE
        codes = torch.arange(side * side).view(1, side, side) * 7919 % self.config["num_vq_embeddings"]
        with torch.no_grad():
            shape = (1, side, side, self.config["vq_embed_dim"])
            pixels = decoder.decode(codes, force_not_quantize=True, shape=shape).sample
        if not bool(pixels.isfinite().all()):
            raise UserError(f"{self.path} decodes codes to values that are no numbers. Download it again.")
        return round(float(pixels.abs().max()), 4)


def find_diffusers() -> type:
    """The class that decodes codes.

    Raises:
        UserError: diffusers is not installed.
    """
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise UserError(NEEDS_DIFFUSERS) from error
    return VQModel


def name_in_diffusers(name: str, levels: int) -> str:
    """The name that a weight has in diffusers, where the decoder's levels are counted from the other end."""
    for official, here in SAME_PARTS:
        name = name.replace(official, here)
    return _count_from_other_end(name, levels)


def name_in_official_vqgan(name: str, levels: int) -> str:
    """The name that a weight of `diffusers.VQModel` has in the official VQGAN."""
    for official, here in SAME_PARTS:
        name = name.replace(here, official)
    return _count_from_other_end(name, levels)


def _count_from_other_end(name: str, levels: int) -> str:
    return UP_LEVEL.sub(lambda up: f"{up[1]}{levels - 1 - int(up[2])}", name)


def is_known(name: str) -> bool:
    """Whether Lightning checkpoints contain objects of this class; they are recorded by name and never imported."""
    return is_inert(name) or OF_LIGHTNING.match(name) is not None


def read_state(path: Path) -> dict[str, StoredTensor]:
    """The weights in a Lightning checkpoint; whatever else it holds is recorded by name and never made.

    Raises:
        UserError: it cannot be read, or holds no weights.
    """
    try:
        refuse_pointer(path)
        content = TorchFile(path, is_known).content
        state = content.get("state_dict") if isinstance(content, dict) else None
        pairs = state.items() if isinstance(state, dict) else ()
        if not pairs or not all(isinstance(name, str) and isinstance(one, StoredTensor) for name, one in pairs):
            raise FileRefused("it is no Lightning checkpoint: it holds no weights under 'state_dict'")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"No VQGAN at {path}. Give its last.ckpt.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error
    except (FileRefused, PickleRefused) as error:
        raise UserError(f"{path} cannot be converted: {error}.") from error
    return state


def read_parameters(path: Path) -> Mapping[str, Any]:
    """`model.params` of a model.yaml.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a model.yaml.")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"No model.yaml at {path}. Give the one that belongs to the VQGAN.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error
    except NO_YAML as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}. Get the file again.") from error
    for name in ("model", "params"):
        values = values.get(name, values) if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(values.get("ddconfig"), dict):
        raise UserError(f"{path} does not describe a VQGAN: it has no model.params.ddconfig. Get the file again.")
    return values


def diffusers_config(parameters: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of `diffusers.VQModel`.

    Raises:
        UserError: a value is missing, is none that such a network has, or asks for another network.
    """
    sizes = {**parameters["ddconfig"], **{name: parameters.get(name) for name in ("embed_dim", "n_embed")}}
    wrong = [name for name in NUMBERS if not _is_count(sizes.get(name))]
    wrong += [name for name in LISTS if not _are_counts(sizes.get(name))]
    if not wrong:
        channels = [sizes["ch"] * factor for factor in sizes["ch_mult"]]
        usable = all(one % NORM_GROUPS == 0 and one <= MAX_CHANNELS for one in channels)
        wrong = [] if usable else ["ch", "ch_mult"]
        wrong += [name for name in ("in_channels", "out_ch") if sizes[name] != 3]  # colors
        wrong += ["num_res_blocks"] if sizes["num_res_blocks"] > MAX_BLOCKS else []
    if wrong:
        raise UserError(f"{path} has no usable value for {', '.join(wrong)}. Get the file again.")
    if sizes.get("double_z") or sizes["z_channels"] != sizes["embed_dim"]:
        raise UserError(f"{path} describes another autoencoder than a Gumbel VQGAN. Accepted: the VQGAN of OFA.")
    levels = len(sizes["ch_mult"])
    has_attention = [sizes["resolution"] // 2**level in sizes["attn_resolutions"] for level in range(levels)]
    return {
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_ch"],
        "block_out_channels": channels,
        "layers_per_block": sizes["num_res_blocks"],
        "down_block_types": ["AttnDownEncoderBlock2D" if one else "DownEncoderBlock2D" for one in has_attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if one else "UpDecoderBlock2D" for one in has_attention[::-1]],
        "latent_channels": sizes["z_channels"],
        "vq_embed_dim": sizes["embed_dim"],
        "num_vq_embeddings": sizes["n_embed"],
        "norm_num_groups": NORM_GROUPS,
        "sample_size": sizes["resolution"],
        "lookup_from_codebook": True,
    }


def _is_count(value: Any) -> bool:
    """Whether a value is a positive number of a network's size."""
    return type(value) is int and 0 < value <= 2**20


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 16 and all(map(_is_count, value))


def with_vqgan(
    vqgan: str | Path | None, settings: str | Path | None, say: Callable[[str], None] = lambda step: None
) -> VQGANSource:
    """The VQGAN that a user names.

    Raises:
        UserError: one of the two files is not given.
    """
    if vqgan is None or settings is None:
        raise UserError(
            "This checkpoint draws images, for which it needs its VQGAN: add --vqgan last.ckpt and --vqgan-config "
            "model.yaml. Both are in the published image_gen_large_best.zip, which you can also convert itself."
        )
    say(f"reading {Path(vqgan).name}")
    return VQGANSource(vqgan, settings)
