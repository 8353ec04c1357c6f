"""The two rules of the house, read off the syntax trees: root files travel alone; imports point one way."""

import ast
import configparser
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofa_hf.files import hub_files


REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "ofa_hf"

HUB_FILES = hub_files()
HUB_MODULES = {file.stem for file in HUB_FILES}
STAYING_ROOT_FILES = {file.stem for file in PACKAGE.glob("*.py")} - HUB_MODULES
HUB_LIBRARIES = {"torch", "torchvision", "numpy", "PIL", "transformers", "huggingface_hub", "diffusers"}

# What code that strangers run with trust_remote_code must not need: processes, sockets, files written, text executed.
BARRED_MODULES = {
    "subprocess",
    "socket",
    "urllib",
    "http",
    "ftplib",
    "requests",
    "httpx",
    "ctypes",
    "pickle",
    "shutil",
}
BARRED_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "write_text", "write_bytes"}

LAYERS = {"hub": 1, "errors": 1, "files": 1, "fresh_process": 1, "image_formats": 1, "inert_pickle": 1, "models": 1}
LAYERS |= {
    "catalogue": 2,
    "checking": 2,
    "conversion": 2,
    "data": 2,
    "images": 2,
    "tables": 2,
    "evaluation": 2,
    "model_card": 2,
    "publishing": 2,
    "samples": 2,
}
LAYERS |= {"prediction": 3, "pages": 3}
LAYERS |= {"training": 4, "export": 4, "serving": 4}
LAYERS |= {"demo": 5}
LAYERS |= {"cli": 6, "hub_upload": 6}
STAYING_FILES = sorted(file for folder in (PACKAGE, REPOSITORY / "hub_upload") for file in folder.rglob("*.py"))
STAYING_FILES = [file for file in STAYING_FILES if file.parent != PACKAGE or file.stem in LAYERS]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, anywhere in it; relative ones begin with their dots."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def unit_of(module: str) -> str | None:
    """The unit of the house a dotted name belongs to (a key of `LAYERS`); None for other libraries."""
    top, _, rest = module.partition(".")
    if top == "hub_upload":
        return "hub_upload"
    if top != "ofa_hf":
        return None
    name = rest.partition(".")[0]
    is_folder = name != "" and (PACKAGE / name).is_dir()
    return name if is_folder or name in STAYING_ROOT_FILES else "hub"


def unit_of_file(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).parts
    return parts[0] if parts[0] == "hub_upload" else parts[1].removesuffix(".py")


def name_of(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


@pytest.mark.parametrize("file", HUB_FILES, ids=name_of)
def test_hub_file_imports_only_what_a_stranger_has_and_its_siblings(file):
    allowed = (HUB_LIBRARIES | set(sys.stdlib_module_names)) - BARRED_MODULES
    for name in imports_of(file):
        if name.startswith("."):
            sibling = name[1:].partition(".")[0]
            assert sibling in HUB_MODULES, (
                f"{name_of(file)} imports {name}: only `from .<hub file> import Name` travels"
            )
        else:
            assert name.partition(".")[0] in allowed, f"{name_of(file)} imports {name}"


@pytest.mark.parametrize("file", HUB_FILES, ids=name_of)
def test_hub_file_executes_no_text_and_writes_no_file(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            is_method = isinstance(node.func, ast.Attribute)
            barred = called in BARRED_CALLS and not (
                is_method and called in {"eval", "compile"}
            )  # model.eval() is fine
            assert not barred, f"{name_of(file)}:{node.lineno} calls {called}"
            assert called != "open" or not writes(node), f"{name_of(file)}:{node.lineno} opens a file for writing"


def writes(call: ast.Call) -> bool:
    """Whether an `open` call has a mode that writes, or one that cannot be read off the text."""
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[1:2]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)


@pytest.mark.parametrize("file", STAYING_FILES, ids=name_of)
def test_imports_point_one_way(file):
    own = unit_of_file(file)
    assert own in LAYERS, f"{own} has no layer: add it to LAYERS here and to CONTRIBUTING.md"
    for name in imports_of(file):
        assert not name.startswith("."), f"{name_of(file)} imports {name}: folders import `from ofa_hf.x import y`"
        unit = unit_of(name)
        if unit is not None:
            assert LAYERS[unit] <= LAYERS[own], (
                f"{name_of(file)} (layer {LAYERS[own]}) imports {name} ({LAYERS[unit]})"
            )


def test_folders_do_not_import_each_other_in_a_circle():
    needs = {unit: set() for unit in LAYERS}
    for file in STAYING_FILES:
        own = unit_of_file(file)
        needs[own] |= {unit for name in imports_of(file) if (unit := unit_of(name)) and unit != own}
    while free := {unit for unit, needed in needs.items() if not needed & needs.keys()}:
        needs = {unit: needed for unit, needed in needs.items() if unit not in free}
    assert not needs, f"these folders need each other: {needs}"


def test_the_network_stays_readable():
    network = PACKAGE / "modeling_ofa.py"
    assert len(network.read_text(encoding="utf-8").splitlines()) <= 800
    functions = [node for node in ast.walk(tree_of(network)) if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in functions if node.end_lineno - node.lineno >= 60} == set()


def test_few_files_travel():
    assert len(HUB_FILES) <= 14


def test_the_house_was_found():
    assert {"configuration_ofa", "modeling_ofa"} <= HUB_MODULES
    assert name_of(PACKAGE / "cli" / "__init__.py") in map(name_of, STAYING_FILES)


def test_package_and_help_text_load_no_heavy_library():
    script = (
        "import sys, ofa_hf; from ofa_hf.cli import build_parser; build_parser().format_help(); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "transformers", "datasets", "accelerate", "numpy", "PIL", "huggingface_hub"}
    assert not heavy & set(result.stdout.split())


def test_help_answers_in_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ofa_hf", "--help"], cwd=REPOSITORY, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_accepted():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    accepted = {re.sub(r">=([\d.]+).*", r"==\1", line) for line in settings["options"]["install_requires"].split()}
    lines = (REPOSITORY / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == accepted
