"""A store whose home is a URL that fsspec knows (s3://, gs://, hf://, …): shards come when they are needed or soon will
be, into a folder that stays below a size."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from alexnet.data.store.reader import Shard

FETCHERS = 8  # requests at a time, which hides their latency


class Remote:
    """The files of the store at `url`; those at hand lie in `folder`, a folder of `cache` of the store's own, at most
    `limit` bytes of shards: the least recently used give way. Processes share the folder.

    Raises ValueError if fsspec can't open such a URL, and ConnectionError, now or later, if a file can't be fetched.
    """

    def __init__(self, url: str, cache: Path, limit: int):
        self.url, self.limit = url, limit
        try:
            self.system, self.path = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"data.folder={url} can't be opened: {error}") from None
        try:
            listing = self.system.ls(self.path, detail=True)
            manifest = self.system.cat_file(f"{self.path}/manifest.json")
        except Exception as error:  # every protocol has its own
            raise self._failed("manifest.json", error) from None
        self.sizes: dict[str, int] = {Path(entry["name"]).name: entry["size"] for entry in listing}
        self.folder = cache / hashlib.sha256(manifest).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.sizes:
            if name == "manifest.json" or name.endswith(".npy"):
                self._fetch(name)
        self.pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self.lock = threading.Lock()
        self.failure: ConnectionError | None = None
        self.live: OrderedDict[str, Future[Shard]] = OrderedDict()  # the least recently used first
        self.expect(
            file.name for file in self.folder.glob("*.bin") if file.name in self.sizes
        )  # of an earlier run

    def largest(self, count: int) -> int:
        """Bytes of the largest `count` shards."""
        return sum(
            sorted(size for name, size in self.sizes.items() if name.endswith(".bin"))[-count:]
        )

    def shard(self, name: str) -> Shard:
        """A shard; it stays readable when its file has given way."""
        while True:
            try:
                return self._wanted(name).result()
            except CancelledError:  # it had given way before it came
                continue

    def expect(self, names: Iterable[str]) -> None:
        """Begins to fetch shards that will be wanted."""
        for name in names:
            self._wanted(name)

    def _wanted(self, name: str) -> Future[Shard]:
        with self.lock:
            if self.failure:
                raise self.failure
            if name not in self.live:
                self.live[name] = self.pool.submit(self._open, name)
                while len(self.live) > 1 and sum(self.sizes[n] for n in self.live) > self.limit:
                    oldest, future = self.live.popitem(last=False)
                    future.cancel()
                    future.add_done_callback(partial(_remove, self.folder / oldest))
            self.live.move_to_end(name)
            return self.live[name]

    def _open(self, name: str) -> Shard:
        try:
            while True:
                try:
                    return Shard(self._fetch(name))
                except FileNotFoundError:  # another process has just let it go
                    continue
        except ConnectionError as error:
            self.failure = error
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _fetch(self, name: str) -> Path:
        file = self.folder / name
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                try:
                    self.system.get_file(f"{self.path}/{name}", f"{file}.part")
                    if (came := os.path.getsize(f"{file}.part")) != self.sizes[name]:
                        raise OSError(f"{came} of {self.sizes[name]} bytes came")
                except Exception as error:
                    raise self._failed(name, error) from None
                os.replace(f"{file}.part", file)
        return file

    def _failed(self, name: str, error: Exception) -> ConnectionError:
        return ConnectionError(
            f"data.folder={self.url}: {name} can't be fetched: {error or type(error).__name__}"
        )


def _remove(file: Path, done: Future[Any]) -> None:
    file.unlink(missing_ok=True)
