"""Push a bundle to the Hub in one atomic commit, with retries; safe to repeat.

Weights are uploaded first, file by file; uploaded files are not sent again. They become visible with the commit.
"""

import importlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ofa_hf.errors import UserError
from ofa_hf.files import hub_files
from ofa_hf.publishing.bundle import Bundle, bundle_of


logger = logging.get_logger(__name__)

ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, doubled for each later one
LONGEST_PAUSE = 60.0  # maximum wait, even if the Hub asks for more
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
CONFLICT_STATUS = frozenset({409, 412})  # another commit came in between: read the state again and retry
MESSAGE = "Publish an OFA model with ofa_hf"

# Weights and code of an earlier version, which must be deleted; all other files of a repository are kept.
OLD_WEIGHTS = re.compile(
    r"(pytorch_model|model|tf_model|flax_model)[\w.-]*\.(bin|safetensors|h5|msgpack)(\.index\.json)?"
)
OLD_CODE = re.compile("|".join([r"modeling_ofa\w*\.py", *(re.escape(file.name) for file in hub_files())]))

Result = TypeVar("Result")


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of a broken connection; huggingface_hub has changed its HTTP library more than once."""
    found: list[type[Exception]] = [ConnectionError, TimeoutError, json.JSONDecodeError]
    for library, name in (("httpx2", "TransportError"), ("httpx", "TransportError"), ("requests", "RequestException")):
        try:
            found.append(getattr(importlib.import_module(library), name))
        except ImportError:
            continue
    return tuple(found)


@dataclass(frozen=True)
class Push:
    """The result of a push."""

    repo_id: str
    url: str  # address of the repository or the pull request
    commit: str | None  # None for a pull request, which the Hub identifies by its number
    deleted: tuple[str, ...]  # files of an earlier version


@dataclass(frozen=True)
class Destination:
    """The destination of a bundle."""

    repo_id: str
    private: bool | None = None  # None: as the account's settings say, or as the repository is
    revision: str | None = None  # a branch, created if it does not exist
    create_pr: bool = False


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Push exactly the files of a model, with its card, in one commit; safe to repeat.

    Args:
        repo_id: `owner/name`, or only a name for the account of the token.
        private: visibility of a new repository; True also refuses to push to an existing public one.
        token: by default that of the logged-in user.
        revision: branch to push to.
        create_pr: propose the commit as a pull request instead.
        license: of the weights, for the card.

    Returns:
        address of the repository or the pull request.

    Raises:
        UserError: the folder is incomplete, or the Hub refuses; nothing partial becomes visible.
    """
    destination = Destination(repo_id, private, revision, create_pr)
    bundle_of(folder, repo_id, license)  # refuse a bad folder before anything is created on the Hub
    api = connect(repo_id, token)
    full_name = prepare_repository(api, destination)
    bundle = bundle_of(folder, full_name, license)
    return push(api, bundle, Destination(full_name, private, revision, create_pr), message).url


def check_repo_id(repo_id: str) -> None:
    """Raises `UserError` if the Hub would not take this name."""
    try:
        validate_repo_id(repo_id)
        if not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*", repo_id):
            raise HFValidationError("an owner is letters, digits, - and .")
    except HFValidationError as error:
        reason = str(error).rstrip(".").replace("'", "")
        raise UserError(
            f"{repo_id!r} is not a valid repository name: {reason}. Accepted: owner/name with letters, digits, -, _ "
            f"and ., at most 96 characters. Choose such a name."
        ) from error


def connect(repo_id: str, token: str | None = None) -> HfApi:
    """A client with a token.

    Raises:
        UserError: a bad name, or no one is logged in.
    """
    check_repo_id(repo_id)
    token = token or get_token()
    if not token:
        raise UserError(
            f"Nothing can be published as {repo_id}: no Hub token was found. Create one with write access at "
            f"https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
        )
    return HfApi(token=token)


def prepare_repository(api: HfApi, destination: Destination) -> str:
    """Create the repository and the branch unless they exist, check that they are writable, and return the name.

    Raises:
        UserError: it is another kind of model's, or public although private was asked for, or out of reach.
    """
    repo_id = destination.repo_id
    made = patiently(lambda: api.create_repo(repo_id, private=destination.private, exist_ok=True), repo_id)
    repo_id = made.repo_id
    info = patiently(lambda: api.model_info(repo_id), repo_id)
    if destination.private and not info.private:
        raise UserError(
            f"{repo_id} exists and is public, but a private repository was asked for. Make it private in its settings "
            f"on the Hub, or choose another name."
        )
    refuse_other_model(api, info)
    if destination.revision:
        branch = destination.revision
        patiently(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), repo_id)
    return repo_id


def refuse_other_model(api: HfApi, info: Any) -> None:
    """Raises `UserError` if the repository holds a model of another architecture, whose files would be overwritten."""
    if "config.json" not in {file.rfilename for file in info.siblings or ()}:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = patiently(lambda: api.hf_hub_download(info.id, "config.json", local_dir=folder), info.id)
        try:
            kind = json.loads(Path(path).read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError):  # not a config that could be loaded
            return
    if kind not in (None, "ofa"):
        raise UserError(
            f"{info.id} holds a {kind} model, and its files would be overwritten; only an OFA model's repository is "
            f"updated. Check the name, or give one that does not exist yet."
        )


# ------------------------------------------------------------------------------------------------- commit


