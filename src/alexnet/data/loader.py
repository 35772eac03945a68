"""From a split of a store to batches of bytes.

`BatchSampler` decides which images make up each batch, `Loader` reads them. Its threads read ahead:
each fills a buffer with one batch, while the training loop works on earlier ones. Batches leave in
order, and at most one more than there are threads is read ahead. Threads suffice instead of worker
processes, since copying and decoding release the interpreter's lock, and batches stay in place.

A buffer is reused as soon as the loop asks for the next batch, since the system would have to clear
fresh memory first. So whoever keeps a batch for longer than a step must copy it. For a GPU the
buffers are pinned, and the next batch is uploaded on a CUDA stream of its own while the GPU works
on this one; torch's allocator of pinned memory reuses a buffer once its upload is complete.

If shards come from a URL, the loader announces the batches of the next window of shards to the
split, so that shards are downloaded before they are read.
"""

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

from alexnet.data.store import Split
from alexnet.data.store.format import IMAGES_PER_SHARD
from alexnet.data.threads import start_thread_pool
from alexnet.errors import UserError

CPU = torch.device("cpu")
PADDING = -1  # stands for an image's number


class RawBatch(NamedTuple):
    """A batch as it is stored."""

    images: Tensor  # (n, size, size, 3) uint8
    labels: Tensor  # (n,) int64
    ids: Tensor  # (n,) int64, the images' numbers in the split
    weights: Tensor  # (n,) float32, 1, or 0 where a row is padding


