"""What every test can rely on: no network, no telemetry, no token, a cache of its own, the same random numbers."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest
from forks import forks, quick_strangers  # noqa: F401


# Before transformers or huggingface_hub is imported: they read the environment once. Each worker process has its own
# cache, since code loaded from a model folder is copied there and workers would overwrite each other's.
_HF_HOME = tempfile.mkdtemp(prefix="ofa_hf_tests_")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_XET="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
)
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_MODULES_CACHE",
    "HF_DATASETS_CACHE",
    "TRANSFORMERS_CACHE",
):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none; torch is loaded only if such a test was chosen."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not _has_accelerator():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator; torch.cuda sees none here"))


def pytest_collection_finish() -> None:
    """What is imported now stays; the collector, which every run of the Trainer calls, need not look at it again."""
    gc.collect()
    gc.freeze()


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _same_random_numbers():
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
