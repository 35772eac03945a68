"""Writes a store shard by shard, by all cores; killed at any moment, it goes on where it was.

A shard is whole once its record lies in `<folder>.parts/`; the store appears under its name when all shards are. What
is written depends on the plan alone, not on the number of cores or on interruptions.
"""

import errno
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from filelock import FileLock
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from alexnet.data.contact_sheet import draw_contact_sheet
from alexnet.data.store.colors import color_products, principal_components
from alexnet.data.store.reader import FORMAT, SHARD, Store

log = logging.getLogger(__name__)
REPORT = 10  # seconds between lines of the log


class PreparedImage(NamedTuple):
    """`data` is what the shard holds and `pixels` (size, size, 3) uint8 what it shows; `problem`, if any, why it can't
    be stored."""

    data: bytes | memoryview
    pixels: np.ndarray | None
    label: int
    name: str
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """What a store shall hold: `read(split, rows)` gives the images of those numbers, `counts` of them in each split.

    `made_of` tells one store from another; `made_with` is kept with it. Images with a problem are left out and listed
    in bad.tsv, but more than `max_bad` end the work.
    """

    size: int
    classes: list[str]
    counts: dict[str, int]
    read: Callable[[str, range], Iterator[PreparedImage]]
    made_of: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    encoding: str = "raw"
    max_bad: int = 0
    names: list[str] | None = None  # of the classes, for people

    def shards(self) -> list[tuple[str, int]]:
        return [
            (split, i) for split, count in self.counts.items() for i in range(-(-count // SHARD))
        ]

    def rows(self, split: str, shard: int) -> range:
        return range(shard * SHARD, min((shard + 1) * SHARD, self.counts[split]))


class Record(NamedTuple):
    """What is known of a written shard; `sizes` are the bytes of each image, `total` and `products` sums over the
    images of their pixels and of pixel · pixelᵀ, both exact."""

    labels: np.ndarray
    sizes: np.ndarray
    total: np.ndarray
    products: np.ndarray
    xxh3_128: np.ndarray
    bad: np.ndarray


def write_store(folder: str | Path, plan: Plan) -> Store:
    """The store of `plan` in `folder`; nothing is done if it is there.

    Raises ValueError if another store is there, too many images can't be stored, or a split has none; OSError with
    one line if the disk is too small.
    """
    folder = Path(folder)
    partial, parts = (
        folder.with_name(folder.name + ".partial"),
        folder.with_name(folder.name + ".parts"),
    )
    if folder.exists():
        return _there(folder, plan, parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(folder.name + ".lock")
    with FileLock(lock):  # a run's other processes wait for the first, and find the store
        store = (
            _there(folder, plan, parts)
            if folder.exists()
            else _written(folder, plan, partial, parts)
        )
        lock.unlink(missing_ok=True)
    return store


def _written(folder: Path, plan: Plan, partial: Path, parts: Path) -> Store:
    if not all(plan.counts.get(split) for split in ("train", "val")):
        raise ValueError(
            f"{folder} needs images to train on and to validate with; one of them has none"
        )
    _prepare_folders(plan, partial, parts)
    todo = [shard for shard in plan.shards() if not _record_file(parts, *shard).is_file()]
    for shard in todo:
        (partial / shard_name(*shard)).unlink(missing_ok=True)  # begun and not ended
    _check_space(folder, plan, todo)
    try:
        _write_shards(plan, todo, partial, parts)
        _finish(plan, partial, parts)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message = f"the disk of folder={folder} is full: make room and start again, which goes on from here"
        raise OSError(errno.ENOSPC, message) from None
    partial.rename(folder)
    shutil.rmtree(parts)
    return Store(folder)


def _check_bad(plan: Plan, parts: Path) -> list[str]:
    """Lines "name<tab>reason" of the images that are left out. Raises ValueError if they are too many."""
    bad = [
        (split, shard, str(line))
        for split, shard in plan.shards()
        for line in np.load(_record_file(parts, split, shard))["bad"]
    ]
    if len(bad) > plan.max_bad:
        for split, number, _ in bad:  # looked at again next time, since they may be mended
            _record_file(parts, split, number).unlink(missing_ok=True)
        shown = "; ".join(line for *_, line in bad[:5]) + (
            f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        )
        raise ValueError(
            f"{len(bad)} of {sum(plan.counts.values())} images can't be read: {shown}. Mend them, or "
            f"leave them out with max_bad={len(bad)}"
        )
    return [line for *_, line in bad]


def _there(folder: Path, plan: Plan, parts: Path) -> Store:
    store = Store(folder)
    if store.manifest["made_of"] != plan.made_of:
        raise ValueError(
            f"folder={folder} holds another store ({store.manifest['made_of']}): choose another, or delete it"
        )
    shutil.rmtree(parts, ignore_errors=True)
    return store


def _prepare_folders(plan: Plan, partial: Path, parts: Path) -> None:
    """Keeps the shards of an interrupted run of the same plan, and no others."""
    made_of = json.dumps(plan.made_of, sort_keys=True)
    file = parts / "made_of.json"
    if file.is_file() and file.read_text() == made_of and partial.is_dir():
        return
    for path in (partial, parts):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    file.write_text(made_of)


def _check_space(folder: Path, plan: Plan, todo: list[tuple[str, int]]) -> None:
    """Raises OSError if the disk can't hold what is still to be written: the images, and a record with a sum of them
    for each shard."""
    image = 3 * plan.size**2
    stored = image if plan.encoding == "raw" else image // 7
    needed = sum(len(plan.rows(*shard)) * stored + 2 * image for shard in todo)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        sizes = f"{needed / 1e9:.3f} GB and the disk has {free / 1e9:.3f} GB"
        raise OSError(
            errno.ENOSPC,
            f"folder={folder} still needs {sizes}: make room, or give a folder on another disk",
        )


def _write_shards(plan: Plan, todo: list[tuple[str, int]], partial: Path, parts: Path) -> None:
    from alexnet.data.threads import count_usable_cores, start_thread_pool  # imports torch

    total, left = len(plan.shards()), len(todo)
    if left < total:
        log.info("%d of %d shards were written before", total - left, total)
    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    bar = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not sys.stderr.isatty()
    )
    begun = last = time.monotonic()
    images = sum(len(plan.rows(*shard)) for shard in todo)
    count = Count()
    with bar, start_thread_pool(count_usable_cores(), "writer") as pool:
        task = bar.add_task("", total=images, speed="")
        running: set[Future[None]] = {
            pool.submit(_write_shard, plan, split, shard, partial, parts, count)
            for split, shard in todo
        }
        try:
            while running:
                done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                now = time.monotonic()
                speed = count.images / (now - begun)
                bar.update(task, completed=count.images, speed=f"{speed:,.0f} images/s")
                if bar.disable and now - last > REPORT and speed:
                    last = now
                    eta = (images - count.images) / speed
                    log.info("%d/%d images, %.0f/s, ETA %.0f s", count.images, images, speed, eta)
        except BaseException:
            count.stopped = True  # the other threads end at their next image
            pool.shutdown(cancel_futures=True)
            raise


@dataclass
class Count:
    """Images done by all threads; `+= 1` of several threads may lose one, which only the progress bar would see."""

    images: int = 0
    stopped: bool = False


def _write_shard(
    plan: Plan, split: str, shard: int, partial: Path, parts: Path, count: Count
) -> None:
    labels: list[int] = []
    sizes: list[int] = []
    bad: list[str] = []
    total = np.zeros((plan.size, plan.size, 3), np.uint16)  # 256 bytes of 255 fit
    products = np.zeros((3, 3))
    digest = xxhash.xxh3_128()
    with (partial / shard_name(split, shard)).open("wb") as file:
        for image in plan.read(split, plan.rows(split, shard)):
            if count.stopped:
                return
            count.images += 1
            if image.pixels is None:
                bad.append(f"{image.name}\t{image.problem}")
                continue
            file.write(image.data)
            digest.update(image.data)
            labels.append(image.label)
            sizes.append(memoryview(image.data).nbytes)
            if split == "train":
                total += image.pixels
                products += color_products(image.pixels)  # integers below 2^53: exact in any order
    record = Record(
        *(np.array(x) for x in (labels, sizes, total, products, digest.hexdigest(), bad))
    )
    unfinished = parts / f"{split}-{shard:05d}.tmp"
    with unfinished.open("wb") as file:
        np.savez(file, **record._asdict())
    unfinished.rename(_record_file(parts, split, shard))


def shard_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.bin"


def _record_file(parts: Path, split: str, shard: int) -> Path:
    return parts / f"{split}-{shard:05d}.npz"


def _record(parts: Path, split: str, shard: int) -> Record:
    with np.load(_record_file(parts, split, shard)) as arrays:
        return Record(**arrays)


def _finish(plan: Plan, partial: Path, parts: Path) -> None:
    bad = _check_bad(plan, parts)
    splits = {split: _Split(plan, split, parts) for split in plan.counts}
    for name, split in splits.items():
        np.save(partial / f"{name}-labels.npy", split.labels)
        if plan.encoding != "raw":
            np.save(partial / f"{name}-ends.npy", split.ends)
    train = splits["train"]
    channels, std, vectors = principal_components(train.total, train.products, len(train.labels))
    np.save(partial / "mean.npy", (train.total / len(train.labels)).astype(np.float32))
    (partial / "bad.tsv").write_text("".join(line + "\n" for line in bad))
    manifest = {
        "format": FORMAT,
        "size": plan.size,
        "encoding": plan.encoding,
        "classes": plan.classes,
        "names": plan.names or plan.classes,
        "splits": {name: split.summary for name, split in splits.items()},
        "channel_mean": channels.tolist(),
        "color_std": std.tolist(),
        "color_vectors": vectors.tolist(),
        "made_of": plan.made_of,
        "made_with": plan.made_with,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    draw_contact_sheet(Store(partial)).save(partial / "contact-sheet.jpg", quality=90)


class _Split:
    """The records of one split, put together."""

    def __init__(self, plan: Plan, name: str, parts: Path):
        self.total = np.zeros((plan.size, plan.size, 3), np.int64)
        self.products = np.zeros((3, 3))
        labels, ends, shards = [], [], []
        for split, shard in plan.shards():
            if split == name:
                record = _record(parts, split, shard)
                self.total += record.total
                self.products += record.products
                labels.append(record.labels.astype(np.int64))
                ends.append(np.cumsum(record.sizes, dtype=np.int64))
                shards.append(
                    {
                        "file": shard_name(split, shard),
                        "count": len(record.labels),
                        "bytes": int(record.sizes.sum()),
                        "xxh3_128": str(record.xxh3_128),
                    }
                )
        self.labels, self.ends = np.concatenate(labels), np.concatenate(ends)
        histogram = np.bincount(self.labels, minlength=len(plan.classes)).tolist()
        self.summary = {"count": len(self.labels), "histogram": histogram, "shards": shards}
