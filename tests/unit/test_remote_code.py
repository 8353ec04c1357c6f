"""What strangers run with `trust_remote_code=True` holds nothing but the model: a list of what it may use, no more."""

import ast
import re
from collections.abc import Iterator

import pytest

from ofa_hf.configuration_ofa import AUTO_MAP, DEFAULT_PIPELINES
from ofa_hf.files import hub_files


HUB_FILES = hub_files()

STANDARD_MODULES = frozenset(
    "base64 binascii collections contextlib contextvars copy dataclasses functools inspect io itertools logging math "
    "os random re threading time types typing unicodedata warnings weakref".split()
)
LIBRARIES = frozenset("torch torchvision numpy PIL transformers huggingface_hub diffusers".split())
# Of modules that can do more than compute, what may be used. `os`: paths, and what a fork needs.
MEMBERS = {
    "os": {"PathLike", "fspath", "fsdecode", "path", "getpid", "register_at_fork"},
    "io": {"BytesIO", "StringIO"},
    "logging": {"getLogger"},
    "random": {"randint"},
    "types": {"GeneratorType", "MappingProxyType", "SimpleNamespace"},
}
BARRED_MEMBERS = {  # of libraries: files, code, processes, the network
    "torch": {"load", "save", "hub", "jit", "package", "multiprocessing", "distributed", "classes", "serialization"},
    "np": {
        "load",
        "save",
        "savez",
        "memmap",
        "fromfile",
        "loadtxt",
        "savetxt",
        "genfromtxt",
        "DataSource",
        "ctypeslib",
    },
    "numpy": {"load", "save", "savez", "memmap", "fromfile", "loadtxt", "savetxt", "genfromtxt", "DataSource"},
}
BARRED_PARTS = frozenset(  # modules and methods of libraries, wherever they stand in a dotted name
    "load_library cpp_extension hf_hub_download snapshot_download upload_file upload_folder HfApi tofile dump dumps "
    "loads find_class import_module system popen spawn fork execv execve urlopen urlretrieve getstatusoutput "
    "write_text write_bytes unlink rmtree mkdir makedirs".split()
)
BARRED_BUILTINS = frozenset(
    "eval exec compile __import__ globals locals vars setattr delattr input breakpoint exit quit __builtins__ "
    "__loader__ __spec__".split()
)
DUNDERS = frozenset("__init__ __name__ __version__ __call__ __dataclass_fields__ __post_init__ __repr__".split())


def offences(text: str) -> Iterator[str]:
    """Each place of a file that uses more than the model needs."""
    tree = ast.parse(text)
    modules = imported_names(tree)
    for node in ast.walk(tree):
        for offence in (*of_import(node), *of_name(node, modules), *of_call(node, modules)):
            yield f"line {node.lineno}: {offence}"


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name → module, of everything that is imported as a module."""
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {(alias.asname or alias.name.partition(".")[0]): alias.name for alias in aliases}


def of_import(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [(node.module, alias.name) for alias in node.names]
    else:
        return
    for module, member in names:
        top = module.partition(".")[0]
        if top not in STANDARD_MODULES | LIBRARIES:
            yield f"imports {module}"
        allowed, barred = MEMBERS.get(module), BARRED_MEMBERS.get(module, set())
        if member and (allowed is not None and member not in allowed or member in barred | BARRED_PARTS | {"*"}):
            yield f"imports {member} of {module}"
        if set(module.split(".")[1:]) & (BARRED_PARTS | BARRED_MEMBERS["torch"]):
            yield f"imports {module}"


def of_name(node: ast.AST, modules: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Name) and node.id in BARRED_BUILTINS:
        yield f"uses {node.id}"
    if not isinstance(node, ast.Attribute):
        return
    if node.attr.startswith("__") and node.attr not in DUNDERS or node.attr in BARRED_PARTS:
        yield f"uses .{node.attr}"
    owner = modules.get(getattr(node.value, "id", None), "")
    if node.attr not in MEMBERS.get(owner, {node.attr}) or node.attr in BARRED_MEMBERS.get(owner, ()):
        yield f"uses {owner}.{node.attr}"


def of_call(node: ast.AST, modules: dict[str, str]) -> Iterator[str]:
    """`open` reads, and names of modules are not looked up by text."""
    if not isinstance(node, ast.Call):
        return
    called = getattr(node.func, "id", "")
    if called == "open" and [getattr(mode, "value", None) for mode in node.args[1:]] != ["rb"]:
        yield "opens a file for more than reading"
    if called in ("getattr", "hasattr") and getattr(node.args[0], "id", None) in modules and not is_text(node.args[1]):
        yield f"looks a name up in {node.args[0].id}"
    if called == "getattr" and is_text(node.args[1]) and node.args[1].value in BARRED_PARTS | BARRED_BUILTINS:
        yield f"uses {node.args[1].value}"


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("file", HUB_FILES, ids=lambda file: file.name)
def test_remote_code_uses_nothing_but_what_a_model_needs(file):
    assert not list(offences(file.read_text(encoding="utf-8"))), file.name


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess",
        "import socket",
        "from urllib.request import urlopen",
        "import importlib",
        "import ctypes",
        "import pickle",
        "import sys",
        "from os import system",
        "from io import open",
        "from torch import load",
        "import torch.hub",
        "from torch.utils.cpp_extension import load_inline",
        "from huggingface_hub import hf_hub_download",
        "from numpy import *",
        "import os\nos.system('id')",
        "import os as harmless\nharmless.remove('x')",
        "import os\nos.environ['TOKEN']",
        "import os\ngetattr(os, 'sys' + 'tem')('id')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.ops.load_library('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import io\nio.open('x', 'w')",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "().__class__.__subclasses__()",
        "print.__globals__",
        "globals()['x']",
        "open('x', 'w')",
        "open('x', mode='w')",
        "open('x')",
        "open('x', *['w'])",
        "self.path.write_text('x')",
    ],
)
def test_the_list_notices_what_hostile_code_would_use(text):
    assert list(offences(text))


RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)  # as transformers finds them
ENTRIES = {name.split(".")[0] for name in (*AUTO_MAP.values(), *(one["impl"] for one in DEFAULT_PIPELINES.values()))}


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_an_entry_file_names_every_file_it_needs(entry):
    """transformers 4 copies only the files that an entry of auto_map imports itself, not those that these import."""
    imports = {file.stem: set(RELATIVE_IMPORT.findall(file.read_text(encoding="utf-8"))) for file in HUB_FILES}
    needed = set(imports[entry])
    while more := set().union(*(imports[name] for name in needed)) - needed:
        needed |= more
    assert needed - {entry} <= imports[entry]