def push(api: HfApi, bundle: Bundle, destination: Destination, message: str | None = None) -> Push:
    """Commit a bundle, and delete weights and code of an earlier version in the same commit.

    Raises:
        UserError: the Hub refuses, or does not answer again and again.
    """
    repo_id, revision = destination.repo_id, destination.revision

    def commit() -> Push:
        # Created for each attempt: a used one remembers the earlier state of the Hub and would commit twice.
        additions = [CommitOperationAdd(name, one) for name, one in sorted(bundle.files.items())]
        head = api.model_info(repo_id, revision=revision)
        old = tuple(obsolete_files((file.rfilename for file in head.siblings or ()), bundle))
        info = api.create_commit(
            repo_id,
            [*additions, *map(CommitOperationDelete, old)],
            commit_message=message or MESSAGE,
            revision=revision,
            create_pr=destination.create_pr,
            parent_commit=head.sha,
        )
        return Push(repo_id, info.pr_url or f"{api.endpoint}/{repo_id}{tree(revision)}", info.oid, old)

    return patiently(commit, repo_id, once_sent=destination.create_pr)


def obsolete_files(names: Iterable[str], bundle: Bundle) -> list[str]:
    """Files of the repository that belong to an earlier version of the model."""
    old = {name for name in names if OLD_WEIGHTS.fullmatch(name) or OLD_CODE.fullmatch(name)}
    return sorted(old - bundle.files.keys())


def tree(revision: str | None) -> str:
    return f"/tree/{revision}" if revision else ""


# ------------------------------------------------------------------------------------------------ patience


def patiently(action: Callable[[], Result], repo_id: str, once_sent: bool = False) -> Result:
    """Call the Hub, with retries while they can help.

    Args:
        once_sent: do not retry after a broken connection, since the Hub may have done it already.

    Raises:
        UserError: the call failed; the text says why and what to do.
    """
    errors = transport_errors()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except OfflineModeIsEnabled as error:
            raise UserError(f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set. Unset it and run again.") from error
        except (HfHubHTTPError, RuntimeError, ValueError, OSError, *errors) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            status = status_of(cause)
            may_be_done = status is None and once_sent
            if not can_help(cause, status, errors) or may_be_done or attempt == ATTEMPTS:
                raise explain(cause, status, repo_id, attempt, may_be_done, errors) from error
            pause = pause_before(attempt, cause)
            logger.warning(f"{repo_id}: {reason_of(cause, status)}; trying again in {pause:.0f} s.")
            time.sleep(pause)
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int | None:
    """HTTP status of the Hub's response; None if there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def can_help(error: BaseException, status: int | None, errors: tuple[type[Exception], ...]) -> bool:
    """Whether the same request may succeed a little later."""
    return status in RETRY_STATUS | CONFLICT_STATUS if status else isinstance(error, errors)


def pause_before(attempt: int, error: BaseException) -> float:
    """Seconds to wait: what the Hub asks for, else doubling."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(LONGEST_PAUSE, float(asked) if asked.isdecimal() else PAUSE * 2 ** (attempt - 1))


def reason_of(error: BaseException, status: int | None) -> str:
    text = " ".join(str(error).split())[:200]
    return f"the Hub answers {status}" if status else f"the connection broke ({type(error).__name__}: {text})"


AGAIN = "Nothing partial is visible there. Run the same command again; uploaded files are not sent again."
ADVICE = {
    400: "The Hub does not accept these names or this content: {text}. Fix it and run again.",
    401: "The Hub answers 401: the token is wrong or has expired. Run `hf auth login`, or set a valid HF_TOKEN.",
    402: "The Hub answers 402: this needs a paid account. Choose a public repository, or check the account's plan.",
    403: "The Hub answers 403: the token may not write there. The name may belong to someone else: use a token with "
    "write access to it, or pass a repository of your own.",
    404: "The Hub answers 404: there is no such repository or branch, or the token may not see it. Check the name "
    "and the account of the token.",
    409: "The Hub answers 409: someone else is changing the repository, or the name is taken. " + AGAIN,
    412: "The Hub answers 412: someone else keeps changing the repository. " + AGAIN,
    413: "The Hub answers 413: a file is too large. Save the model in smaller shards.",
    429: "The Hub answers 429, too many requests, {attempts} times. Wait some minutes. " + AGAIN,
}


def explain(
    error: BaseException,
    status: int | None,
    repo_id: str,
    attempts: int,
    may_be_done: bool,
    errors: tuple[type[Exception], ...],
) -> UserError:
    """The error in words."""
    text = " ".join(str(error).split())[:300]
    if may_be_done:
        advice = (
            f"The connection broke ({type(error).__name__}) when the pull request was being opened, so it may exist. "
            f"Look among the repository's open ones before you run this again."
        )
    elif status in ADVICE:
        advice = ADVICE[status].format(text=text, attempts=attempts)
    elif status:
        advice = f"The Hub answers {status} ({attempts} attempts). {AGAIN}"
    elif isinstance(error, errors):
        advice = f"The connection broke {attempts} times ({type(error).__name__}: {text}). {AGAIN}"
    elif "metadata in README.md" in text:
        advice = f"The Hub refuses the card: {text}. Fix the block at the head of README.md, or delete that file."
    else:
        advice = f"{type(error).__name__}: {text}. {AGAIN}"
    return UserError(f"{repo_id} was not published. {advice}")
