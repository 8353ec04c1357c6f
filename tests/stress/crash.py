"""Jobs killed at random moments and jobs on a disk that fills up: what was good before stays good, a second run
completes, and nothing is lost, doubled or half there."""

import csv
import hashlib
import itertools
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import small_checkpoints
import tiny_shop
from PIL import Image
from stress import processes
from stress.pieces import Figures

from hub_upload.__main__ import main as hub_upload
from ofa_hf.cli import main as ofa_hf


FILL_LEVELS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)  # free space at the start, of what the job needs
WORDS_OF_A_FULL_DISK = ("Free some",)


class Job:
    """A command and what must be true before, after it was killed, and at its end.

    Args:
        folder: where the job's inputs go; made once, read by every run.
    """

    name = "job"
    size_of_disk = 1 << 27  # bytes; more than it needs twice over
    kill = staticmethod(processes.kill)  # how one process of it dies; every second time all die at once

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)

    def begin(self, place: Path) -> None:
        """Lay down in an empty place what an earlier run left, if that matters."""

    def run(self, place: Path) -> int:
        """The command as a user gives it; returns its exit status. Also that of the second run."""
        raise NotImplementedError

    def look(self, place: Path) -> None:
        """After the job was killed: what lies there is whole, or is not taken for a result."""

    def check(self, place: Path) -> None:
        """After a run that came to its end: everything is there once, and nothing else."""
        raise NotImplementedError


