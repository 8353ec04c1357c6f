"""The API reference has every public name, with what its docstring tells."""

import subprocess
import sys
from pathlib import Path

import pytest

import ofa_hf
import ofa_hf.data
import ofa_hf.training


SCRIPT = Path(__file__).parents[2] / "docs" / "make_reference.py"


def test_every_public_name_is_in_the_reference(tmp_path):
    pytest.importorskip("pdoc", reason="needs pdoc")
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True, capture_output=True)
    for module in (ofa_hf, ofa_hf.data, ofa_hf.training):
        page = (tmp_path / f"{module.__name__.replace('.', '/')}.html").read_text(encoding="utf-8")
        missing = [name for name in module.__all__ if f'id="{name}"' not in page]
        assert not missing, module.__name__
    assert "Raises:" in page or "<h6 id=" in page, "sections of the docstrings are told apart"