class BatchSampler:
    """Which images make up each batch of an epoch, and which of them this rank reads.

    In training the order is a permutation that depends on (seed, epoch), and an incomplete last
    batch is left out. In validation each image comes once, in the store's order, and the last batch
    is padded with rows of weight 0. With a `window` the order of shards is permuted, then the order
    of the images in each window of shards.
    """

    def __init__(
        self,
        *,
        images: int,  # in the split
        batch_size: int,  # of all ranks together, so batches do not depend on the number of ranks
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,  # ranks that share each batch
        window: int | None = None,  # shards that are shuffled together; None for all images
        starts: np.ndarray | None = None,  # Split.starts, for a window
    ):
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} must be at least 1")
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size={batch_size} is not divisible by {world_size} devices: "
                f"use {_suggest_batch_sizes(batch_size, world_size)}"
            )
        if train and images < batch_size:
            raise UserError(
                f"data.batch_size={batch_size} is larger than the training set of {images} images"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.window = window
        self.starts = starts
        self.epoch = 0
        self.batches = images // batch_size if train else math.ceil(images / batch_size)
        rank_size = batch_size // world_size
        self.rank_rows = slice(rank * rank_size, (rank + 1) * rank_size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch."""
        self.epoch = epoch

    def list_batch_ids(self) -> list[np.ndarray]:
        """The images that this rank reads for each batch of the epoch; rows to pad are PADDING."""
        order = self._shuffle() if self.train else np.arange(self.images)
        ids = np.full(self.batches * self.batch_size, PADDING)
        ids[: self.images] = order[: len(ids)]
        return list(ids.reshape(self.batches, self.batch_size)[:, self.rank_rows])

    def count_batches_ahead(self) -> int:
        """How many batches should be announced before they are read: a window of shards."""
        if self.window is None:
            return 0
        return math.ceil(self.window * IMAGES_PER_SHARD / self.batch_size)

    def _shuffle(self) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox([self.seed, self.epoch]))
        if self.window is None or self.starts is None:
            return rng.permutation(self.images)
        shards = rng.permutation(len(self.starts) - 1)
        order = []
        for first in range(0, len(shards), self.window):
            window = shards[first : first + self.window]
            images = [np.arange(self.starts[shard], self.starts[shard + 1]) for shard in window]
            order.append(rng.permutation(np.concatenate(images)))
        return np.concatenate(order)


class Loader:
    """Iterates over the batches of one rank, read ahead by `threads` threads.

    If `device` is a GPU, they lie on it. The loader's state is one integer, the position in the
    epoch; Lightning keeps the number of the epoch.

    Attributes:
        position: batches of this epoch that the loop has received.
        waited: seconds that the loop has waited for batches so far.
    """

    def __init__(
        self, split: Split, sampler: BatchSampler, threads: int = 2, device: torch.device = CPU
    ):
        self.split = split
        # Lightning expects these two names of torch's DataLoader. It calls `set_epoch` of the first
        # before each epoch.
        self.sampler = sampler
        self.batch_sampler = None
        self.threads = threads
        self.device = device
        self.pin_memory = device.type == "cuda"
        self.position = 0
        self.start = 0  # the position from which the next iteration resumes
        self.waited = 0.0
        self.free_buffers: deque[Tensor] = deque()  # kept from epoch to epoch

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[RawBatch]:
        self.position = self.start
        self.start = 0
        batches = self._read_batches()
        if self.pin_memory:
            batches = upload_batches(batches, self.device)
        for batch in batches:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position % len(self)}  # the end is the next epoch's beginning

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["position"]

    def _read_batches(self) -> Iterator[RawBatch]:
        """The rest of the epoch's batches, in memory of the host."""
        batches = self.sampler.list_batch_ids()[self.position :]
        announced = iter(batches)
        reads: deque[Future[RawBatch]] = deque()  # in order, the next batch first
        with start_thread_pool(self.threads, "loader") as pool:
            self._announce(announced, self.sampler.count_batches_ahead())
            for ids in batches:
                self._announce(announced, 1)
                reads.append(pool.submit(self._read_batch, ids, self._take_buffer(len(ids))))
                if len(reads) > self.threads:
                    yield from self._hand_out(reads.popleft())
            while reads:
                yield from self._hand_out(reads.popleft())

    def _announce(self, batches: Iterator[np.ndarray], count: int) -> None:
        """Tells the split that the next `count` of these batches will be read soon."""
        for ids in islice(batches, count):
            self.split.prefetch(ids[ids != PADDING])

    def _hand_out(self, read: Future[RawBatch]) -> Iterator[RawBatch]:
        """Yields one batch, and takes back its buffer when the next batch is asked for."""
        asked = time.perf_counter()
        batch = read.result()
        self.waited += time.perf_counter() - asked
        yield batch
        if not self.pin_memory:  # pinned memory returns to torch's allocator instead
            self.free_buffers.append(batch.images)

    def _take_buffer(self, rows: int) -> Tensor:
        if self.free_buffers:
            return self.free_buffers.popleft()
        shape = (rows, self.split.size, self.split.size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin_memory)

    def _read_batch(self, ids: np.ndarray, buffer: Tensor) -> RawBatch:
        """Reads images into the buffer; padding repeats the last image of the split."""
        rows = np.where(ids == PADDING, len(self.split) - 1, ids)
        weights = (ids != PADDING).astype(np.float32)
        self.split.read(rows, buffer.numpy())
        return RawBatch(
            buffer,
            labels=torch.from_numpy(self.split.labels[rows]),
            ids=torch.from_numpy(rows),
            weights=torch.from_numpy(weights),
        )


def upload_batches(batches: Iterator[RawBatch], gpu: torch.device) -> Iterator[RawBatch]:
    """The batches on the GPU, each uploaded while the GPU works on the one before."""
    stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
    uploads: deque[tuple[RawBatch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(stream):
            # Labels and ids are pinned too, since a copy of pageable memory may have to wait.
            copies = [tensor.pin_memory().to(gpu, non_blocking=True) for tensor in batch]
            uploads.append((RawBatch(*copies), stream.record_event()))
        if len(uploads) > 1:
            yield _finish_upload(*uploads.popleft(), gpu)
    while uploads:
        yield _finish_upload(*uploads.popleft(), gpu)


def _finish_upload(batch: RawBatch, uploaded: torch.cuda.Event, gpu: torch.device) -> RawBatch:
    """Lets the GPU's work, but not this thread, wait for the upload."""
    work = torch.cuda.current_stream(gpu)
    work.wait_event(uploaded)
    for tensor in batch:
        tensor.record_stream(work)  # its memory is not used again before that work is done
    return batch


def _suggest_batch_sizes(batch_size: int, world_size: int) -> str:
    """The nearest sizes that the devices can share evenly: `9 or 12`."""
    below = batch_size - batch_size % world_size
    above = below + world_size
    return f"{below} or {above}" if below > 0 else str(above)
