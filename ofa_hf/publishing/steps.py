"""The steps from a name to a published model; each runs the earlier ones first and reuses their results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ofa_hf.catalogue.published import CATALOGUE
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.download import download_file
from ofa_hf.conversion.sources import open_source
from ofa_hf.errors import UserError
from ofa_hf.files import file_digest, read_json
from ofa_hf.model_card.card import write_card
from ofa_hf.model_card.facts import ACCOUNT_FILE, read_report
from ofa_hf.publishing.bundle import Bundle, bundle_of
from ofa_hf.publishing.push import Destination, check_repo_id, connect, patiently, prepare_repository, push
from ofa_hf.publishing.verify import verify_folder


@dataclass
class Job:
    """One model on its way to the Hub.

    Args:
        target: Hub-ready folder, official file, legacy folder, catalogue name, or Hub id of a legacy repository.
        work: working folder, for `<name>/model` and `<name>/bundle`.
        overlays: folders with other packages (another transformers) with which to verify too.
        source: checkpoint to compare the weights of a Hub-ready folder with; converted ones use their own source.
        upload: upload; otherwise a dry run.
        report: called with a description of each step.
    """

    target: str
    work: Path
    vocab: str | None = None
    license: str | None = None
    repo_id: str | None = None
    overlays: tuple[Path, ...] = ()
    source: str | None = None
    upload: bool = False
    private: bool | None = None
    branch: str | None = None
    pull_request: bool = False
    message: str | None = None
    report: Callable[[str], None] = lambda step: None

    def __post_init__(self):
        if self.repo_id:
            check_full_name(self.repo_id)
        if self.repo_id and self.upload:
            connect(self.repo_id)  # without a token all the work would be for nothing

    def run(self, step: str) -> dict[str, Any]:
        """Run a step by its name and return its result."""
        return {
            "fetch": self.fetch,
            "convert": lambda: {"model": str(self.model_folder())},
            "card": lambda: {"card": str(write_card(self.model_folder(), self.repo_id, self.license))},
            "bundle": lambda: self.bundle(verify=False, upload=False),
            "verify": lambda: self.bundle(verify=True, upload=False),
            "upload": lambda: self.bundle(verify=False, upload=self.upload),
            "publish": lambda: self.bundle(verify=True, upload=self.upload),
            "upgrade": self.upgrade,
        }[step]()

    def fetch(self) -> dict[str, Any]:
        """Download the source of a published checkpoint."""
        if is_hub_ready(Path(self.target)):
            return {"source": self.target}
        published = CATALOGUE.get(self.target)
        if published and published.url and not Path(self.target).exists():
            self.report(f"fetching {published.url}")
            return {"source": str(download_file(published.url))}
        return {"source": str(open_source(self.target).weights_file)}

    def bundle(self, verify: bool, upload: bool) -> dict[str, Any]:
        """Collect the files to upload, and verify and upload them as requested."""
        bundle = bundle_of(self.model_folder(), self.repo_id, self.license)
        self.report(f"laying out {len(bundle.files)} files, {bundle.size:,} bytes")
        folder = bundle.stage(self.work / "bundle")
        result = {"bundle": str(folder), "bytes": bundle.size, "files": bundle.lines()}
        if verify:
            self.report("verifying in a fresh process without this package")
            reports = verify_folder(folder, self.source, self.overlays, self.report)
            result["verified"] = [report.line() for report in reports]
        return result | (self.push(bundle) if upload else {})

    def upgrade(self) -> dict[str, Any]:
        """Convert and publish a legacy repository in place, unless that was done before."""
        api = HfApi()
        info = patiently(lambda: api.model_info(self.target, revision=self.branch), self.target)
        if ACCOUNT_FILE in {file.rfilename for file in info.siblings or ()}:
            return {"repository": self.target, "state": "was upgraded before; nothing to do"}
        return self.run("publish")

    def model_folder(self) -> Path:
        """The Hub-ready folder: the target itself, an earlier conversion of the same source, or a new one."""
        if is_hub_ready(Path(self.target)):
            return Path(self.target)
        folder = self.work / "model"
        self.source = self.source or self.target
        if not self.is_converted(folder):
            convert(self.target, folder, self.vocab, overwrite=True, progress=self.report)
        return folder

    def is_converted(self, folder: Path) -> bool:
        """Whether a folder was made from exactly these bytes before."""
        account = read_report(folder / ACCOUNT_FILE)
        if not account:
            return False
        same = account["source"]["sha256"] == file_digest(open_source(self.target).weights_file)
        if same:
            self.report(f"{folder} was converted from the same source before and is reused")
        return same

    def push(self, bundle: Bundle) -> dict[str, Any]:
        """Upload and return the address."""
        assert self.repo_id, "the command line asks for it"
        api = connect(self.repo_id)
        wish = Destination(self.repo_id, self.private, self.branch, self.pull_request)
        self.report(f"uploading to {self.repo_id}")
        prepare_repository(api, wish)
        done = push(api, bundle, wish, self.message)
        return {"repository": done.url, "commit": done.commit, "replaced": list(done.deleted)}


def check_full_name(repo_id: str) -> None:
    """Raises `UserError` unless it is `owner/name`: the card's snippet needs the whole name."""
    check_repo_id(repo_id)
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} has no owner. A repository is owner/name: put your account's name before it.")


def is_hub_ready(folder: Path) -> bool:
    """Whether a folder was written by this project: its settings name the code in it."""
    try:
        return "auto_map" in read_json(folder / "config.json")
    except UserError:
        return False


def run_step(step: str, target: str, work: str | Path, overlays: Sequence[str] = (), **options) -> dict[str, Any]:
    """Run a step for a model and return its result.

    Args:
        step: fetch, convert, card, bundle, verify, upload, publish or upgrade.
        target: see `Job`.
        work: working folder; each target gets a folder in it.
        options: further fields of `Job`.
    """
    name = Path(target).resolve().name if Path(target).exists() else target.replace("/", "--")
    if step == "upgrade":
        options["repo_id"] = target
    return Job(target, Path(work) / name.removesuffix(".pt"), overlays=tuple(map(Path, overlays)), **options).run(step)
