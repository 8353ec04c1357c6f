"""Python programs in forks of one process that has imported the libraries: each starts in a moment, not in seconds.

The server has not imported this package: a fork imports it, or cannot where the program hides it. What only a process
of its own has (a launcher, another version of transformers, an environment that libraries read while they are
imported) is tested with such processes.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest


LIBRARIES = (
    "torch torch.distributed torchvision.transforms.v2 transformers.pipelines transformers.trainer_seq2seq "
    "transformers.generation transformers.models.auto.modeling_auto transformers.models.bert.tokenization_bert "
    "transformers.models.roberta.tokenization_roberta transformers.image_processing_utils "
    "transformers.processing_utils accelerate datasets peft PIL.Image safetensors.torch huggingface_hub tqdm.auto"
).split()
ADDRESS = "OFA_TESTS_FORKS"  # environment variable: the server's socket
PATIENCE = 300.0  # seconds; whatever takes longer hangs


# ------------------------------------------------------------------------------------------- in the tests


class Forks:
    """What tests ask the server, which all test processes share; the first of them starts it.

    Args:
        folder: of what the forks print.
    """

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:16]
        place = Path(tempfile.gettempdir(), f"ofa_forks_{run}")
        self.address = os.environ.setdefault(ADDRESS, f"{place}.socket")  # programs in forks ask the same server
        with contextlib.suppress(FileExistsError), open(f"{self.address}.log", "x") as log:
            command = [sys.executable, __file__, self.address, str(os.getpid())]
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while not os.path.exists(self.address):
            assert time.monotonic() < end, Path(f"{self.address}.log").read_text(encoding="utf-8")
            time.sleep(0.05)
        self.server = self.ask(user=os.getpid())

    def ask(self, **request) -> int | list[int] | None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            with connection.makefile("rw", encoding="utf-8") as stream:
                print(json.dumps(request), file=stream, flush=True)
                return json.loads(stream.readline())

    def start(self, command: Sequence[object], *, cwd=None, env: Mapping[str, str] | None = None) -> "Fork":
        """Start `[python, …]` as `subprocess.Popen` would; `env` is that of this process by default."""
        self.count += 1
        outputs = [self.folder / f"{self.count}.{name}" for name in ("stdout", "stderr")]
        for output in outputs:
            output.touch()
        words = [str(word) for word in command[1:]]
        number = self.ask(
            words=words, cwd=str(cwd or os.getcwd()), env=dict(env or os.environ), outputs=list(map(str, outputs))
        )
        return Fork(self, number, command, *outputs)

    def run(
        self, command: Sequence[object], *, cwd=None, env=None, timeout: float | None = PATIENCE, text=True, **_
    ) -> subprocess.CompletedProcess:
        """As `subprocess.run` with `capture_output=True`."""
        fork = self.start(command, cwd=cwd, env=env)
        status = fork.wait(timeout or PATIENCE)
        outputs = fork.stdout.read_bytes(), fork.stderr.read_bytes()
        outputs = [each.decode("utf-8", "backslashreplace") for each in outputs] if text else outputs
        return subprocess.CompletedProcess(command, status, *outputs)

    def run_ranks(self, command: Sequence[object], *, count: int = 2, env=None) -> list[subprocess.CompletedProcess]:
        """Run a command in several processes that work together, as `torchrun` starts them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        forks = []
        for rank in range(count):
            ranked = {**(env or os.environ), **{name: str(value) for name, value in shared.items()}}
            forks.append(self.start(command, env={**ranked, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        done = []
        for fork in forks:
            status = fork.wait() if not any(one.returncode for one in done) else fork.kill()
            texts = [path.read_text(encoding="utf-8") for path in (fork.stdout, fork.stderr)]
            done.append(subprocess.CompletedProcess(command, status, *texts))
        return done


class Fork:
    """A running fork; `stdout` and `stderr` are files."""

    def __init__(self, forks: Forks, number: int, command: Sequence[object], stdout: Path, stderr: Path):
        self.forks, self.pid, self.command = forks, number, command
        self.stdout, self.stderr = stdout, stderr
        self.status: int | None = None
        self.peak = 0  # of memory in KiB, once it has ended

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        if self.status is None and (ended := self.forks.ask(poll=self.pid)):
            self.status, self.peak = ended
        return self.status

    def wait(self, timeout: float = PATIENCE) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(list(map(str, self.command)), timeout)
            time.sleep(0.005)
        return self.status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """Kill it and what it started."""
        if self.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(self.pid, signal.SIGKILL)
        return self.wait()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """The server; it starts with the first test that asks for it."""
    return Forks(tmp_path_factory.mktemp("forks"))


@pytest.fixture
def quick_strangers(forks, monkeypatch):
    """`run_fresh` starts forks; with other packages put before ours it starts a process of its own all the same."""
    use_quick_strangers(forks, monkeypatch)


def use_quick_strangers(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    from ofa_hf import fresh_process

    def run(command: Sequence[str], *, env: Mapping[str, str], **options) -> subprocess.CompletedProcess:
        if env.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
            return subprocess.run(command, env=env, **options)
        parent, own = str(forks.server), str(os.getpid())  # with which the program ends
        return forks.run([parent if word == own else word for word in command], env=env, text=False, **options)

    quick = {"run": run, "TimeoutExpired": subprocess.TimeoutExpired, "DEVNULL": subprocess.DEVNULL}
    monkeypatch.setattr(fresh_process, "subprocess", SimpleNamespace(**quick))


# ------------------------------------------------------------------------------------------- in the server


def serve(address: str, user: str) -> None:
    """Import the libraries; then start forks, or say whether one has ended, until no process is left that asks."""
    from importlib import import_module
    from importlib.util import find_spec

    for name in LIBRARIES:
        if find_spec(name.partition(".")[0]):
            import_module(name)
    gc.freeze()  # what is imported stays, and its memory stays shared
    users = {int(user)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        listener.settimeout(1.0)
        os.rename(f"{address}.new", address)  # it is there once it answers
        while users:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                users = set(filter(is_alive, users))
                continue
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                answer = serve_one(json.loads(stream.readline()), users)
                print(json.dumps(answer), file=stream, flush=True)
    for left in (address, f"{address}.log"):
        os.remove(left)


def serve_one(request: Mapping, users: set[int]) -> int | list[int] | None:
    if "user" in request:
        users.add(request["user"])
        return os.getpid()
    if "poll" in request:
        found, status, usage = os.wait4(request["poll"], os.WNOHANG)
        return [os.waitstatus_to_exitcode(status), usage.ru_maxrss] if found else None
    return os.fork() or os._exit(live(request))


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def live(request: Mapping) -> int:
    """A fork's life: the streams, environment and arguments that were asked for; returns the exit status."""
    import atexit
    import traceback

    from stress.processes import take_own_progress_lock

    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    take_own_progress_lock()
    use_modules_cache()
    status: object = 0
    try:
        run_as_python(request["words"])
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


def use_modules_cache() -> None:
    """Let code that is loaded from model folders lie where the environment says; transformers has read it before."""
    cache = os.environ.get("HF_MODULES_CACHE") or os.path.join(os.environ["HF_HOME"], "modules")
    for module in list(sys.modules.values()):
        if getattr(module, "HF_MODULES_CACHE", None):
            module.HF_MODULES_CACHE = cache


def run_as_python(words: Sequence[str]) -> None:
    """`python WORDS`, of which `-m MODULE`, `-c CODE` and `FILE` are known."""
    import runpy

    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    first, *rest = words
    if first == "-c":
        sys.path[0:0] = [""]
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.path[0:0] = [os.getcwd()]
        sys.argv = [rest[0], *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0:0] = [str(Path(first).parent)]
        sys.argv = list(words)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
