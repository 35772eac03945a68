"""Any source to a store: decode, shorter side to `size`, centre crop (§2), all cores."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from alexnet.data.sources import Source, open_source
from alexnet.data.store import Store, StoreWriter
from alexnet.entry import clear_errors

log = logging.getLogger(__name__)
CHUNK = 256  # pictures decoded before they are written
REPORT = 10  # seconds between lines of the log


def prepare(cfg: DictConfig) -> None:
    with clear_errors():
        if cfg.size < 1:
            raise ValueError(f"size={cfg.size} must be at least 1 pixel")
        store = prepare_store(cfg.source, cfg.folder, cfg.size)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    log.info("%s: %s pictures of %d×%d, %d classes", cfg.folder, counts, store.size, store.size, len(store.classes))


def prepare_store(path: str, folder: str, size: int) -> Store:
    """The store of `path` under `folder`, made unless it is there. Raises ValueError if another one is there, or if
    pictures can't be decoded."""
    source = open_source(path)
    made_of = {"source": str(Path(path).resolve()), "size": size, "pictures": len(source)}
    made_with = {"resampler": "torchvision bicubic, antialiased", "torchvision": version("torchvision")}
    if (Path(folder) / "manifest.json").is_file():
        store = Store(folder)
        if {key: store.manifest["prepared_with"].get(key) for key in made_of} != made_of:
            raise ValueError(f"folder={folder} already holds another store: give another folder, or delete it")
        log.info("%s is already prepared", folder)
        return store
    bad: list[str] = []
    with StoreWriter(folder, size, source.classes, made_of | made_with) as writer:
        for split, pictures, labels in _decoded(source, size, bad):
            writer.add(split, pictures, labels)
        if bad:
            more = f"; and {len(bad) - 5} more, listed above" if len(bad) > 5 else ""
            raise ValueError(f"{len(bad)} of {len(source)} pictures can't be decoded: {'; '.join(bad[:5])}{more}")
    return Store(folder)


def _decoded(source: Source, size: int, bad: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Chunks (split, pictures, labels), each of one split; unreadable pictures are named in `bad`."""
    import torch

    from alexnet.data.decode import decode  # imports torchvision, which takes seconds: after the source was looked at

    columns = (*Progress.get_default_columns()[:1], BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not sys.stderr.isatty())
    begun = last = time.monotonic()
    done, pictures = 0, iter(source)
    with bar, ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        task = bar.add_task("preparing", total=len(source))
        while chunk := list(islice(pictures, CHUNK)):
            results = pool.map(lambda item: decode(item.data, size), chunk)
            ready = list(zip(chunk, results, strict=True))
            unread = [f"{item.name}: {result}" for item, result in ready if isinstance(result, str)]
            for line in unread:
                log.warning(line)
            bad += unread
            for split in ("train", "val"):
                part = [(p, item.label) for item, p in ready if item.split == split and not isinstance(p, str)]
                if part:
                    yield split, np.stack([p for p, _ in part]), np.array([label for _, label in part], np.int64)
            done += len(chunk)
            bar.update(task, completed=done)
            if bar.disable and (now := time.monotonic()) - last > REPORT:
                last, rate = now, done / (now - begun)
                log.info("%d/%d pictures, %.0f/s, ETA %.0f s", done, len(source), rate, (len(source) - done) / rate)
