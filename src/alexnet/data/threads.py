"""Worker threads that each use a single torch thread, and how many of them are useful."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import torch


def start_thread_pool(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads with a single torch thread each, so that together they share the cores."""
    return ThreadPoolExecutor(count, name, _use_one_torch_thread, (torch.get_num_threads(),))


def count_usable_cores() -> int:
    """The cores that this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _use_one_torch_thread(default: int) -> None:
    # The first call in a thread sets its number, and would undo set_num_threads if it came later.
    torch.get_num_threads()
    torch.set_num_threads(1)
    # That also changed the default for new threads; restore it from a short-lived thread.
    restorer = Thread(target=torch.set_num_threads, args=(default,))
    restorer.start()
    restorer.join()
