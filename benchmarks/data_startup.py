"""How long training waits for its data at the size of COCO, and what its loader workers hold in memory.

    python benchmarks/data_startup.py [--images 118000] [--boxes 860000] [--workers 2] [--folder DIR] [--write FILE]

Makes a data set of that size (hard links to a few small pictures, annotations in COCO's format) in a temporary folder,
or in `--folder`, where it stays for the next time. Every start is a fresh process with a cache folder of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PICTURES = 8  # real files; the others are links to them (a file system allows some 65000 per file)
_SIDES = ((60, 80), (80, 60))
_MARKS = (50, 500, 1000)  # batches after which memory is looked at


def main() -> None:
    """Make the data, measure, and print or write a table."""
    args = _arguments()
    if args.measure:
        print(json.dumps(_MEASUREMENTS[args.measure](args)))
        return
    args.load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        _make_set(folder, args.images, args.boxes)
        table = _table(args, _measured(args, folder, Path(temporary) / "cache"))
    print(table)
    if args.write:
        Path(args.write).write_text(table + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where to make the data, and find them the next time")
    parser.add_argument("--write", metavar="FILE", help="write the table to a file, too")
    parser.add_argument("--measure", choices=sorted(_MEASUREMENTS), help=argparse.SUPPRESS)  # in a fresh process
    return parser.parse_args()


def _make_set(folder: Path, images: int, boxes: int) -> None:
    """Write pictures and annotations, unless they are there."""
    import numpy as np
    from PIL import Image

    done = folder / f"{images}-{boxes}"
    if done.exists():
        return
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(images):
        path = folder / "images" / f"{i:012d}.jpg"
        path.unlink(missing_ok=True)
        if i < _PICTURES:
            pixels = rng.integers(0, 255, (*_SIDES[i % 2], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            os.link(folder / "images" / f"{i % _PICTURES:012d}.jpg", path)
    (folder / "annotations.json").write_text(json.dumps(_annotations(images, boxes, rng)))
    done.touch()
    time.sleep(3)  # what changed just now is not kept in the cache


def _annotations(images: int, boxes: int, rng) -> dict:
    """Return annotations in COCO's format, with a polygon each as COCO has, which makes its file large."""
    pictures, classes = rng.integers(0, images, boxes).tolist(), rng.integers(1, 81, boxes).tolist()
    corners = rng.integers(0, 40, (boxes, 2)).tolist()
    sides = (rng.random((boxes, 2)) * 19 + 1).round(2).tolist()
    polygons = (rng.random((boxes, 40)) * 60).round(2).tolist()
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i:012d}.jpg", "height": _SIDES[i % 2][0], "width": _SIDES[i % 2][1]}
            for i in range(images)
        ],
        "annotations": [
            {
                "id": n + 1,
                "image_id": pictures[n] + 1,
                "category_id": classes[n],
                "bbox": [*corners[n], *sides[n]],
                "area": sides[n][0] * sides[n][1],
                "iscrowd": int(n % 100 == 0),
                "segmentation": [polygons[n]],
            }
            for n in range(boxes)
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }


