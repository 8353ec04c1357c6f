"""The public names, loaded when first used."""

import subprocess
import sys

import pytest

import ofa_hf.training


@pytest.mark.parametrize("name", ofa_hf.training.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ofa_hf.training, name) is not None
    assert name in dir(ofa_hf.training)


def test_finetune_is_the_function_whatever_was_imported_before():
    import ofa_hf.training.finetuning

    assert callable(ofa_hf.training.finetune)


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ofa_hf.training.nothing


def test_importing_the_folder_loads_no_heavy_library():
    code = "import sys, ofa_hf.training; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
