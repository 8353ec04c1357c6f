"""`ofa-hf demo --web`: the page on this machine, with models of this machine or of the Hub."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ofa_hf.errors import UserError
from ofa_hf.models import load_pipeline
from ofa_hf.samples.examples import draw_examples


def models_to_serve(out: str | Path, models: Sequence[str]) -> list[str]:
    """The models that were named, or else the one that a demo in `out` finetuned.

    Raises:
        UserError: there is none.
    """
    own = Path(out) / "model"
    if not models and not (own / "config.json").is_file():
        raise UserError(
            f"No model for the page: none was named, and {out} holds no finished demo. Give --model DIR_OR_ID, or run "
            f"`ofa-hf demo {out}` first, which makes one in about five minutes."
        )
    return list(dict.fromkeys(models)) or [str(own)]


def serve(
    models: Sequence[str],
    *,
    host: str,
    port: int | None = None,
    tell: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until Ctrl-C; what visitors upload is deleted then.

    Args:
        port: None takes the first free one from 7860 on.
        tell: called with the address as soon as the page can be used.

    Raises:
        UserError: Gradio is missing, the first model cannot be loaded, or the port cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="ofa_hf_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "uploads")
        try:
            from ofa_hf.serving import web
        except ImportError as error:
            raise UserError(f"The page needs Gradio ({error}). Install it: `pip install 'ofa-hf[web]'`.") from error
        page = web.build_page(models, load_pipeline, draw_examples(Path(folder, "examples")))
        try:
            address = web.launch(page, server_name=host, server_port=port, quiet=True, prevent_thread_lock=True)[1]
        except OSError as error:
            at = host if port is None else f"{host}:{port}"
            raise UserError(f"The page cannot be served at {at}: {error} Give another --port or --host.") from error
        for stop in (signal.SIGINT, signal.SIGTERM):  # the first is ignored in a job that a script put aside
            signal.signal(stop, signal.default_int_handler)
        tell(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            page.close(verbose=False)
