"""Nothing leaves the machine unless the user asked: the journeys run with every connection refused and written down.

They run as a user's shell would run them, without the variables that keep the libraries from asking the Hub.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import small_checkpoints
import tiny_shop
from PIL import Image
from stress.pieces import Figures


TESTS = Path(__file__).parents[1]
SECONDS = 900
QUIETING = (
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
)
# Loaded by every Python process of a journey, also by those that it starts itself.
GUARD = """
import os, socket, sys

SENDING = ("connect", "sendto", "sendmsg", "bind")

def refuse(event, arguments):
    if event.removeprefix("socket.") in SENDING:
        if arguments[0].family == getattr(socket, "AF_UNIX", None):
            return  # a data loader's worker speaks to its parent
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        return
    line = f"{event} {arguments[event.removeprefix('socket.') in SENDING:]}"
    handle = os.open(os.environ["CONNECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (line + "\\n").encode())
    os.close(handle)
    raise ConnectionRefusedError(line)

sys.addaudithook(refuse)
"""


def journeys(seed: int, amount: int, folder: Path) -> Figures:
    """Every journey once; from an amount of 2 on the demo in small too."""
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    log = folder / "connections.txt"
    paths = os.pathsep.join(filter(None, [str(folder / "guard"), str(TESTS), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name not in QUIETING}
    environment = {**kept, "PYTHONPATH": paths, "CONNECTIONS": str(log), "HF_HOME": str(folder / "home")}
    script = f"from stress import network; network.travel({str(folder)!r}, {amount})"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    tried = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    assert any("guard.invalid" in line for line in tried[:1]), f"the guard was not there: {tried[:3]}"
    assert not tried[1:], f"connections were tried: {tried[1:4]}"
    return {"journeys": len(json.loads(done.stdout.splitlines()[-1])), "connections tried": len(tried) - 1}


def travel(place: str, amount: int) -> None:
    """In a process of its own: convert, load as a stranger, caption, finetune, evaluate, bundle, and the demo."""
    folder = Path(place)
    try_the_guard()
    journeys = {"convert": convert, "load": load, "caption": caption, "finetune": finetune, "evaluate": evaluate}
    journeys |= {"bundle": bundle} | ({"demo": demo} if amount > 1 else {})
    for name, journey in journeys.items():
        status = journey(folder)
        assert not status, f"{name}: {status}"
    print(json.dumps(list(journeys)))


def try_the_guard() -> None:
    import socket

    try:
        socket.create_connection(("guard.invalid", 80))
    except ConnectionRefusedError:
        return
    raise AssertionError("the guard let a connection through")


def convert(folder: Path) -> int:
    from ofa_hf.cli import main

    config = small_checkpoints.make_config()
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    small_checkpoints.write_official(folder / "tiny.pt", weights, small_checkpoints.make_arguments())
    small_checkpoints.write_vocabulary(folder / "vocab.txt")
    return main(["convert", str(folder / "tiny.pt"), str(folder / "converted"), "--vocab", str(folder / "vocab.txt")])


def load(folder: Path) -> None:
    """As strangers do who trust the code in the folder."""
    from transformers import AutoModel, AutoProcessor, pipeline

    image = Image.new("RGB", (40, 30), "red")
    model = str(folder / "converted")
    AutoModel.from_pretrained(model, trust_remote_code=True)
    AutoProcessor.from_pretrained(model, trust_remote_code=True)
    captioner = pipeline("image-to-text", model=model, trust_remote_code=True)
    captioner(image, max_new_tokens=3)


def caption(folder: Path) -> int:
    from ofa_hf.cli import main

    (folder / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32 + number), "blue").save(folder / "photos" / f"{number}.png")
    output = str(folder / "captions.jsonl")
    return main(["caption", str(folder / "photos"), "--model", str(folder / "converted"), "--output", output])


def finetune(folder: Path) -> int:
    from ofa_hf.cli import main

    shop = {**tiny_shop.write_shop(folder / "shop"), "output_dir": str(folder / "tuned"), "max_steps": 2}
    shop |= {"dataloader_num_workers": 1, "eval_strategy": "steps", "eval_steps": 2}
    return main(["finetune", str(tiny_shop.write_arguments(folder / "args.json", shop))])


def evaluate(folder: Path) -> int:
    from ofa_hf.cli import main

    files = ["--captions", str(folder / "shop" / "IC_valid.jsonl"), "--images", str(folder / "shop" / "IC_valid.tsv")]
    return main(["evaluate", "--model", str(folder / "tuned"), *files, "--json"])


def bundle(folder: Path) -> int:
    from hub_upload.__main__ import main

    return main(["bundle", str(folder / "converted"), "--work", str(folder / "work")])


def demo(folder: Path) -> None:
    from ofa_hf.demo.journey import DemoSize, run_demo
    from ofa_hf.demo.pretraining import Pretraining

    size = DemoSize(
        num_train=12,
        num_valid=4,
        image_pixels=48,
        model_pixels=32,
        pretraining=Pretraining(epochs=1, batch_size=6),
        targets_per_row=5,
        batch_captions=20,
    )
    run_demo(folder / "demo", size=size, tell=lambda line: None)