def digests(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """File → digest for all files below a folder, except `but` some and the code, of which the name alone counts."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in but]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes() * (path.suffix != ".py")).hexdigest()
        for path in files
    }


class Convert(Job):
    """Convert over an earlier conversion, which was made with another prompt."""

    name = "convert"
    size_of_disk = 1 << 28  # it asks for 100 MiB to spare
    options: tuple[str, ...] = ("--no-verify",)
    changing = ("conversion.json", "README.md")  # they tell how long the proof took, and the day

    def __init__(self, folder: Path):
        super().__init__(folder)
        config = small_checkpoints.make_config()
        weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
        small_checkpoints.write_official(folder / "tiny.pt", weights, small_checkpoints.make_arguments())
        small_checkpoints.write_vocabulary(folder / "vocab.txt")
        assert self.convert(folder / "new") == 0
        assert self.convert(folder / "old", "--prompt", "这段文字", "--no-verify") == 0
        self.new, self.old = (digests(folder / name, self.changing) for name in ("new", "old"))
        assert self.new != self.old

    def convert(self, out: Path, *options: str) -> int:
        files = [str(self.folder / "tiny.pt"), str(out), "--vocab", str(self.folder / "vocab.txt")]
        return ofa_hf(["convert", *files, *self.options, *options])

    def begin(self, place: Path) -> None:
        shutil.copytree(self.folder / "old", place / "out")

    def run(self, place: Path) -> int:
        return self.convert(place / "out", "--overwrite")

    def look(self, place: Path) -> None:
        if not (place / "out").exists():  # killed between two renames: the earlier one is put back by the next run
            (kept,) = place.glob(".out.unfinished-*/previous")
            assert digests(kept, self.changing) == self.old, "the earlier folder was kept, but changed"
            return
        assert digests(place / "out", self.changing) in (self.old, self.new), "neither the earlier folder nor the new"

    def check(self, place: Path) -> None:
        assert digests(place / "out", self.changing) == self.new, "not the new folder"
        assert [path.name for path in place.iterdir()] == ["out"], list(place.iterdir())


class ConvertWithProof(Convert):
    """The same with the proof by a fresh process, which lives on when its parent is killed."""

    name = "convert with proof"
    options = ()


class ConvertPastTheCheck(Convert):
    """The same where the room is there at the start, and somebody else takes it."""

    name = "convert past the check"

    def run(self, place: Path) -> int:
        from ofa_hf.conversion import convert as module

        module.check_room = lambda *_: None
        return super().run(place)


class PrepareData(Job):
    """Build MUGE's rows beside those of another split, with two processes."""

    name = "prepare data"

    def __init__(self, folder: Path, images: int = 400):
        super().__init__(folder)
        self.files, self.others = (tiny_shop.write_muge(folder, name, n) for name, n in (("a", images), ("b", 5)))
        self.expected, self.expected_others = (
            self.rows_of(files, folder / "cache") for files in (self.files, self.others)
        )

    def rows_of(self, files: dict[str, str], cache: Path) -> list[dict]:
        from ofa_hf.data import load_muge

        return list(load_muge(files["caption_file"], files["image_file"], num_proc=2, cache_dir=cache))

    def begin(self, place: Path) -> None:
        self.rows_of(self.others, place / "cache")

    def run(self, place: Path) -> int:
        from ofa_hf.errors import UserError

        try:
            return 0 if self.rows_of(self.files, place / "cache") == self.expected else 3
        except UserError as error:
            print(f"data: {error}")
            return 1

    def look(self, place: Path) -> None:
        assert self.rows_of(self.others, place / "cache") == self.expected_others, "the other split has other rows"

    def check(self, place: Path) -> None:
        assert self.rows_of(self.files, place / "cache") == self.expected, "the split has other rows"
        left = [path.name for path in (place / "cache").iterdir() if path.is_dir() and "incomplete" in path.name]
        assert not left, left


class Caption(Job):
    """Caption a folder into a file."""

    name = "caption into jsonl"
    ending = "jsonl"

    def __init__(self, folder: Path, images: int = 40):
        super().__init__(folder)
        self.model = tiny_shop.write_model(folder / "model")
        (folder / "shop").mkdir()
        noise = random.Random(0)
        for number in range(images):
            pixels = noise.randbytes(12 * 12 * 3)
            Image.frombytes("RGB", (12, 12), pixels).save(folder / "shop" / f"{number:03}.png")
        (folder / "expected").mkdir()
        assert self.run(folder / "expected") == 0
        self.expected = self.read(folder / "expected")
        assert len(self.expected) == images

    def run(self, place: Path) -> int:
        output = str(place / f"captions.{self.ending}")
        inputs = [str(self.folder / "shop"), "--model", str(self.model)]
        return ofa_hf(["caption", *inputs, "--output", output, "--batch-size", "4", "--device", "cpu"])

    def read(self, place: Path) -> list[tuple[str, str]]:
        return read_captions((place / f"captions.{self.ending}").read_text(encoding="utf-8"), self.ending)

    def look(self, place: Path) -> None:
        path = place / f"captions.{self.ending}"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = read_captions(text[: text.rfind("\n") + 1], self.ending)  # the last line may be torn
        assert whole == self.expected[: len(whole)], whole

    def check(self, place: Path) -> None:
        assert self.read(place) == self.expected, self.read(place)


class CaptionCsv(Caption):
    name = "caption into csv"
    ending = "csv"


def read_captions(text: str, ending: str) -> list[tuple[str, str]]:
    """Image and caption of every line."""
    lines = text.removeprefix("\ufeff").splitlines()  # by which spreadsheets know UTF-8
    rows = csv.DictReader(lines) if ending == "csv" else map(json.loads, lines)
    return [(row["file"], row["caption"]) for row in rows]


class CaptionInTwo(Caption):
    """The same in two processes, whose parts are merged in the end."""

    name = "caption in two processes"
    kill = staticmethod(processes.kill_last_born)

    def run(self, place: Path) -> int:
        return in_two_processes(partial(super().run, place))

    def look(self, place: Path) -> None:
        """The parts are no result yet, and the whole file's rows stand in the order in which they were merged."""

    def check(self, place: Path) -> None:
        assert sorted(self.read(place)) == sorted(self.expected)
        assert [path.name for path in place.iterdir()] == ["captions.jsonl"]


def in_two_processes(command: Callable[[], int]) -> int:
    """Run a command as `torchrun --nproc_per_node 2` does; when one process fails, the other is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {start_rank(rank, port, command) for rank in (0, 1)}
    while ranks:
        number, status = os.wait()
        ranks.discard(number)
        if status:
            for other in ranks:
                processes.kill(other)
            return max(1, os.waitstatus_to_exitcode(status))
    return 0


def start_rank(rank: int, port: int, command: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    os._exit(processes.status_of(command))


class Finetune(Job):
    """Train, and go on from the newest complete checkpoint."""

    name = "finetune"
    options: tuple[str, ...] = ()
    tolerance = 0.0  # between the weights of a run that was killed and of one that was not

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.arguments = tiny_shop.write_arguments(folder / "args.json", self.shop(folder / "shop"))
        status = processes.run(partial(self.run, folder / "expected"), folder / "log")
        assert status == 0, processes.tail(folder / "log")

    def shop(self, folder: Path) -> dict:
        return {**tiny_shop.write_shop(folder), "disable_tqdm": True}

    def run(self, place: Path) -> int:
        from ofa_hf.training.resume import checkpoints_in, is_complete

        can_go_on = any(map(is_complete, checkpoints_in(place / "out")))
        again = ["--resume_from_checkpoint", "true"] if can_go_on else []
        return ofa_hf(["finetune", str(self.arguments), "--output_dir", str(place / "out"), *self.options, *again])

    def check(self, place: Path) -> None:
        runs, noise = (self.folder / "expected" / "out", place / "out"), tiny_shop.NOISE if self.tolerance else ()
        assert tiny_shop.largest_difference(*runs, but=noise) <= self.tolerance
        results = json.loads((place / "out" / "finetune_results.json").read_text(encoding="utf-8"))
        assert results["steps"] == 8


class FinetuneInTwo(Finetune):
    """The same in two processes that share the work."""

    name = "finetune in two processes"
    kill = staticmethod(processes.kill_last_born)
    options = ("--per_device_train_batch_size", "6", "--ddp_backend", "gloo")

    def run(self, place: Path) -> int:
        return in_two_processes(partial(super().run, place))


class FinetuneWithALateProcess(FinetuneInTwo):
    """The same where the second process is late with its part of a checkpoint, which random moments hit too rarely."""

    name = "finetune with a late process"

    def __init__(self, folder: Path):
        Job.__init__(self, folder)
        self.arguments = tiny_shop.write_arguments(folder / "args.json", self.shop(folder / "shop"))

    def run(self, place: Path) -> int:
        from transformers import Seq2SeqTrainer

        save = Seq2SeqTrainer._save_rng_state

        def save_late(trainer, folder):
            time.sleep(trainer.args.process_index)
            save(trainer, folder)

        Seq2SeqTrainer._save_rng_state = save_late
        return super().run(place)


class FinetuneCached(Finetune):
    """The same with the encoder's outputs kept on disk, which a batch of other images gives with other last bits."""

    name = "finetune with the cache"
    options = ("--cache_encoder_outputs", "true", "--freeze_word_embed", "true")
    tolerance = 2e-5


class Bundle(Job):
    """Lay out the files that go up, over an earlier layout."""

    name = "bundle"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.model = Convert(folder / "convert").folder / "new"
        assert self.run(folder / "expected") == 0
        self.expected = digests(folder / "expected" / "new" / "bundle")

    def begin(self, place: Path) -> None:
        assert self.run(place) == 0

    def run(self, place: Path) -> int:
        return hub_upload(["bundle", str(self.model), "--work", str(place)])

    def look(self, place: Path) -> None:
        folder = place / "new" / "bundle"
        if not folder.exists():  # killed between two renames
            (folder,) = (place / "new").glob(".bundle.unfinished-*/previous")
        assert digests(folder) == self.expected, f"{folder.name} is not the earlier layout"

    def check(self, place: Path) -> None:
        assert digests(place / "new" / "bundle") == self.expected, "not the same layout"
        left = {path.name for path in (place / "new").iterdir()} - {"bundle", ".bundle.staged"}
        assert not left, left


QUICK = (Convert, PrepareData, Caption, Bundle)
SLOW = (ConvertWithProof, CaptionCsv, CaptionInTwo, Finetune, FinetuneInTwo, FinetuneCached)
QUICK_ON_A_FULL_DISK = (ConvertPastTheCheck, PrepareData, Caption, Bundle)
SLOW_ON_A_FULL_DISK = (Convert, CaptionCsv, Finetune, FinetuneCached)


# -------------------------------------------------------------------------------------------------- kills


def kill_when_a_checkpoint_looks_complete(seed: int, amount: int, folder: Path) -> Figures:
    """Kill training in two processes as soon as a checkpoint has its last file; the late process's part is there."""
    job, last_file = FinetuneWithALateProcess(folder / "inputs"), Path("out/checkpoint-2/trainer_state.json")
    for number in range(amount):
        place, log = folder / f"kill-{number}", folder / f"kill-{number}.log"
        child = processes.fork(partial(job.run, place), log)
        while not (place / last_file).exists():
            assert processes.ended(child, 0.005) is None, processes.tail(log)
        processes.kill_group(child)
        assert (place / last_file).with_name("rng_state_1.pth").exists(), f"kill {number}"
    return {"kills": amount}


def kill_often(job: Job, seed: int, kills: int, folder: Path) -> Figures:
    """Kill a job at moments spread over all its duration, each time in a fresh place, and run it again.

    Returns:
        kills, how many came before the end, seconds of an undisturbed run.
    """
    chance, hits = random.Random(seed), 0
    seconds = timed_run(job, folder / "undisturbed")
    for number in range(kills):
        place = fresh(job, folder / f"kill-{number}")
        moment = (number + chance.random()) / kills * seconds
        end = processes.kill_group if number % 2 else job.kill
        hits += processes.run_and_kill(partial(job.run, place), log_of(place), moment, end)
        job.look(place)
        status = processes.run(partial(job.run, place), log_of(place))
        assert status == 0, f"{job.name}, killed after {moment:.3f} s: {status}\n{processes.tail(log_of(place))}"
        job.check(place)
        shutil.rmtree(place)
    return {"kills": kills, "before the end": hits, "seconds a run": round(seconds, 2)}


def fresh(job: Job, place: Path) -> Path:
    place.mkdir(parents=True)
    job.begin(place)
    return place


def log_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def timed_run(job: Job, place: Path) -> float:
    fresh(job, place)
    start = time.perf_counter()
    status = processes.run(partial(job.run, place), log_of(place))
    seconds = time.perf_counter() - start
    assert status == 0, f"{job.name}: {status}\n{processes.tail(log_of(place))}"
    job.check(place)
    shutil.rmtree(place)
    return seconds


# ---------------------------------------------------------------------------------------------- full disk


def fill_often(job: Job, seed: int, fills: int, folder: Path) -> Figures:
    """Run a job on a disk that has only a part of the room it needs, then free the disk and run it again.

    Returns:
        runs, how many did not fit, the longest message in characters.

    Raises:
        NotHere: this process may not mount a disk.
    """
    needed, chance = room_needed(job, folder / "room"), random.Random(seed)
    levels = itertools.chain(FILL_LEVELS[:fills], iter(chance.random, None))
    refused, longest = 0, 0
    for number, level in enumerate(itertools.islice(levels, fills)):
        with processes.small_disk(folder / f"disk-{number}", job.size_of_disk) as disk:
            place, log = fresh(job, disk / "place"), folder / f"disk-{number}.log"
            ballast = processes.leave_free(disk, int(level * needed))
            status = processes.run(partial(job.run, place), log)
            if status:
                refused += 1
                longest = max(longest, len(message_of_a_full_disk(job, status, log)))
                job.look(place)
            ballast.unlink()
            status = processes.run(partial(job.run, place), log)
            assert status == 0, f"{job.name}, after a disk {level:.0%} free: {status}\n{processes.tail(log)}"
            job.check(place)
    return {"runs": fills, "did not fit": refused, "longest message": longest}


def message_of_a_full_disk(job: Job, status: int, log: Path) -> str:
    """The one clear line a full disk must end in."""
    text = log.read_text(encoding="utf-8")
    last = text.splitlines()[-1] if text.strip() else ""
    assert status == 1, f"{job.name}: {status}\n{processes.tail(log)}"
    assert "Traceback" not in text, f"{job.name}\n{processes.tail(log, 40)}"
    assert any(words in last for words in WORDS_OF_A_FULL_DISK), f"{job.name}\n{processes.tail(log)}"
    return last


def room_needed(job: Job, folder: Path) -> int:
    """Bytes that a job takes on a disk at its peak, the place itself included."""
    with processes.small_disk(folder, job.size_of_disk) as disk:
        place, before = fresh(job, disk / "place"), processes.used_bytes(disk)
        child, peak = processes.fork(partial(job.run, place), folder.with_suffix(".log")), 0
        while (status := processes.ended(child, 0.002)) is None:
            peak = max(peak, processes.used_bytes(disk))
        assert status == 0, processes.tail(folder.with_suffix(".log"))
        return max(peak, processes.used_bytes(disk)) - before


# ------------------------------------------------------------------------------------------------- pieces


def each_job(
    measure: Callable[[Job, int, int, Path], Figures], jobs: Sequence[type[Job]], seed: int, amount: int, folder: Path
) -> Figures:
    """Figures by job, each in a folder of its own."""
    places = {job: folder / job.name.replace(" ", "-") for job in jobs}
    return {job.name: measure(job(place / "inputs"), seed, amount, place) for job, place in places.items()}


kills = partial(each_job, kill_often, QUICK)
kills_of_long_jobs = partial(each_job, kill_often, SLOW)
full_disk = partial(each_job, fill_often, QUICK_ON_A_FULL_DISK)
full_disk_of_long_jobs = partial(each_job, fill_often, SLOW_ON_A_FULL_DISK)
