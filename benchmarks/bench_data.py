"""Memory, CPU time and pairs per second of the data path on synthetic MUGE files: build, then iterate as in training.

    python benchmarks/bench_data.py --images 55000 --captions 10 --num-proc 2 --workers 2 [--json memory.json]

Memory is what a process has written itself, above its imports; mapped files, which the system can drop, do not count.
A worker's memory is what it does not share with its parent. The last column is the percentage of OFA-Chinese's 75 KiB
per image (PORT_BYTES, 4.1 GB for 55,000) that this process and all its workers take together.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch.utils.data import DataLoader

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import GroupedTargets, GroupedTargetSampler, OFACollator, count_targets, load_muge
from ofa_hf.data.images import why_broken
from ofa_hf.image_loading_ofa import load_image


MIB = 2**20
PORT_BYTES = 75 * 2**10  # resident memory of the old port an image with ten captions
DISTINCT = 300  # encodings; a random tail behind the end-of-image mark makes every image's bytes its own
WORDS = "图片描述了什么内容?时尚百搭的第件商品，穿出女神范儿0123456789"


def write_files(folder: Path, images: int, captions: int, side: int) -> tuple[Path, Path]:
    """MUGE's two files; images of smooth noise, 10 to 15 KB each at 256 pixels."""
    encoded, random = [jpeg(seed, side) for seed in range(min(DISTINCT, images))], np.random.default_rng(0)
    with (folder / "IC_train.tsv").open("wb") as tsv, (folder / "IC_train.jsonl").open("w") as texts:
        for number in range(images):
            image = encoded[number % len(encoded)] + random.bytes(16)
            tsv.write(b"%d\t%s\n" % (number, base64.b64encode(image)))
            lines = [f"时尚百搭的第{number}件商品，穿出{text}分女神范儿" for text in range(captions)]
            texts.write(json.dumps({"image_id": str(number), "text": lines}, ensure_ascii=False) + "\n")
    return folder / "IC_train.jsonl", folder / "IC_train.tsv"


def jpeg(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_processor(folder: Path, side: int) -> OFAProcessor:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", *dict.fromkeys(WORDS)]) + "\n", encoding="utf-8")
    return OFAProcessor(OFAImageProcessor(size=side), build_tokenizer(vocabulary))


class PeakMemory:
    """Highest memory of this process, of its largest child and of all children together, while the block runs."""

    def __enter__(self) -> "PeakMemory":
        self.own, self.largest, self.children = own_bytes(), 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.1):
            self.own = max(self.own, own_bytes())
            sizes = [private_bytes(child) for child in process.children(recursive=True)]
            self.largest, self.children = max(self.largest, *sizes, 0, 0), max(self.children, sum(sizes))

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def own_bytes() -> int:
    """Memory that this process has written, shared with its forked workers or not."""
    fields = _smaps(os.getpid())
    return fields["Anonymous"] if fields else psutil.Process().memory_full_info().uss


def private_bytes(process: psutil.Process) -> int:
    """Memory that a worker has written and does not share with its parent."""
    fields = _smaps(process.pid)
    if fields:
        return min(fields["Private_Dirty"], fields["Anonymous"])
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it has ended
        return 0


def _smaps(pid: int) -> dict[str, int]:
    """Bytes by kind; empty where there is no Linux or no such process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}


def processor_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


class Table:
    """One row a piece of work, printed as it is done."""

    def __init__(self, images: int):
        self.rows, self.port = [], images * PORT_BYTES
        print(f"{'work':40} {'seconds':>8} {'pairs/s':>9} {'CPU ms':>7} {'MiB':>7} {'workers':>8} {'of port':>8}")

    def measure(self, name: str, pairs: int, work: Callable[[], object]) -> None:
        """Run `work` on so many pairs; CPU time is that of one pair, its workers' included."""
        cpu, base, start = processor_seconds(), own_bytes(), time.perf_counter()
        with PeakMemory() as peak:
            work()
        seconds, own = time.perf_counter() - start, max(0, peak.own - base)
        row = {"work": name, "pairs": pairs, "seconds": round(seconds, 2), "pairs_a_second": round(pairs / seconds)}
        row["cpu_ms_a_pair"] = round(1000 * (processor_seconds() - cpu) / pairs, 4)
        row |= {"own_mib": round(own / MIB, 1), "largest_worker_mib": round(peak.largest / MIB, 1)}
        row |= {"workers_mib": round(peak.children / MIB, 1), "share_of_port": (own + peak.children) / self.port}
        self.rows.append(row)
        print(
            f"{name:40} {seconds:8.1f} {pairs / seconds:9,.0f} {row['cpu_ms_a_pair']:7.3f} {row['own_mib']:7.1f} "
            f"{row['workers_mib']:8.1f} {row['share_of_port']:8.2%}",
            flush=True,
        )


def loader(rows, processor: OFAProcessor, captions: int, workers: int) -> DataLoader:
    """Batches as `ofa-hf finetune` makes them: 8 images with all of their captions, shuffled."""
    sampler = GroupedTargetSampler(count_targets(rows), captions)
    return DataLoader(GroupedTargets(rows), 8, sampler=sampler, collate_fn=OFACollator(processor), num_workers=workers)


def exhaust(items) -> None:
    for _ in items:
        pass


def decode_all(rows, indices) -> None:
    items = GroupedTargets(rows)
    exhaust(load_image(items[index]["image"]) for index in indices)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--captions", type=int, default=10, help="of each image")
    parser.add_argument("--side", type=int, default=256, help="pixels of the synthetic images and of the batches")
    parser.add_argument("--num-proc", type=int, default=2, help="processes of the build")
    parser.add_argument("--workers", type=int, default=2, help="of the data loader")
    parser.add_argument("--decoded", type=int, default=200, help="images for the two decoding measurements")
    parser.add_argument("--folder", help="where the synthetic files and the cache go (the system's own by default)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measure_all(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure_all(args: argparse.Namespace, folder: Path) -> dict:
    pairs, few = args.images * args.captions, min(args.decoded, args.images)
    files, processor = write_files(folder, args.images, args.captions, args.side), make_processor(folder, args.side)
    why_broken(jpeg(0, args.side))  # loads the decoder, so that the figures are above the imports
    tsv = files[1].stat().st_size
    print(f"{args.images:,} images × {args.captions} captions, {tsv / MIB:,.0f} MiB of base64")
    print(f"{os.cpu_count()} cores; imports: {own_bytes() / MIB:.0f} MiB")
    options, table = {"num_proc": args.num_proc, "cache_dir": folder / "cache"}, Table(args.images)

    table.measure(f"build, {args.num_proc} processes", pairs, lambda: load_muge(*files, **options))
    table.measure("open again", pairs, lambda: load_muge(*files, **options))
    rows = load_muge(*files, **options)
    table.measure("read every row", pairs, lambda: exhaust(rows))
    batches = loader(rows, processor, args.captions, args.workers)
    table.measure(f"one epoch of batches, {args.workers} workers", pairs, lambda: exhaust(batches))
    count, pair_indices = few * args.captions, [(row, (n,)) for row in range(few) for n in range(args.captions)]
    table.measure("decode for each caption", count, lambda: decode_all(rows, pair_indices))
    table.measure("decode for each image", count, lambda: decode_all(rows, range(few)))
    return {"images": args.images, "pairs": pairs, "tsv_mib": round(tsv / MIB, 1), "rows": table.rows}


if __name__ == "__main__":
    main()
