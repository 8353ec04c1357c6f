"""The steps from a name to a published model; each does what stands before it, and finds what is done already."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hub_upload.verify import verify_folder
from ofa_hf.catalogue.published import CATALOGUE
from ofa_hf.conversion.convert import convert, file_digest
from ofa_hf.conversion.download import download_file
from ofa_hf.conversion.sources import open_source
from ofa_hf.errors import UserError
from ofa_hf.publishing.bundle import Bundle, bundle_of
from ofa_hf.publishing.card import write_card
from ofa_hf.publishing.facts import ACCOUNT_FILE, read_json
from ofa_hf.publishing.push import Destination, check_repo_id, connect, patiently, prepare_repository, push


@dataclass
class Job:
    """One model on its way to the Hub.

    Args:
        target: Hub-ready folder, official file, legacy folder, catalogue name, or Hub id of a legacy repository.
        work: folder for what is made: `<name>/model` and `<name>/bundle`.
        overlays: folders with other packages (another transformers) to verify with too.
        source: to compare a Hub-ready folder's weights with; a converted one is compared with what it was made from.
        send: really upload.
        tell: called with what happens now.
    """

    target: str
    work: Path
    vocab: str | None = None
    licence: str | None = None
    repo_id: str | None = None
    overlays: tuple[Path, ...] = ()
    source: str | None = None
    send: bool = False
    private: bool | None = None
    branch: str | None = None
    pull_request: bool = False
    message: str | None = None
    tell: Callable[[str], None] = lambda step: None

    @classmethod
    def from_arguments(cls, target: str, args: argparse.Namespace, tell: Callable[[str], None]) -> "Job":
        values = vars(args)
        name = Path(target).resolve().name if Path(target).exists() else target.replace("/", "--")
        repo_id = target if args.command == "upgrade" else args.repo_id
        if repo_id:
            check_full_name(repo_id)
        return cls(
            target,
            Path(args.work) / name.removesuffix(".pt"),
            args.vocab,
            args.licence,
            repo_id,
            overlays=tuple(map(Path, values.get("transformers", ()))),
            source=values.get("source"),
            send=values.get("upload", False),
            private=values.get("private") or None,
            branch=values.get("branch"),
            pull_request=values.get("pull_request", False),
            message=values.get("message"),
            tell=tell,
        )

    # -- one step each, for the command line

    def fetch(self) -> dict[str, Any]:
        """Download the source of a published checkpoint."""
        if is_hub_ready(Path(self.target)):
            return {"source": self.target}
        published = CATALOGUE.get(self.target)
        if published and published.url and not Path(self.target).exists():
            self.tell(f"fetching {published.url}")
            return {"source": str(download_file(published.url))}
        return {"source": str(open_source(self.target).weights_file)}

    def convert(self) -> dict[str, Any]:
        return {"model": str(self.model_folder())}

    def card(self) -> dict[str, Any]:
        return {"card": str(write_card(self.model_folder(), self.repo_id, self.licence))}

    def bundle(self) -> dict[str, Any]:
        bundle, folder = self.staged()
        return {"bundle": str(folder), "bytes": bundle.size, "files": bundle.lines()}

    def verify(self) -> dict[str, Any]:
        bundle, folder = self.staged()
        return {"bundle": str(folder), "bytes": bundle.size, "verified": self.verified(folder)}

    def upload(self) -> dict[str, Any]:
        bundle, folder = self.staged()
        result = {"bundle": str(folder), "bytes": bundle.size, "files": bundle.lines()}
        return result | (self.sent(bundle) if self.send else {})

    def publish(self) -> dict[str, Any]:
        bundle, folder = self.staged()
        result = {"bundle": str(folder), "bytes": bundle.size, "files": bundle.lines()}
        result["verified"] = self.verified(folder)
        return result | (self.sent(bundle) if self.send else {})

    def upgrade(self) -> dict[str, Any]:
        """Publish a legacy repository in its own place, unless that was done before."""
        api = HfApi()
        info = patiently(lambda: api.model_info(self.target, revision=self.branch), self.target)
        if ACCOUNT_FILE in {file.rfilename for file in info.siblings or ()}:
            return {"repository": self.target, "state": "was upgraded already; nothing to do"}
        return self.publish()

    # -- what the steps are made of

    def model_folder(self) -> Path:
        """The Hub-ready folder: the target itself, an earlier conversion of the same source, or a new one."""
        if is_hub_ready(Path(self.target)):
            return Path(self.target)
        folder = self.work / "model"
        self.source = self.source or self.target
        if not self.is_converted(folder):
            convert(self.target, folder, self.vocab, overwrite=True, progress=self.tell)
        return folder

    def is_converted(self, folder: Path) -> bool:
        """Whether a folder was made from these very bytes before."""
        account = read_json(folder / ACCOUNT_FILE, needed=False) if folder.is_dir() else {}
        if not account:
            return False
        same = account["source"]["sha256"] == file_digest(open_source(self.target).weights_file)
        if same:
            self.tell(f"{folder} was converted from the same source before and is taken as it is")
        return same

    def staged(self) -> tuple[Bundle, Path]:
        """The bundle, and a folder that holds nothing else."""
        bundle = bundle_of(self.model_folder(), self.repo_id, self.licence)
        self.tell(f"laying out {len(bundle.files)} files, {bundle.size:,} bytes")
        return bundle, bundle.stage(self.work / "bundle")

    def verified(self, folder: Path) -> list[str]:
        self.tell("verifying in a fresh process without this package")
        return [report.line() for report in verify_folder(folder, self.source, self.overlays, self.tell)]

    def sent(self, bundle: Bundle) -> dict[str, Any]:
        """Upload; returns where it is."""
        assert self.repo_id, "the command line asks for it"
        api = connect(self.repo_id)
        wish = Destination(self.repo_id, self.private, self.branch, self.pull_request)
        self.tell(f"uploading to {self.repo_id}")
        prepare_repository(api, wish)
        done = push(api, bundle, wish, self.message)
        return {"repository": done.url, "commit": done.commit, "replaced": list(done.deleted)}


def check_full_name(repo_id: str) -> None:
    """Raises `UserError` unless it is `owner/name`: the card's snippet needs the whole name."""
    check_repo_id(repo_id)
    if "/" not in repo_id:
        raise UserError(f"{repo_id!r} has no owner. A repository is owner/name: put your account's name before it.")


def is_hub_ready(folder: Path) -> bool:
    """Whether a folder was written by this project: its settings name the code that goes with it."""
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