def _measured(args: argparse.Namespace, folder: Path, cache: Path) -> dict[str, dict]:
    """Return what each measurement found, in order: the first one fills the cache."""
    environment = {**os.environ, "DETKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    found = {}
    for title, name in (("first", "index"), ("cached", "index"), ("batch", "batch"), ("memory", "memory")):
        command = [sys.executable, __file__, "--measure", name, "--folder", str(folder), "--workers", str(args.workers)]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[title] = json.loads(output.splitlines()[-1])
    return found


def _config(args: argparse.Namespace):
    from detkit.config import get_cfg

    cfg = get_cfg()
    name = f"coco:{Path(args.folder).resolve()}/annotations.json:{Path(args.folder).resolve()}/images"
    cfg.merge_from_list(["DATASETS.TRAIN", [name], "DATALOADER.NUM_WORKERS", args.workers, "DEVICE", "cpu"])
    return cfg


def _measure_index(args: argparse.Namespace) -> dict:
    """Time the data set alone: its class names and its index."""
    from detkit.registry import open_dataset

    dataset = open_dataset(_config(args).DATASETS.TRAIN[0])
    start = time.perf_counter()
    dataset.classes()
    classes = time.perf_counter() - start
    index = dataset.load()
    return {"classes": classes, "index": time.perf_counter() - start - classes, "boxes": index.num_boxes}


def _measure_batch(args: argparse.Namespace) -> dict:
    """Time everything up to the first batch, with and without the import of torch and detkit."""
    start = time.perf_counter()
    import torch  # noqa: F401

    torch_done = time.perf_counter()
    from detkit.data import build_train_loader, build_training_data

    cfg = _config(args)
    imported = time.perf_counter()
    index = build_training_data(cfg)
    loaded = time.perf_counter()
    next(iter(build_train_loader(cfg, index, 0, 1000, 16)))
    end = time.perf_counter()
    return {
        "torch": torch_done - start,
        "detkit": imported - torch_done,
        "index": loaded - imported,
        "batch": end - loaded,
        "sum": end - imported,
        "all": end - start,
    }


def _measure_memory(args: argparse.Namespace) -> dict:
    """Look at every worker's memory after some batches and after many: private (USS), and with its share (PSS)."""
    import multiprocessing

    from detkit.data import build_train_loader, build_training_data

    cfg = _config(args)
    index = build_training_data(cfg)
    found = {}
    for number, _ in enumerate(build_train_loader(cfg, index, 0, _MARKS[-1] + 10, 16), 1):
        if number in _MARKS:
            found[str(number)] = [_memory(process.pid) for process in multiprocessing.active_children()]
    return found


def _memory(process: int | None) -> dict[str, float]:
    """Return USS and PSS in MB, as Linux counts them."""
    rows = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {row[0].rstrip(":"): int(row[1]) for row in rows}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"uss": private / 1024, "pss": kilobytes["Pss"] / 1024}


_MEASUREMENTS = {"index": _measure_index, "batch": _measure_batch, "memory": _measure_memory}


def _table(args: argparse.Namespace, found: dict[str, dict]) -> str:
    import numpy
    import PIL
    import torch
    from measuring import processor  # imports torch, whose import is measured above

    first, cached, batch, memory = (found[key] for key in ("first", "cached", "batch", "memory"))
    rows = [
        ("first start: class names (JSON read)", f"{first['classes']:.2f} s"),
        ("first start: index (JSON read, every picture looked at)", f"{first['index']:.2f} s"),
        ("cached start: class names", f"{cached['classes']:.3f} s"),
        ("cached start: index", f"{cached['index']:.2f} s"),
        ("cached start: import of torch", f"{batch['torch']:.2f} s"),
        ("cached start: import of detkit, config", f"{batch['detkit']:.2f} s"),
        ("cached start: index for training", f"{batch['index']:.2f} s"),
        ("cached start: plan, workers, first batch of 16", f"{batch['batch']:.2f} s"),
        ("**cached start to the first batch, without imports**", f"**{batch['sum']:.2f} s**"),
        ("cached start to the first batch, with imports", f"{batch['all']:.2f} s"),
    ]
    for mark, workers in memory.items():
        for n, values in enumerate(workers, 1):
            text = f"{values['uss']:.0f} MB own (USS), {values['pss']:.0f} MB with its share (PSS)"
            rows.append((f"memory of worker {n} after {mark} batches", text))
    lines = [
        f"Data set: {args.images} pictures, {args.boxes} boxes ({first['boxes']} usable), COCO's format; "
        f"{args.workers} workers.",
        f"Command: `{' '.join(['python', 'benchmarks/data_startup.py', *sys.argv[1:]])}`.",
        f"Date: {time.strftime('%Y-%m-%d')}. Machine: {processor()}, {os.cpu_count()} cores. "
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}, "
        f"Pillow {PIL.__version__}. Load of the machine (over 1 minute): {args.load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after.",
    ]
    table = ["| what | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(["# From the start to the first batch", "", *lines, "", *table])


if __name__ == "__main__":
    main()
