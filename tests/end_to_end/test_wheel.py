"""What is installed from the wheel is all of the package: code, recipes, catalogue, templates."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "ofa_hf", "hub_upload")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the wheel was installed; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, folder / "source" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    pip("install", "--no-deps", "--no-index", "--target", folder / "installed", *folder.glob("*.whl"))
    return folder / "installed"


def pip(*words: object) -> None:
    ran = subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, words)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def run(forks, installed: Path, *words: str) -> subprocess.CompletedProcess:
    """A process that finds the installed package, and not the repository."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    return forks.run([sys.executable, *words], cwd=installed, env=environment)


def package_files(root: Path) -> set[str]:
    files = (file for name in ("ofa_hf", "hub_upload") for file in (root / name).rglob("*") if file.is_file())
    return {str(file.relative_to(root)) for file in files if "__pycache__" not in file.parts}


def test_every_file_of_the_package_is_in_the_wheel(installed):
    assert package_files(installed) == package_files(REPOSITORY)
    assert "ofa_hf/training/recipes/article.json" in package_files(installed)


def test_the_command_starts(installed, forks):
    told = run(forks, installed, "-m", "ofa_hf", "--help")
    assert told.returncode == 0
    assert "finetune" in told.stdout
    assert "ofa-hf = ofa_hf.cli:main" in next(installed.glob("ofa_hf-*/entry_points.txt")).read_text()


def test_a_recipe_is_found_by_its_name_and_the_catalogue_is_read(installed, forks):
    code = (
        "import ofa_hf; print(ofa_hf.__file__)\n"
        "from hub_upload.__main__ import main; main(['catalogue'])\n"
        "from ofa_hf.cli import main; print('status', main(['finetune', 'article']))"
    )
    told = run(forks, installed, "-c", code)
    assert told.stdout.startswith(str(installed)), told.stderr
    assert "caption_cn_base" in told.stdout, told.stderr
    assert "status 1" in told.stdout
    assert "model_name_or_path is missing" in told.stderr, "the recipe was not read, or the command got no further"
