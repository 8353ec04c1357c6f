"""`ofa-hf demo --web`: serve the page on this machine, with local models or models of the Hub."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ofa_hf.data.codes import load_vqgan
from ofa_hf.errors import UserError
from ofa_hf.models import load_pipeline, read_tasks
from ofa_hf.pipeline_ofa import OFAImageToTextPipeline
from ofa_hf.samples.examples import draw_examples


def models_to_serve(out: str | Path, models: Sequence[str]) -> list[str]:
    """The given models, or the one that a demo in `out` finetuned.

    Raises:
        UserError: there is none.
    """
    own = Path(out) / "model"
    if not models and not (own / "config.json").is_file():
        raise UserError(
            f"No model to serve: --model was not given, and {out} has no finished demo. Pass --model DIR_OR_ID, or "
            f"run `ofa-hf demo {out}` first, which trains one in about five minutes."
        )
    return list(dict.fromkeys(models)) or [str(own)]


def load_for_page(model: str) -> OFAImageToTextPipeline:
    """A model of the page.

    Raises:
        UserError: it cannot be loaded, or it draws images and its VQGAN or the library for it is missing.
    """
    if any(task.answer == "image" for task in read_tasks(model).tasks.values()):
        load_vqgan(model)
    return load_pipeline(model)


def serve(
    models: Sequence[str],
    *,
    host: str,
    port: int | None = None,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until Ctrl-C, then delete what visitors uploaded.

    Args:
        port: None takes the first free one from 7860 on.
        on_ready: called with the address when the page is ready.

    Raises:
        UserError: Gradio is missing, the first model cannot be loaded, or the port is not available.
    """
    with tempfile.TemporaryDirectory(prefix="ofa_hf_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "uploads")
        try:
            from ofa_hf.serving import web
        except ImportError as error:
            raise UserError(f"The page needs Gradio ({error}). Install it: `pip install 'ofa-hf[web]'`.") from error
        page = web.build_page(models, load_for_page, draw_examples(Path(folder, "examples")))
        try:
            address = web.launch(page, server_name=host, server_port=port, quiet=True, prevent_thread_lock=True)[1]
        except OSError as error:
            at = host if port is None else f"{host}:{port}"
            raise UserError(f"The page cannot be served at {at}: {error} Choose another --port or --host.") from error
        for stop in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored in a script's background job
            signal.signal(stop, signal.default_int_handler)
        on_ready(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            page.close(verbose=False)
