"""Where a store's shards come from: a folder, or a URL that fsspec knows (s3://, gs://, hf://, …).

Shards of a folder are memory-mapped when they are first opened, and stay mapped.

Shards of a URL are downloaded into a cache folder by a pool of threads and memory-mapped there. The
loader announces by `prefetch` which shards it will read next, so they are usually there when `open`
asks for them; for the others `open` waits. Both mark a shard as the most recently used. When the
cache would exceed its limit, the least recently used shards are evicted: downloads that have not
started are canceled, files are deleted. An evicted shard that is still in use stays readable, since
the mapping keeps its bytes; if it is opened again, it is downloaded again.

All processes on a machine share the cache folder of a store, whose name is a hash of the manifest.
A lock file per shard lets one process download it while the others wait, and a file gets its final
name when it is complete. Each process evicts by its own order of use, so another may delete a file
that was just downloaded, before it is mapped. Then it is downloaded again.
"""

import hashlib
import mmap
import os
import resource
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from alexnet.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

DOWNLOADS = 8  # at a time, which hides their latency
OPEN_FILES = 10_240  # ImageNet has 5,201 shards; macOS allows no more


class Shard:
    """A file's `bytes`, memory-mapped."""

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            self.memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        # Read no more than is asked for: what lies around an image is seldom read next.
        self.memory.madvise(mmap.MADV_RANDOM)
        self.bytes = np.frombuffer(self.memory, np.uint8)

    def request_pages(self, begin: int, end: int) -> None:
        """Lets the disk start to read these bytes, without waiting for them."""
        page = begin - begin % mmap.PAGESIZE
        self.memory.madvise(mmap.MADV_WILLNEED, page, end - page)


class Shards(ABC):
    """The files of a store.

    Attributes:
        home: the folder or URL, as users know it.
        folder: a folder with the small files: the manifest and the arrays.
        limit: bytes of shards that are kept at hand; None for all of them.
    """

    home: str
    folder: Path
    limit: int | None

    @abstractmethod
    def open(self, name: str) -> Shard:
        """A shard, which stays readable for as long as it is referenced."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a shard; 0 if it is missing."""

    @abstractmethod
    def prefetch(self, names: Iterable[str]) -> None:
        """Announces which shards will be opened soon, the first one first."""


class LocalShards(Shards):
    """A store in a folder."""

    limit = None

    def __init__(self, folder: str | Path):
        raise_open_file_limit()
        self.home = str(folder)
        self.folder = Path(folder)
        self.opened: dict[str, Shard] = {}

    def open(self, name: str) -> Shard:
        shard = self.opened.get(name)
        if shard is None:  # of two threads that map it at once, one's mapping is kept
            shard = self.opened.setdefault(name, Shard(self.folder / name))
        return shard

    def size(self, name: str) -> int:
        file = self.folder / name
        return file.stat().st_size if file.is_file() else 0

    def prefetch(self, names: Iterable[str]) -> None:
        pass  # they are here


class RemoteShards(Shards):
    """A store at a URL, with at most `limit` bytes of its shards in a folder inside `cache`.

    Raises UserError if fsspec can't open the URL or, now or later, if a download fails.
    """

    def __init__(self, url: str, cache: Path, limit: int):
        raise_open_file_limit()
        self.home = url
        self.limit = limit
        self.system, self.path = _open_file_system(url)
        try:
            listing = self.system.ls(self.path, detail=True)
            manifest = self.system.cat_file(f"{self.path}/manifest.json")
        except Exception as error:  # each protocol raises errors of its own
            raise self._describe_failure("manifest.json", error) from None
        self.sizes: dict[str, int] = {Path(file["name"]).name: file["size"] for file in listing}
        self.folder = cache / hashlib.sha256(manifest).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.sizes:
            if name == "manifest.json" or name.endswith(".npy"):
                self._download(name)
        self.pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
        self.lock = threading.Lock()
        self.failure: UserError | None = None  # of any download; the store can't be read any more
        self.recent: OrderedDict[str, Future[Shard]] = OrderedDict()  # least recently used first
        left_by_earlier_run = [file.name for file in self.folder.glob("*.bin")]
        self.prefetch(name for name in left_by_earlier_run if name in self.sizes)

    def open(self, name: str) -> Shard:
        while True:
            try:
                return self._request(name).result()
            except CancelledError:  # evicted before its download started
                continue

    def size(self, name: str) -> int:
        return self.sizes.get(name, 0)

    def prefetch(self, names: Iterable[str]) -> None:
        for name in names:
            self._request(name)

    def _request(self, name: str) -> Future[Shard]:
        """The shard, in the end; marks it as the most recently used."""
        with self.lock:
            if self.failure:
                raise self.failure
            if name not in self.recent:
                self.recent[name] = self.pool.submit(self._download_and_map, name)
                self._evict()
            self.recent.move_to_end(name)
            return self.recent[name]

    def _evict(self) -> None:
        """Gives up the least recently used shards, but never the last one requested."""
        assert self.limit is not None
        total = sum(self.sizes[name] for name in self.recent)
        while total > self.limit and len(self.recent) > 1:
            name, shard = self.recent.popitem(last=False)
            total -= self.sizes[name]
            shard.cancel()
            # Now, or as soon as its download ends.
            shard.add_done_callback(partial(_delete, self.folder / name))

    def _download_and_map(self, name: str) -> Shard:
        try:
            while True:
                try:
                    return Shard(self._download(name))
                except FileNotFoundError:  # another process has just evicted it
                    continue
        except UserError as error:
            self.failure = error
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _download(self, name: str) -> Path:
        file = self.folder / name
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                try:
                    self._copy(name, f"{file}.part")
                except Exception as error:  # each protocol raises errors of its own
                    raise self._describe_failure(name, error) from None
                os.replace(f"{file}.part", file)
        return file

    def _copy(self, name: str, target: str) -> None:
        self.system.get_file(f"{self.path}/{name}", target)
        received = os.path.getsize(target)
        if received != self.sizes[name]:
            raise OSError(f"{received} of {self.sizes[name]} bytes arrived")

    def _describe_failure(self, name: str, error: Exception) -> UserError:
        reason = str(error) or type(error).__name__
        return UserError(
            f"data.folder={self.home}: can't download {name} ({reason}); "
            "check the address, the network and your access to it"
        )


def raise_open_file_limit() -> None:
    """Lets the process map thousands of shards, each of which keeps a file open.

    Most systems allow a process 1,024 files, and more if it asks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """fsspec's access to the URL, and the path there."""
    import fsspec  # takes 40 ms, which a store on disk does without

    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"data.folder={url} can't be opened: {error}") from None
    return system, path


def _delete(file: Path, shard: Future[Shard]) -> None:
    file.unlink(missing_ok=True)
