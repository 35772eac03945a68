"""Threads that share the cores among themselves: what torch does in one, it does without helpers."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import torch


def start_thread_pool(count: int, name: str) -> ThreadPoolExecutor:
    """`count` threads, in each of which torch has one thread."""
    return ThreadPoolExecutor(count, name, _work_alone, (torch.get_num_threads(),))


def count_usable_cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_alone(others: int) -> None:
    """Threads that begin later would inherit the number, so one that ends at once puts back how many `others` have."""
    torch.get_num_threads()  # the first call in a thread sets its number
    torch.set_num_threads(1)
    mender = Thread(target=torch.set_num_threads, args=(others,))
    mender.start()
    mender.join()
