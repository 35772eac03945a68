"""Writing a store on all cores, shard by shard, so that an interrupted run can resume.

While a store `x` is being written, three things lie beside its final place:

    x.partial/    its files: first the shards, at the end labels, statistics and the manifest
    x.parts/      `made_of.json`, which says of what; and a record of each finished shard
    x.lock        held by the process that writes; a run's other processes wait for it

A shard is finished once its record, with labels, hash and sums, has its final name. A run that
finds records of the same plan keeps their shards and writes the others anew. When all shards are
finished, the records are merged into the small files, `x.partial` is renamed to `x`, and the
records are deleted. So the process may be killed at any time, and the result depends on the plan
alone: not on interruptions, nor on the number of cores.
"""

import errno
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from alexnet.data.store import Store, open_store
from alexnet.data.store.colors import find_principal_components, sum_color_products
from alexnet.data.store.format import FORMAT, IMAGES_PER_SHARD, Manifest, ShardEntry, SplitEntry
from alexnet.errors import UserError, join_problems

log = logging.getLogger(__name__)
LOG_SECONDS = 10  # between lines of the log
JPEG_RATIO = 7  # of raw bytes to those of a JPEG file, roughly


class PreparedImage(NamedTuple):
    """An image as it is stored.

    `data` is what the shard holds and `pixels`, (size, size, 3) uint8, what it shows. If the image
    can't be stored, `pixels` is None and `problem` says why.
    """

    data: bytes | memoryview
    pixels: np.ndarray | None
    label: int
    name: str
    problem: str = ""


class ShardId(NamedTuple):
    """Shard `number` of a split; its text is the name of its files."""

    split: str
    number: int

    def __str__(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True)
