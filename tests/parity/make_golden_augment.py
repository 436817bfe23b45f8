"""Makes ``golden/edm_augment.npz``: images warped by EDM's own augmentation pipeline with given parameters.

    python tests/parity/make_golden_augment.py --edm-checkout DIR

Needs PyTorch and a checkout of github.com/NVlabs/edm. The pipeline draws its parameters itself: here torch's random
functions hand it the ones wanted. For two shapes of image, ``square`` and ``wide``, the file holds ``images``
[B,H,W,C], the parameters by the names of ``sct_jax.data.augment.Parameters``, the pipeline's ``output`` and ``labels``.
The original pads a batch by the most that one of its images needs, up to the width less a pixel: the first image of
each batch is made small enough to need that much, so that the padding of all is known.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {"square": (14, 3, 16, 16), "wide": (6, 3, 8, 14)}
RECIPE = dict(xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)
ALONE = ("scale", "angle", "stretch", "translation")  # rows 1 to 4 have one of these each, row 5 both flips only


def parameters(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    values = {
        "x_flip": rng.integers(0, 2, count),
        "y_flip": rng.integers(0, 2, count),
        "scale": rng.normal(size=count),
        "angle": rng.uniform(-np.pi, np.pi, count),
        "stretch": rng.normal(size=count),
        "direction": rng.uniform(-np.pi, np.pi, count),
        "translation": rng.normal(size=(count, 2)),
    }
    for row, kept in enumerate((*ALONE, None), start=1):
        for name in ("x_flip", "y_flip", *ALONE):
            if name != kept:
                values[name][row] = 0
    values["x_flip"][5] = values["y_flip"][5] = 1
    values["scale"][0] = -9
    return {name: value.astype(np.float32) for name, value in values.items()}


def feed(values: dict[str, np.ndarray]) -> None:
    """Makes torch hand out what the pipeline asks for, in its order: a value, then 0 for "apply it"."""
    turn = lambda name: (values[name] / np.pi + 1) / 2  # noqa: E731
    queue = [values["x_flip"], 0, values["y_flip"], 0, values["scale"], 0, turn("angle"), 0]
    queue += [values["stretch"], turn("direction"), 0, 0, values["translation"].T, 0]

    def next_of(shape, **_) -> torch.Tensor:
        value = queue.pop(0)
        return torch.zeros(shape) if isinstance(value, int) else torch.from_numpy(value.copy()).reshape(shape)

    torch.rand = torch.randn = next_of
    torch.randint = lambda high, shape, **_: next_of(shape).to(torch.int64)


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from training.augment import AugmentPipe

    rng = np.random.default_rng(0)
    golden = {}
    for name, (count, *shape) in SHAPES.items():
        images = rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
        values = parameters(count, rng)
        feed(values)
        output, labels = AugmentPipe(p=1, **RECIPE)(torch.from_numpy(images))
        arrays = values | {"images": images.transpose(0, 2, 3, 1), "labels": labels.numpy()}
        arrays["output"] = output.numpy().transpose(0, 2, 3, 1)
        golden |= {f"{name}/{key}": value for key, value in arrays.items()}
    np.savez_compressed(GOLDEN / "edm_augment.npz", **golden)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edm-checkout", required=True)
    main(parser.parse_args().edm_checkout)
