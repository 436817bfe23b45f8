"""The order in which examples are visited: a pure function of the seed and the step, so resuming is exact."""

import functools

import numpy as np


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Returns the examples of one training step, int64 ``[batch_size]``.

    Example i of a step is number ``p = step * batch_size + i`` of an endless sequence in which each run of
    ``num_examples``, an epoch, is a random permutation of its own. A batch may span epochs, or exceed one.
    """
    if min(batch_size, num_examples) < 1 or step < 0:
        raise ValueError(f"need step >= 0 and a batch and examples: {step=}, {batch_size=}, {num_examples=}")
    first, end = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // num_examples, (end - 1) // num_examples + 1):
        start = epoch * num_examples
        parts.append(_permutation(seed, epoch, num_examples)[max(first - start, 0) : end - start])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns an epoch's order: that of 64-bit words of Philox (Salmon et al. 2011) keyed by seed and epoch.

    numpy promises the same words in every version, which it does not for ``Generator.permutation``.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_examples), kind="stable")
    order.flags.writeable = False
    return order