class Plan:
    """What a store will hold."""

    size: int  # height and width of the images
    classes: list[str]
    counts: Mapping[str, int]  # images of each split
    read: Callable[[str, range], Iterator[PreparedImage]]  # a split's images of these numbers
    made_of: Mapping[str, object]  # tells one store from another
    made_with: Mapping[str, object] = field(default_factory=dict)  # versions of packages
    encoding: str = "raw"  # or jpeg
    max_bad: int = 0  # images with a problem that may be left out, and listed in bad.tsv
    names: list[str] | None = None  # of the classes, for people; None for `classes`

    def list_all_shards(self) -> list[ShardId]:
        shards = []
        for split in self.counts:
            shards += self.list_shards(split)
        return shards

    def list_shards(self, split: str) -> list[ShardId]:
        count = -(-self.counts[split] // IMAGES_PER_SHARD)
        return [ShardId(split, number) for number in range(count)]

    def list_rows(self, shard: ShardId) -> range:
        """The numbers of a shard's images."""
        first = shard.number * IMAGES_PER_SHARD
        return range(first, min(first + IMAGES_PER_SHARD, self.counts[shard.split]))


class Record(NamedTuple):
    """What is known of a finished shard."""

    labels: np.ndarray
    sizes: np.ndarray  # bytes of each image
    total: np.ndarray  # (size, size, 3), sum of the images; 0 unless they are to train on
    products: np.ndarray  # (3, 3), sum of their color products, likewise
    xxh3_128: np.ndarray  # the hash, as text
    bad: np.ndarray  # lines "name<tab>problem" of the images that are left out


class MergedSplit(NamedTuple):
    """The records of a split's shards, taken together."""

    labels: np.ndarray  # (images,) int64
    ends: np.ndarray  # (images,) int64, where each image ends in its shard
    total: np.ndarray
    products: np.ndarray
    entry: SplitEntry


def write_store(folder: str | Path, plan: Plan) -> Store:
    """The store of `plan` in `folder`, which is written unless it is there.

    Raises UserError if another store is there, if too many images can't be stored, if there are
    none to train on or to validate with, or if the disk is too small.
    """
    return StoreWriter(Path(folder), plan).write()


class StoreWriter:
    """Writes one store. The module's description explains the states of its files."""

    def __init__(self, folder: Path, plan: Plan):
        self.plan = plan
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        self.records = folder.with_name(folder.name + ".parts")
        # By all threads. An increment may be lost when two count at once, which only shows in the
        # progress.
        self.images_done = 0
        self.stopped = False  # asks the threads to end at their next image

    def write(self) -> Store:
        if self.folder.exists():
            return self._open_existing()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_name(self.folder.name + ".lock")
        with FileLock(lock):
            if not self.folder.exists():  # else another process has just written it
                self._write_all()
            store = self._open_existing()
            lock.unlink(missing_ok=True)
        return store

    def _open_existing(self) -> Store:
        store = open_store(self.folder)
        made_of = store.manifest["made_of"]
        if made_of != self.plan.made_of:
            raise UserError(
                f"folder={self.folder} holds another store ({made_of}): choose another folder, "
                "or delete this one"
            )
        shutil.rmtree(self.records, ignore_errors=True)
        return store

    def _write_all(self) -> None:
        if not self.plan.counts.get("train") or not self.plan.counts.get("val"):
            raise UserError(
                f"{self.folder} needs images to train on and to validate with; one of them has none"
            )
        self._prepare_folders()
        unfinished = self._find_unfinished()
        self._check_space(unfinished)
        try:
            self._write_shards(unfinished)
            self._write_small_files()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"the disk of folder={self.folder} is full: free some space and repeat the "
                "command, which resumes from here"
            ) from None
        self.partial.rename(self.folder)

    def _prepare_folders(self) -> None:
        """Keeps what an interrupted run of the same plan has written, and nothing else."""
        made_of = json.dumps(self.plan.made_of, sort_keys=True)
        file = self.records / "made_of.json"
        if file.is_file() and file.read_text() == made_of and self.partial.is_dir():
            return
        for folder in (self.partial, self.records):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        file.write_text(made_of)

    def _find_unfinished(self) -> list[ShardId]:
        """The shards that are still to be written; deletes what an interrupted run left of them."""
        shards = self.plan.list_all_shards()
        unfinished = [shard for shard in shards if not self._record_file(shard).is_file()]
        for shard in unfinished:
            self._shard_file(shard).unlink(missing_ok=True)
        if len(unfinished) < len(shards):
            finished = len(shards) - len(unfinished)
            log.info("%d of %d shards were written before", finished, len(shards))
        return unfinished

    def _check_space(self, unfinished: list[ShardId]) -> None:
        """Raises UserError if the disk can't hold what is still to be written."""
        raw = 3 * self.plan.size**2
        stored = raw if self.plan.encoding == "raw" else raw // JPEG_RATIO
        needed = 0
        for shard in unfinished:
            needed += len(self.plan.list_rows(shard)) * stored
            needed += 2 * raw  # its record: sums of 2 bytes
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise UserError(
                f"folder={self.folder} still needs {needed / 1e9:.3f} GB and the disk has "
                f"{free / 1e9:.3f} GB: free some space, or give a folder on another disk"
            )

    def _write_shards(self, shards: list[ShardId]) -> None:
        """Writes shards on all cores and shows the progress."""
        # Imports torch, which takes a second; a store that is there needs none.
        from alexnet.data.threads import count_usable_cores, start_thread_pool

        progress = ProgressReport(sum(len(self.plan.list_rows(shard)) for shard in shards))
        with progress.bar, start_thread_pool(count_usable_cores(), "writer") as pool:
            running: set[Future[None]] = {pool.submit(self._write_shard, shard) for shard in shards}
            try:
                while running:
                    finished, running = wait(running, 0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()  # raises what the thread raised
                    progress.show(self.images_done)
            except BaseException:
                self.stopped = True
                pool.shutdown(cancel_futures=True)
                raise

    def _write_shard(self, shard: ShardId) -> None:
        """Writes a shard, and then its record."""
        plan = self.plan
        labels: list[int] = []
        sizes: list[int] = []
        bad: list[str] = []
        total = np.zeros((plan.size, plan.size, 3), np.uint16)  # holds 256 times 255
        products = np.zeros((3, 3))
        digest = xxhash.xxh3_128()
        with self._shard_file(shard).open("wb") as file:
            for image in plan.read(shard.split, plan.list_rows(shard)):
                if self.stopped:
                    return
                self.images_done += 1
                if image.pixels is None:
                    bad.append(f"{image.name}\t{image.problem}")
                    continue
                file.write(image.data)
                digest.update(image.data)
                labels.append(image.label)
                sizes.append(memoryview(image.data).nbytes)
                if shard.split == "train":
                    total += image.pixels
                    # Whole numbers below 2^53, so the sum is exact in any order.
                    products += sum_color_products(image.pixels)
        self._write_record(
            shard,
            Record(
                labels=np.array(labels),
                sizes=np.array(sizes),
                total=total,
                products=products,
                xxh3_128=np.array(digest.hexdigest()),
                bad=np.array(bad),
            ),
        )

    def _shard_file(self, shard: ShardId) -> Path:
        return self.partial / f"{shard}.bin"

    def _record_file(self, shard: ShardId) -> Path:
        return self.records / f"{shard}.npz"

    def _write_record(self, shard: ShardId, record: Record) -> None:
        temporary = self.records / f"{shard}.tmp"
        with temporary.open("wb") as file:
            np.savez(file, **record._asdict())
        temporary.rename(self._record_file(shard))

    def _read_record(self, shard: ShardId) -> Record:
        with np.load(self._record_file(shard)) as arrays:
            return Record(**arrays)

    def _write_small_files(self) -> None:
        """Everything but the shards, from their records."""
        plan = self.plan
        bad = self._list_bad()
        (self.partial / "bad.tsv").write_text("".join(line + "\n" for line in bad))
        splits = {name: self._merge_records(name) for name in plan.counts}
        for name, split in splits.items():
            np.save(self.partial / f"{name}-labels.npy", split.labels)
            if plan.encoding != "raw":
                np.save(self.partial / f"{name}-ends.npy", split.ends)
        train = splits["train"]
        images = len(train.labels)
        np.save(self.partial / "mean.npy", (train.total / images).astype(np.float32))
        colors = find_principal_components(train.total, train.products, images)
        manifest: Manifest = {
            "format": FORMAT,
            "size": plan.size,
            "encoding": plan.encoding,
            "classes": plan.classes,
            "names": plan.names or plan.classes,
            "splits": {name: split.entry for name, split in splits.items()},
            "channel_mean": colors.mean.tolist(),
            "color_std": colors.std.tolist(),
            "color_vectors": colors.vectors.tolist(),
            "made_of": dict(plan.made_of),
            "made_with": dict(plan.made_with),
        }
        (self.partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        sheet = draw_contact_sheet(open_store(self.partial))
        sheet.save(self.partial / "contact-sheet.jpg", quality=90)

    def _list_bad(self) -> list[str]:
        """The lines of bad.tsv. Raises UserError if they are too many."""
        bad: list[str] = []
        affected: list[ShardId] = []
        for shard in self.plan.list_all_shards():
            with np.load(self._record_file(shard)) as record:
                lines = record["bad"].tolist()
            if lines:
                bad += lines
                affected.append(shard)
        if len(bad) <= self.plan.max_bad:
            return bad
        for shard in affected:  # read again next time, when the images may have been repaired
            self._record_file(shard).unlink()
        images = sum(self.plan.counts.values())
        raise UserError(
            f"{len(bad)} of {images} images can't be read: {join_problems(bad)}. Repair them, or "
            f"leave them out with max_bad={len(bad)}"
        )

    def _merge_records(self, split: str) -> MergedSplit:
        total = np.zeros((self.plan.size, self.plan.size, 3), np.int64)
        products = np.zeros((3, 3))
        labels: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        shards: list[ShardEntry] = []
        for shard in self.plan.list_shards(split):
            record = self._read_record(shard)
            total += record.total
            products += record.products
            labels.append(record.labels.astype(np.int64))
            ends.append(np.cumsum(record.sizes, dtype=np.int64))
            shards.append(
                {
                    "file": self._shard_file(shard).name,
                    "count": len(record.labels),
                    "bytes": int(record.sizes.sum()),
                    "xxh3_128": str(record.xxh3_128),
                }
            )
        all_labels = np.concatenate(labels)
        histogram = np.bincount(all_labels, minlength=len(self.plan.classes)).tolist()
        entry: SplitEntry = {"count": len(all_labels), "histogram": histogram, "shards": shards}
        return MergedSplit(all_labels, np.concatenate(ends), total, products, entry)


class ProgressReport:
    """How far the work is: a bar on a terminal, otherwise lines in the log."""

    def __init__(self, images: int):
        self.images = images
        self.started = time.monotonic()
        self.logged = self.started
        self.bar = Progress(
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task("", total=images, speed="")

    def show(self, done: int) -> None:
        now = time.monotonic()
        speed = done / (now - self.started)
        self.bar.update(self.task, completed=done, speed=f"{speed:,.0f} images/s")
        if self.bar.disable and now - self.logged > LOG_SECONDS and speed:
            self.logged = now
            eta = (self.images - done) / speed
            log.info("%d/%d images, %.0f/s, ETA %.0f s", done, self.images, speed, eta)
