"""What `ofa-hf export --format onnx` refuses before it traces anything; the graphs are tested end to end."""

import pytest
import tiny_shop

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.errors import UserError
from ofa_hf.export.onnx import export_onnx


for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library, reason=f"{_library} (the extra onnx) is not installed")


def test_a_setting_that_the_script_would_not_heed_is_named(tmp_path):
    folder = tiny_shop.write_model(tmp_path / "tiny")
    model = OFAForConditionalGeneration.from_pretrained(folder)
    model.generation_config.repetition_penalty = 1.3
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="repetition_penalty"):
        export_onnx(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_files_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists already"):
        export_onnx("no_such_model", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"
