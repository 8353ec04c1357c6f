"""Memory and processor time of the data path on synthetic MUGE files: build, then iterate as training does.

    python benchmarks/data_memory.py --pictures 55000 --captions 10 --num-proc 2

prints one line of JSON: private memory above the imports (the parent and its largest worker), processor time a caption
for the build, for reading rows, and for whole batches with one decode a caption or one decode for all of a picture's.
"""

import argparse
import base64
import io
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ofa_hf.data import CaptionPairs, GroupedCaptions, GroupedCaptionSampler, caption_counts, load_muge
from ofa_hf.data.pictures import open_picture, why_broken


MIB = 2**20


def write_files(folder: Path, pictures: int, captions: int, side: int) -> tuple[Path, Path]:
    """Pictures of smooth noise, some kilobytes each; 64 different ones are enough, every line has its own id."""
    encoded = [base64.b64encode(jpeg(seed, side)) for seed in range(64)]
    with (folder / "IC_train.tsv").open("wb") as images, (folder / "IC_train.jsonl").open("w") as texts:
        for number in range(pictures):
            images.write(b"%d\t%s\n" % (number, encoded[number % 64]))
            lines = [f"时尚百搭的第{number}件商品，穿出{text}分女神范儿" for text in range(captions)]
            texts.write(json.dumps({"image_id": str(number), "text": lines}, ensure_ascii=False) + "\n")
    return folder / "IC_train.jsonl", folder / "IC_train.tsv"


def jpeg(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class PeakMemory:
    """Highest private memory of this process and of its children, sampled while the block runs."""

    def __enter__(self) -> "PeakMemory":
        self.own = self.children = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.1):
            self.own = max(self.own, private_bytes(process))
            sizes = [private_bytes(child) for child in process.children(recursive=True)]
            self.children = max(self.children, *sizes, 0) if sizes else self.children

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def private_bytes(process: psutil.Process) -> int:
    """Memory that this process alone has written; mapped files, which the system can drop, do not count."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        fields = {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        return min(fields["Private_Dirty"], fields["Anonymous"])  # without what it shares with its parent
    except (OSError, KeyError):
        pass  # not Linux, or the process has ended
    try:
        return process.memory_full_info().uss
    except psutil.Error:
        return 0


def processor_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def decode(row: dict, side: int) -> np.ndarray:
    return np.asarray(open_picture(row["image"]).resize((side, side), Image.Resampling.BICUBIC))


def measure(name: str, captions: int, work) -> dict[str, float]:
    """Run `work` and report time and peak memory; the figures are of `captions` captions."""
    before, base = processor_seconds(), private_bytes(psutil.Process())
    start = time.perf_counter()
    with PeakMemory() as peak:
        work()
    return {
        f"{name}_seconds": round(time.perf_counter() - start, 2),
        f"{name}_cpu_ms_a_caption": round(1000 * (processor_seconds() - before) / captions, 4),
        f"{name}_private_mib": round(max(0, peak.own - base) / MIB, 1),
        f"{name}_largest_worker_mib": round(peak.children / MIB, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--captions", type=int, default=10)
    parser.add_argument("--side", type=int, default=256, help="pixels of the synthetic pictures")
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--decoded", type=int, default=200, help="pictures for the two decoding measurements")
    args = parser.parse_args()
    pairs = args.pictures * args.captions
    why_broken(jpeg(0, args.side))  # loads the decoder, so that the figures below are above the imports
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), args.pictures, args.captions, args.side)
        figures = {"pictures": args.pictures, "pairs": pairs, "tsv_mib": round(files[1].stat().st_size / MIB, 1)}
        figures["imports_private_mib"] = round(private_bytes(psutil.Process()) / MIB, 1)
        options = {"num_proc": args.num_proc, "cache_dir": Path(folder) / "cache"}
        figures |= measure("build", pairs, lambda: load_muge(*files, **options))
        rows = load_muge(*files, **options)
        figures |= measure("open", pairs, lambda: load_muge(*files, **options))
        figures |= measure("iterate_rows", pairs, lambda: [None for row in rows if not row["captions"]])
        groups, sampler = GroupedCaptions(rows), GroupedCaptionSampler(caption_counts(rows), args.captions)
        figures |= measure("shuffled_groups", pairs, lambda: [None for each in sampler if not groups[each]["image"]])
        few = rows.select(range(min(args.decoded, args.pictures)))
        singles, count = CaptionPairs(few), len(few) * args.captions
        figures |= measure(
            "decode_each_caption", count, lambda: [None for i in range(count) if not decode(singles[i], 256).size]
        )
        shared = GroupedCaptions(few)
        figures |= measure(
            "decode_each_picture", count, lambda: [None for i in range(len(few)) if not decode(shared[i], 256).size]
        )
    figures["cpus"] = os.cpu_count()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
