"""From a store's split to batches of bytes: keyed order, exact shards, threads that copy into reused buffers."""

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alexnet.data.store.reader import SHARD, Split
from alexnet.data.threads import start_thread_pool

CPU = torch.device("cpu")


class RawBatch(NamedTuple):
    """images (n, size, size, 3) uint8; labels and ids (n,) int64; weights (n,) float32, 0 where a row is padding."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    weights: Tensor


class BatchSampler:
    """Which images make batch i of an epoch, and which of them are this rank's.

    In training the order is a permutation keyed by (seed, epoch) and an incomplete last batch is left out. Given where
    shards start, (shards + 1,), it is one of the shards, and then of the images of each `window` of them. In
    validation every image comes once, in the store's order, and the last batch is padded with rows of weight 0.
    `batch_size` counts the images of all ranks together, so the batches are the same for every number of ranks.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        train: bool,
        window: int | None = None,
        starts: np.ndarray | None = None,
    ):
        if batch_size < 1 or batch_size % world_size:
            near = max(batch_size - batch_size % world_size, 0)
            nearest = " or ".join(str(n) for n in (near, near + world_size) if n > 0)
            raise ValueError(
                f"data.batch_size={batch_size} (of all devices together) does not divide by {world_size} devices: "
                f"take {nearest}"
            )
        if train and images < batch_size:
            raise ValueError(
                f"data.batch_size={batch_size} is larger than the training set of {images} images"
            )
        self.images, self.batch_size, self.seed, self.train, self.epoch = (
            images,
            batch_size,
            seed,
            train,
            0,
        )
        self.window, self.starts = window, starts
        self.ahead = (
            -(-window * SHARD // batch_size) if window else 0
        )  # batches that are known before they are read
        share = batch_size // world_size
        self.mine = slice(rank * share, (rank + 1) * share)
        self.batches = images // batch_size if train else math.ceil(images / batch_size)

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it before each epoch
        self.epoch = epoch

    def batch_ids(self) -> list[np.ndarray]:
        """This rank's image numbers for each batch of the epoch; -1 is padding."""
        order = self._shuffled() if self.train else np.arange(self.images)
        whole = np.full(self.batches * self.batch_size, -1)
        whole[: self.images] = order[: len(whole)]
        return list(whole.reshape(self.batches, self.batch_size)[:, self.mine])

    def _shuffled(self) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox([self.seed, self.epoch]))
        if self.window is None or self.starts is None:
            return rng.permutation(self.images)
        shards = rng.permutation(len(self.starts) - 1)
        windows = [
            shards[first : first + self.window] for first in range(0, len(shards), self.window)
        ]
        images = [
            np.concatenate([np.arange(*self.starts[s : s + 2]) for s in window])
            for window in windows
        ]
        return np.concatenate([rng.permutation(part) for part in images])


class Loader:
    """Iterates the batches of one rank, read ahead by `threads` threads; if `device` is a GPU, they lie on it. Its
    state is one integer: the position in the epoch, whose number Lightning keeps."""

    def __init__(
        self, split: Split, order: BatchSampler, threads: int = 2, device: torch.device = CPU
    ):
        self.split, self.threads, self.device, self.pin_memory = (
            split,
            threads,
            device,
            device.type == "cuda",
        )
        self.sampler, self.batch_sampler = (
            order,
            None,
        )  # the names by which Lightning finds set_epoch
        self.position = self.start = 0
        self.waited = 0.0  # seconds that the training loop stood still for data
        self.free: deque[Tensor] = (
            deque()
        )  # buffers, kept from epoch to epoch: the system zeroes new memory

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[RawBatch]:
        self.position, self.start = self.start, 0
        batches = self._batches()
        for batch in _uploaded(batches, self.device) if self.pin_memory else batches:
            self.position += 1
            yield batch

    def _batches(self) -> Iterator[RawBatch]:
        rows = self.sampler.batch_ids()[self.position :]
        ahead: deque[Future[RawBatch]] = deque()
        with start_thread_pool(self.threads, "loader") as pool:
            soon = iter(rows)
            for ids in islice(soon, self.sampler.ahead):
                self.split.expect(ids[ids >= 0])
            for ids in rows:
                for later in islice(soon, 1):
                    self.split.expect(later[later >= 0])
                ahead.append(pool.submit(self._read, ids, self._buffer(len(ids))))
                if len(ahead) <= self.threads:
                    continue
                yield from self._take(ahead)
            while ahead:
                yield from self._take(ahead)

    def _take(self, ahead: deque[Future[RawBatch]]) -> Iterator[RawBatch]:
        asked = time.perf_counter()
        batch = ahead.popleft().result()
        self.waited += time.perf_counter() - asked
        yield batch
        if (
            not self.pin_memory
        ):  # the step is over; pinned memory goes back by itself once the copy is done
            self.free.append(batch.images)

    def _buffer(self, rows: int) -> Tensor:
        if self.free:
            return self.free.popleft()
        shape = (rows, self.split.size, self.split.size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin_memory)

    def _read(self, ids: np.ndarray, buffer: Tensor) -> RawBatch:
        rows = np.where(
            ids < 0, len(self.split) - 1, ids
        )  # padding repeats the last image and weighs nothing
        self.split.read(rows, buffer.numpy())
        weights = torch.from_numpy((ids >= 0).astype(np.float32))
        return RawBatch(
            buffer, torch.from_numpy(self.split.labels[rows]), torch.from_numpy(rows), weights
        )

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position % len(self)}  # a whole epoch is the next one's beginning

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["position"]


def _uploaded(batches: Iterator[RawBatch], gpu: torch.device) -> Iterator[RawBatch]:
    """The batches on the GPU: the next one's bytes cross beside the work on this one. Copies from pageable memory could
    wait for those before them, so all of a batch is pinned."""
    uploads, waiting = torch.cuda.Stream(gpu), deque[tuple[RawBatch, torch.cuda.Event]]()
    for batch in batches:
        with torch.cuda.stream(uploads):
            there = RawBatch(*(t.pin_memory().to(gpu, non_blocking=True) for t in batch))
            waiting.append((there, uploads.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.popleft(), gpu)
    while waiting:
        yield _arrived(*waiting.popleft(), gpu)


def _arrived(batch: RawBatch, event: torch.cuda.Event, gpu: torch.device) -> RawBatch:
    work = torch.cuda.current_stream(gpu)
    work.wait_event(event)
    for t in batch:
        t.record_stream(work)  # whose memory is not used again before that work is done
    return batch
