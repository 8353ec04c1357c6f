"""Run a program in a new process that cannot import this package and has no network, as on another machine.

A program is a Python file with `main(request: dict) -> dict`; request and answer are passed as JSON. It shares no code
with the package on purpose. The process has its own cache of remote code and ends when its parent does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError


OWN_PACKAGES = ("ofa_hf", "hub_upload")
TIMEOUT = 1800.0  # seconds; a large model on one core takes minutes
MAX_REASON = 500  # characters

# Executed by the fresh process. Arguments: folder for request and answer, program, id of the parent, names to hide.
BOOTSTRAP = '''
import json, os, runpy, sys, threading, time

folder, program, parent, *hidden = sys.argv[1:]


class Hidden:
    """Finder that makes packages impossible to import, as on a machine where they are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def end_with_parent():
    while os.getppid() == int(parent):
        time.sleep(0.2)
    os._exit(1)


threading.Thread(target=end_with_parent, daemon=True).start()
sys.meta_path.insert(0, Hidden())
with open(f"{folder}/request.json", encoding="utf-8") as file:
    request = json.load(file)
answer = runpy.run_path(program)["main"](request)
with open(f"{folder}/answer.json", "w", encoding="utf-8") as file:
    json.dump(answer, file)
'''


def run_fresh(
    program: str | Path,
    request: Mapping[str, Any],
    *,
    scratch: str | Path,
    failure: str,
    overlay: str | Path | None = None,
    hidden: Sequence[str] = OWN_PACKAGES,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """Run `main(request)` of a program in a fresh process and return its answer.

    Args:
        program: Python file; it is read and run where it is, but nothing next to it can be imported.
        request: values that JSON can represent.
        scratch: existing folder for request, answer and caches; the working directory of the process.
        failure: message of the error, in which `{reason}` is the last line that the program printed to stderr.
        overlay: folder of packages that take precedence over those of this environment.
        hidden: top-level packages that the process cannot import.

    Raises:
        UserError: the program fails or takes longer than `timeout` seconds.
    """
    scratch = Path(scratch).absolute()
    (scratch / "request.json").write_text(json.dumps(dict(request)), encoding="utf-8")
    arguments = [str(scratch), str(Path(program).absolute()), str(os.getpid()), *hidden]
    try:
        result = subprocess.run(
            [sys.executable, "-c", BOOTSTRAP, *arguments],
            cwd=scratch,
            env=fresh_environment(scratch, overlay),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {timeout:.0f} s; free some memory, or close other programs"
        raise UserError(failure.replace("{reason}", reason)) from None
    if result.returncode:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {result.returncode}"]
        raise UserError(failure.replace("{reason}", lines[-1].rstrip(".")[:MAX_REASON]))
    return json.loads((scratch / "answer.json").read_text(encoding="utf-8"))


def fresh_environment(scratch: Path, overlay: str | Path | None = None) -> dict[str, str]:
    """Environment variables of the fresh process: offline, with a modules cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    if overlay is not None:
        paths = [str(Path(overlay).absolute()), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment
