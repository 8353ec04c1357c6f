"""A Space for models on the Hub: a repository with the page of `ofa_hf/serving/web.py`."""

import importlib.metadata
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCardData

from ofa_hf.errors import UserError
from ofa_hf.files import json_text
from ofa_hf.image_processing_ofa import VQGAN_FOLDER
from ofa_hf.publishing.bundle import Bundle
from ofa_hf.publishing.push import connect, patiently
from ofa_hf.publishing.steps import check_full_name
from ofa_hf.samples.examples import draw_examples
from ofa_hf.versions_ofa import CAN_RUN_IN_A_SPACE


APP = Path(__file__).with_name("web.py")
MARKER = "page.json"  # read by the page; also marks a Space as ours, so that it can be updated
EXAMPLE = re.compile(r"example_\d+\.jpg")
REQUIREMENTS = ("torch", "torchvision", "transformers", "pillow")  # Gradio is installed by `sdk_version`
FOR_DRAWING = "diffusers"  # also pinned if it is installed; models that draw need it
CODE = "pipeline_ofa.py"  # required in a model repository
VQGAN_FILE = f"{VQGAN_FOLDER}/config.json"  # present in the repository of a model that draws
TITLE = "OFA 看图作答 · answers about images"
MESSAGE = "Publish a page for OFA models"

TEXT = """
放上一张图片或写一句话，OFA 完成模型的各项任务：描述、定位、作答、画图，并给出分数。图片一小时后从服务器上删除。

Add an image or a text, and OFA answers for each task of the model: captions, boxes, answers, drawn images, with their
scores. Images are deleted from the server after an hour. The address with `?lang=en` shows the page in English.

Models: {models}. `page.json` names them; `app.py` is the whole page.
"""


@dataclass(frozen=True)
class Space:
    """A page to publish.

    Args:
        repo_id: `owner/name` of the Space.
        models: Hub ids; the first one is preselected.
        private: visibility of a new Space.
        report: called with a description of each step.
    """

    repo_id: str
    models: tuple[str, ...]
    title: str = TITLE
    private: bool | None = None
    message: str | None = None
    report: Callable[[str], None] = lambda step: None

    def bundle(self, work: Path) -> tuple[Bundle, Path]:
        """The files to upload, also written to a folder in `work`.

        Raises:
            UserError: the installed packages cannot be combined on a Space.
        """
        with tempfile.TemporaryDirectory() as folder:
            examples = {path.name: path.read_bytes() for path in draw_examples(Path(folder))}
        files = {
            "app.py": APP.read_bytes(),  # a copy instead of a link, which an editor would follow
            "requirements.txt": "".join(f"{line}\n" for line in requirements()).encode(),
            "README.md": space_card(self.title, self.models).encode(),
            MARKER: json_text({"models": self.models}).encode(),
            **examples,
        }
        bundle = Bundle(files)
        self.report(f"laying out {len(bundle.files)} files, {bundle.size:,} bytes")
        return bundle, bundle.stage(work / self.repo_id.replace("/", "--") / "space")

    def publish(self, bundle: Bundle) -> dict[str, Any]:
        """Create the Space unless it exists, and commit the page; safe to repeat.

        Raises:
            UserError: a model does not exist, the Space has another app, or the Hub refuses.
        """
        api = connect(self.repo_id)
        for model in self.models:
            self.look_at(api, model)
        self.report(f"uploading to the Space {self.repo_id}")
        make = {"repo_type": "space", "space_sdk": "gradio", "private": self.private, "exist_ok": True}
        patiently(lambda: api.create_repo(self.repo_id, **make), self.repo_id)
        commit = patiently(lambda: self.commit(api, bundle), self.repo_id)
        return {"space": f"{api.endpoint}/spaces/{self.repo_id}", "commit": commit}

    def look_at(self, api: HfApi, model: str) -> None:
        """Raises `UserError` if the page could not load a model."""
        try:
            info = patiently(lambda: api.model_info(model), model)
        except UserError as error:
            raise UserError(
                f"The page cannot load {model}: {error} A page needs models that are on the Hub: publish this one "
                f"first, with `python -m hub_upload publish`."
            ) from error
        names = {file.rfilename for file in info.siblings or ()}
        if CODE not in names:
            raise UserError(
                f"The page cannot load {model}: the repository has no {CODE}, as those that this project publishes "
                f"have. Publish it again, with `python -m hub_upload publish` or `upgrade`."
            )
        if VQGAN_FILE in names and FOR_DRAWING not in optional_requirements():
            raise UserError(
                f"{model} draws, which needs {FOR_DRAWING}, and the Space uses the versions of this environment, "
                f"which has none. Install it: `pip install 'ofa-hf[draw]'`."
            )
        if info.private:
            self.report(f"{model} is private: give the Space a secret HF_TOKEN that may read it, in its settings")

    def commit(self, api: HfApi, bundle: Bundle) -> str:
        head = api.space_info(self.repo_id)
        names = {file.rfilename for file in head.siblings or ()}
        if "app.py" in names and MARKER not in names:
            raise UserError(
                f"The Space {self.repo_id} holds another app, which is never replaced. Pass another --repo-id."
            )
        old = sorted(name for name in names - bundle.files.keys() if EXAMPLE.fullmatch(name))
        operations = [CommitOperationAdd(name, one) for name, one in sorted(bundle.files.items())]
        info = api.create_commit(
            self.repo_id,
            [*operations, *map(CommitOperationDelete, old)],
            commit_message=self.message or MESSAGE,
            repo_type="space",
            parent_commit=head.sha,
        )
        return info.oid


