"""A small Hub on the loopback for tests: what the client library asks of the real one, and its bad days on request.

`with LoopbackHub() as hub:` serves `hub.endpoint`. Repositories, branches, pull requests and commits live in memory.
The name of a Space begins with `spaces/`. A `Fault` makes chosen requests fail. `hub.environment(home)` is what a
subprocess needs to use it.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LARGE = 20_000  # bytes; from here on, and with these endings, a file travels outside of the commit
LARGE_ENDINGS = (".safetensors", ".bin", ".png")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Fault:
    """Requests whose `METHOD /path` matches fail.

    Args:
        status: of the answer; 0 breaks the connection.
        times: so many of them; then all is well.
        after: do what was asked first, then fail, as when the answer is lost.
    """

    pattern: str
    status: int = 500
    times: int = 1_000_000
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Commit:
    oid: str
    files: dict[str, str]  # path → sha256
    message: str


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = itertools.chain.from_iterable(self.branches.values())
        return next((commit for commit in commits if commit.oid == revision), None)


class LoopbackHub:
    """The server and what it holds; `tokens` maps a token to its account and whether it may write."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens = {"hf_writer": ("shop", True), "hf_reader": ("shop", False), "hf_other": ("other", True)}
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.hub = True, self
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home, token: str | None = "hf_writer") -> dict[str, str]:
        """For a subprocess that uses this Hub, with a cache and nothing else of its own."""
        values = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        values |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        values |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        return values | ({"HF_TOKEN": token} if token else {})

    def make(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        """A repository with files, as somebody left it."""
        repository = self.repositories[repo_id] = Repository(private)
        empty = Commit(digest(b"empty" + repo_id.encode())[:40], {}, "initial commit")
        repository.branches["main"] = [empty]
        if files:
            repository.branches["main"].append(
                self.commit_after(empty, {n: self.keep(b) for n, b in files.items()}, "x")
            )
        return repository

    def commit_after(self, parent: Commit, files: dict[str, str], message: str) -> Commit:
        return Commit(digest(json.dumps([parent.oid, sorted(files.items()), message]).encode())[:40], files, message)

    def keep(self, content: bytes) -> str:
        self.blobs[digest(content)] = content
        return digest(content)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch holds now."""
        return {name: self.blobs[blob] for name, blob in self.repositories[repo_id].find(revision).files.items()}

    def history(self, repo_id: str, branch: str = "main") -> list[str]:
        return [commit.message for commit in self.repositories[repo_id].branches[branch]]

    def fault_for(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def owner_of(repo_id: str) -> str:
    return repo_id.removeprefix("spaces/").partition("/")[0]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer that is no success: status, the Hub's code for it, a text."""

    def __init__(self, status: int, code: str, text: str):
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def do(self) -> None:
        self.address = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(self.address.query).items()}
        self.content, path = self.read_body(), unquote(self.address.path)
        with self.hub.lock:
            request = f"{self.command} {path}"
            self.hub.requests.append(request)
            fault = self.hub.fault_for(request)
            try:
                answer = None if fault and not fault.after else self.answer(path)
            except Refused as refused:
                answer = refused
        self.send(fault, answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, fault: Fault | None, answer) -> None:
        if fault and not fault.status:
            self.close_connection = True
            self.connection.close()
            return
        if fault:
            status, body, headers = fault.status, b'{"error": "a bad day"}', fault.headers
        elif isinstance(answer, Refused):
            status, body = (
                answer.status,
                json.dumps({"error": answer.text, "errors": [{"message": answer.text}]}).encode(),
            )
            headers = {"X-Error-Message": answer.text, **({"X-Error-Code": answer.code} if answer.code else {})}
        else:
            status, body, headers = answer
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # -- who asks, and for what

    def account(self) -> tuple[str, bool] | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def writer(self, repo_id: str) -> str:
        account = self.account()
        if account is None:
            raise Refused(401, "", "Invalid username or password.")
        if not account[1] or owner_of(repo_id) != account[0]:
            raise Refused(403, "", "You don't have the rights to write there.")
        return account[0]

    def repository(self, repo_id: str) -> Repository:
        found, account = self.hub.repositories.get(repo_id), self.account()
        if found is None or found.private and (account or ("",))[0] != owner_of(repo_id):
            raise Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        return found

    def commit_of(self, repo_id: str, revision: str) -> Commit:
        commit = self.repository(repo_id).find(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def answer(self, path: str):
        for pattern, action in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return action(self, *match.groups())
        raise Refused(404, "", f"the loopback Hub has no {self.command} {path}")

    # -- routes

    def create(self):
        wish = json.loads(self.content)
        account = self.account()
        if account is None:
            raise Refused(401, "", "Invalid username or password.")
        repo_id = f"{wish.get('organization') or account[0]}/{wish['name']}"
        if wish.get("type") == "space":
            repo_id = f"spaces/{repo_id}"
            if wish.get("sdk") not in ("gradio", "docker", "static"):
                raise Refused(400, "", '"sdk" must be one of gradio, docker, static')
        self.writer(repo_id)
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            return 409, {"error": "You already created this repo", "url": url}, {}
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        self.hub.make(repo_id, private=private)
        return 200, {"url": url, "name": repo_id, "id": repo_id}, {}

    def validate_card(self):
        text = json.loads(self.content)["content"]
        block = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        try:
            values = yaml.safe_load(block[1]) if block else {}
        except yaml.YAMLError as error:
            raise Refused(400, "", f"bad YAML: {error}") from error
        if not isinstance(values.get("license", ""), str):
            raise Refused(400, "", '"license" must be a string')
        return 200, {"errors": [], "warnings": []}, {}

    def preupload(self, repo_id: str, revision: str):
        files = self.commit_of(repo_id, revision).files
        if self.query.get("create_pr") != "1":
            self.writer(repo_id)
        plans = []
        for wish in json.loads(self.content)["files"]:
            large = wish["size"] >= LARGE or wish["path"].endswith(LARGE_ENDINGS)
            old = self.hub.blobs[files[wish["path"]]] if wish["path"] in files else None
            oid = None if old is None else digest(old) if large else git_oid(old)
            mode = "lfs" if large else "regular"
            plans.append({"path": wish["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": plans}, {}

    def large_batch(self, repo_id: str):
        objects = []
        for wish in json.loads(self.content)["objects"]:
            links = {"upload": {"href": f"{self.hub.endpoint}/blobs/{wish['oid']}"}}
            actions = {} if wish["oid"] in self.hub.blobs else {"actions": links}
            objects.append({"oid": wish["oid"], "size": wish["size"], "authenticated": True, **actions})
        return 200, {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, {}

    def put_blob(self, oid: str):
        if digest(self.content) != oid:
            raise Refused(400, "", "the content is not what was announced")
        self.hub.keep(self.content)
        return 200, {}, {}

    def make_branch(self, repo_id: str, branch: str):
        repository = self.repository(repo_id)
        self.writer(repo_id)
        if branch in repository.branches:
            return 409, {"error": "Reference already exists"}, {}
        repository.branches[branch] = [repository.branches["main"][-1]]
        return 200, {}, {}

    def commit(self, repo_id: str, branch: str):
        repository, lines = self.repository(repo_id), [json.loads(line) for line in self.content.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = self.commit_of(repo_id, branch)
        proposes = self.query.get("create_pr") == "1"
        if not (proposes and self.account()):
            self.writer(repo_id)
        if header.get("parentCommit") not in (None, head.oid):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        new = self.hub.commit_after(head, self.apply(dict(head.files), lines), header["summary"])
        if proposes:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            repository.branches[branch] = list(repository.branches["main"])
        repository.branches[branch].append(new)
        answer = {
            "success": True,
            "commitOid": new.oid,
            "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{new.oid}",
        }
        if proposes:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        return 200, answer, {}

    def apply(self, files: dict[str, str], lines: list[dict]) -> dict[str, str]:
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refused(400, "", f"{value['path']} was never uploaded")
                files[value["path"]] = value["oid"]
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
                del files[value["path"]]
        return files

    def info(self, repo_id: str, revision: str | None = None):
        commit = self.commit_of(repo_id, revision or "main")
        name = repo_id.removeprefix("spaces/")
        facts = {"_id": repo_id, "id": name, "modelId": name, "sha": commit.oid, "createdAt": DATE}
        facts |= {"private": self.hub.repositories[repo_id].private, "disabled": False, "gated": False, "tags": []}
        facts |= {"downloads": 0, "likes": 0, "lastModified": DATE, "author": owner_of(repo_id)}
        return 200, {**facts, "siblings": [{"rfilename": name} for name in sorted(commit.files)]}, {}

    def entry(self, commit: Commit, name: str) -> dict:
        content = self.hub.blobs[commit.files[name]]
        facts = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
        if len(content) >= LARGE or name.endswith(LARGE_ENDINGS):
            facts["lfs"] = {"oid": commit.files[name], "size": len(content), "pointerSize": 134}
        return facts

    def tree(self, repo_id: str, revision: str, folder: str | None = None):
        commit = self.commit_of(repo_id, revision)
        if folder:
            raise Refused(404, "EntryNotFound", "no such folder")
        return 200, [self.entry(commit, name) for name in sorted(commit.files)], {}

    def paths_info(self, repo_id: str, revision: str):
        commit = self.commit_of(repo_id, revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.content)["paths"]
        else:
            wanted = parse_qs(self.content.decode()).get("paths", [])
        return 200, [self.entry(commit, name) for name in wanted if name in commit.files], {}

    def refs(self, repo_id: str):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
            for name, commits in self.repository(repo_id).branches.items()
        ]
        return 200, {"branches": branches, "tags": [], "converts": []}, {}

    def download(self, repo_id: str, revision: str, name: str):
        commit = self.commit_of(repo_id, revision)
        headers = {"X-Repo-Commit": commit.oid, "Content-Type": "application/octet-stream"}
        if name not in commit.files:
            return 404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"}
        content = self.hub.blobs[commit.files[name]]
        headers |= {"ETag": f'"{commit.files[name]}"', "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part:
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, content[first : last + 1], headers
        return 200, content, headers

    def whoami(self):
        account = self.account()
        if account is None:
            raise Refused(401, "", "Invalid username or password.")
        return 200, {"type": "user", "name": account[0], "orgs": []}, {}


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.do)  # the names that the server of the standard library looks for

REPO = r"((?:spaces/)?[^/]+/[^/]+?)"
API = rf"/api/(?:models/)?{REPO}"
ROUTES = {
    r"GET /api/whoami-v2": Handler.whoami,
    r"POST /api/repos/create": Handler.create,
    r"POST /api/validate-yaml": Handler.validate_card,
    rf"POST {API}/preupload/(.+)": Handler.preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": Handler.large_batch,
    r"PUT /blobs/([0-9a-f]{64})": Handler.put_blob,
    rf"POST {API}/branch/(.+)": Handler.make_branch,
    rf"POST {API}/commit/(.+)": Handler.commit,
    rf"GET {API}": Handler.info,
    rf"GET {API}/revision/(.+)": Handler.info,
    rf"GET {API}/tree/([^/]+)(?:/(.*))?": Handler.tree,
    rf"POST {API}/paths-info/(.+)": Handler.paths_info,
    rf"GET {API}/refs": Handler.refs,
    rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+|refs/pr/\d+)/(.+)": Handler.download,
}


def use_in_this_process(hub: LoopbackHub, monkeypatch, token: str | None = "hf_writer") -> None:
    """Point the client library, already imported and kept offline by `conftest.py`, to a loopback Hub."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http
    from transformers.utils import hub as transformers_hub

    forget = getattr(_http, "close_session", None) or _http.reset_sessions
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers_hub, "_is_offline_mode", False, raising=False)  # the copy of transformers 4
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # version 0.36 has a copy in the latter
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    forget()
