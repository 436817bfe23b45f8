"""Seconds of a call, for programs in any Python: the standard library only."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(call: Callable[[], Any], repeats: int, wait: Callable[[Any], object]) -> dict[str, float]:
    """Seconds of a call, ``wait`` called on its result, and of the processor: median and least after two calls."""
    wall, processor = [], []
    for index in range(repeats + 2):
        began, worked = time.perf_counter(), time.process_time()
        wait(call())
        if index > 1:
            wall.append(time.perf_counter() - began)
            processor.append(time.process_time() - worked)
    return {"median": statistics.median(wall), "least": min(wall), "processor": statistics.median(processor)}