def requirements() -> list[str]:
    """The versions of the packages in this environment.

    Raises:
        UserError: the versions cannot be combined on a Space.
    """
    pinned = {name: version_of(name) for name in (*REQUIREMENTS, *optional_requirements())}
    if not CAN_RUN_IN_A_SPACE:
        raise UserError(
            f"A Space cannot have transformers {pinned['transformers']}: Gradio 6 and transformers 4 need different "
            f"versions of huggingface_hub. Run this with transformers 5."
        )
    return [f"{name}=={version}" for name, version in pinned.items()]


def optional_requirements() -> list[str]:
    """The packages that only models that draw need, if they are installed."""
    return [FOR_DRAWING] * (importlib.util.find_spec(FOR_DRAWING) is not None)


def version_of(package: str) -> str:
    """Version without the build suffix, such as +cpu in 2.15.0+cpu."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"The Space uses the versions of this environment, but {package} is not here. Install what the page "
            f"needs: `pip install 'ofa-hf[web]'`."
        ) from error


def space_card(title: str, models: Sequence[str]) -> str:
    """README.md of the Space, with the metadata that the Hub builds it from."""
    data = SpaceCardData(
        title=title,
        emoji="🖼️",
        colorFrom="indigo",
        colorTo="purple",
        sdk="gradio",
        sdk_version=version_of("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=list(models),
        short_description="Captions, boxes and answers about images",
    )
    names = ", ".join(f"[{model}](https://huggingface.co/{model})" for model in models)
    return f"---\n{data.to_yaml()}\n---\n{TEXT.format(models=names)}"


def make_space(
    repo_id: str,
    models: Sequence[str],
    work: str | Path,
    *,
    title: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    upload: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Write the files of a Space to `work`, create it on the Hub if `upload` is set, and return the result.

    Raises:
        UserError: a name is not `owner/name`, a model is not on the Hub, or the Hub refuses.
    """
    for name in (repo_id, *models):
        check_full_name(name)
    if upload:
        connect(repo_id)  # a token is asked for before any work
    space = Space(repo_id, tuple(dict.fromkeys(models)), title or TITLE, private, message, report)
    bundle, folder = space.bundle(Path(work))
    result = {"bundle": str(folder), "bytes": bundle.size, "files": bundle.lines()}
    return result | (space.publish(bundle) if upload else {})
