"""Caption many image files: find them, read them in threads while the model works, go on past broken ones."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageToTextPipeline, OFAProcessor
from ofa_hf.errors import UserError
from ofa_hf.image_processing_ofa import ImageError, load_image


IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .avif .jp2 .ppm .mpo".split())
BATCHES_AHEAD = 2  # read while the model works on another one
MOST_READERS = 16  # threads; a large photo takes a core some 15 ms, a fast GPU half a millisecond
MODEL_ADVICE = "Give a folder that `ofa-hf convert` or `ofa-hf finetune` wrote, or the id of such a model on the Hub."

Source = TypeVar("Source")
Small = TypeVar("Small")


def find_images(
    inputs: Iterable[str | os.PathLike], leave_out: Callable[[str], bool] = lambda file: False
) -> list[str]:
    """List image files: files as they are named, folders with all their subfolders, each file once, in order.

    In folders, hidden files and files that are not named like an image are left out.

    Args:
        leave_out: says of a file that it is none of the user's images.

    Raises:
        UserError: a folder cannot be read, or there is no image at all.
    """
    inputs = [os.path.normpath(path) for path in inputs]
    found = {}
    for path in inputs:
        for file in _walk(path) if os.path.isdir(path) else [path]:
            if not leave_out(file):
                found.setdefault(os.path.abspath(file), file)
    if not found:
        raise UserError(
            f"No images in {', '.join(inputs)}. Looked for files ending in {' '.join(sorted(IMAGE_SUFFIXES))}, in "
            f"subfolders too. Name the images one by one, or another folder."
        )
    if not any(map(os.path.exists, found.values())):
        raise UserError(f"{', '.join(inputs)[:300]}: no such file or folder. Name images, or folders of images.")
    return list(found.values())


def _walk(folder: str) -> Iterator[str]:
    def refuse(error: OSError):
        raise UserError(
            f"The folder {error.filename} cannot be read: {error.strerror}. Change its permissions, or leave it out."
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield os.path.join(parent, name)


def check_model(model: str) -> None:
    """Look whether there is such an OFA model, without loading it.

    Raises:
        UserError: it is not there, or not OFA.
    """
    if not os.path.isdir(model) and model.count("/") != 1:  # ids on the Hub are `owner/name`
        raise UserError(
            f"The model {model} is no folder on this machine and no id of the form owner/name. {MODEL_ADVICE}"
        )
    with _telling_failures(model):
        kind = OFAConfig.get_config_dict(model)[0].get("model_type")
    if kind != "ofa":
        found = f"its config.json says model_type={kind!r}" if kind else "no config.json says what it is"
        raise UserError(f"The model {model} is not OFA: {found}. {MODEL_ADVICE}")


@contextmanager
def _telling_failures(model: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise everything from OSError to bare Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise UserError(f"The model {model} cannot be loaded ({reason}). {MODEL_ADVICE}") from error


def load_captioner(model: str, device: str | None = None, dtype: str = "auto") -> OFAImageToTextPipeline:
    """Load a Hub-ready folder or Hub id as a pipeline, with this package's own code.

    Args:
        model: folder or id.
        device: as torch names it; None takes a GPU if there is one.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".

    Raises:
        UserError: it is not there, not OFA, or not whole.
    """
    check_model(model)
    with _telling_failures(model):
        processor = OFAProcessor.from_pretrained(model)
        network, loading = OFAForConditionalGeneration.from_pretrained(model, dtype=dtype, output_loading_info=True)
        _refuse_incomplete(model, loading)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return OFAImageToTextPipeline(model=network.eval(), processor=processor, device=device)


def _refuse_incomplete(model: str, loading: dict) -> None:
    missing = sorted(loading.get("missing_keys") or [])
    mismatched = sorted(str(key) for key in loading.get("mismatched_keys") or [])
    if missing or mismatched:
        raise UserError(
            f"The weights of {model} are not whole: missing {missing[:3]} ({len(missing)}), of another size "
            f"{mismatched[:3]} ({len(mismatched)}). Expected: every weight of config.json's network. Convert it again."
        )


def load_file(file: str) -> Image.Image:
    """Open an image by its path, whatever that looks like."""
    return load_image(Path(file))


def read_images(
    sources: Iterable[Source],
    size: dict[str, int],
    resample: int,
    ahead: int,
    load: Callable[[Source], Image.Image] = load_file,
) -> Iterator[tuple[Source, Image.Image | ImageError]]:
    """Read images as RGB images of one size; see `read_each`."""
    pixels = (size["width"], size["height"])

    def shrink(image: Image.Image) -> Image.Image:
        return image if image.size == pixels else image.resize(pixels, resample)

    return read_each(sources, shrink, ahead, load)


def read_each(
    sources: Iterable[Source],
    shrink: Callable[[Image.Image], Small],
    ahead: int,
    load: Callable[[Source], Image.Image] = load_file,
) -> Iterator[tuple[Source, Small | ImageError]]:
    """Read and shrink images in threads, up to `ahead` of whoever asks, so that memory stays flat.

    Gives `(source, result)` in order: what `shrink` made of the RGB image, or the error that reading ended in.

    Args:
        sources: paths, or whatever `load` takes.
    """

    def read(source: Source) -> Small | ImageError:
        try:
            return shrink(load(source))
        except ImageError as error:
            return error
        except MemoryError as error:
            return ImageError(f"{source} does not fit into memory {error}. Make it smaller first.")

    sources, waiting = iter(sources), deque()
    pool = ThreadPoolExecutor(num_readers(), thread_name_prefix="images")
    try:
        waiting.extend((source, pool.submit(read, source)) for source in islice(sources, ahead))
        while waiting:
            source, future = waiting.popleft()
            waiting.extend((source, pool.submit(read, source)) for source in islice(sources, 1))
            yield source, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def num_readers() -> int:
    """Threads that read images: this process's share of the machine's cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return max(1, min(MOST_READERS, (os.cpu_count() or 1) // processes))


def caption_files(
    captioner: OFAImageToTextPipeline,
    files: Iterable[Source],
    *,
    batch_size: int = 8,
    on_failure: Callable[[Source, ImageError], None],
    load: Callable[[Source], Image.Image] = load_file,
    **options,
) -> Iterator[tuple[Source, list[dict]]]:
    """Caption files one after another, reading the next ones while the model works.

    Args:
        captioner: what `load_captioner` gave.
        files: paths, or whatever `load` makes an RGB image of.
        batch_size: images that go through the model together.
        on_failure: called with the file and error of each image that cannot be read.
        options: of the pipeline, such as `prompt`, `num_return_sequences`, `num_beams`, `return_scores`.

    Returns:
        An iterator over `(file, captions)` in order, best caption first, each `{"caption": …}` with a `"score"` if
        asked for.
    """
    settings, names = captioner.image_processor, deque()

    def readable() -> Iterator[Image.Image]:
        ahead = (BATCHES_AHEAD + 1) * batch_size
        for file, image in read_images(files, settings.size, settings.resample, ahead, load):
            if isinstance(image, ImageError):
                on_failure(file, image)
            else:
                names.append(file)
                yield image

    for rows in captioner(readable(), batch_size=batch_size, **options):
        yield names.popleft(), [_named(row) for row in rows]


def _named(row: dict) -> dict:
    return {"caption": row["generated_text"], **({"score": row["score"]} if "score" in row else {})}


def beam_settings(captioner: OFAImageToTextPipeline, num_captions: int, num_beams: int | None) -> dict:
    """`generate` settings that give so many captions: at least one beam for each.

    Raises:
        UserError: see `check_beams`.
    """
    check_beams(num_captions, num_beams)
    default = captioner.model.generation_config.num_beams or 1
    settings = {"num_return_sequences": num_captions}
    if num_beams is not None or default < num_captions:
        settings["num_beams"] = num_beams or num_captions
    return settings


def check_beams(num_captions: int, num_beams: int | None) -> None:
    """Look whether there is at least one beam for each caption.

    Raises:
        UserError: fewer beams than captions were asked for.
    """
    if num_beams is not None and num_beams < num_captions:
        raise UserError(
            f"--num-beams {num_beams} cannot give --num-captions {num_captions}. Accepted: at least one beam for each "
            f"caption. Raise --num-beams, or leave it out."
        )
