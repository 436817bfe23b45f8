"""Makes ``golden/stf_random.npz`` and ``golden/stf_digits.npz`` with the original Stable Target Field.

    python tests/parity/make_golden_stf.py --stf-checkout DIR --digits FILE

Needs PyTorch, a checkout of Newbeeer/stf, and scikit-learn's ``datasets/data/digits.csv.gz``. The original's
``stf_targets`` is run in float32 and in float64 on the same float32 images, noise and times; the noisy images are made
in the precision of the run. The first images of the reference batch are the queries' own. The second half are near
copies of the first, between which even ``t = 0.002`` cannot always tell: the digits with one pixel changed by one level
of 255, the random images at a distance of 0.007.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
TIMES = np.float32([0.002, 0.004, 0.01, 0.03, 0.1, 0.5, 2.0, 80.0])
BATCH, REFERENCES = 16, 64


def random_images(rng: np.random.Generator) -> np.ndarray:
    images = rng.uniform(-1, 1, (REFERENCES // 2, 3, 8, 8))
    return np.concatenate([images, images + rng.normal(0, 0.0005, images.shape)]).astype(np.float32)


def digit_images(rng: np.random.Generator, file: str) -> np.ndarray:
    values = np.loadtxt(file, delimiter=",", max_rows=REFERENCES // 2)[:, :64].reshape(-1, 8, 8)
    levels = np.round(values * (255 / 16))
    copies = levels.copy().reshape(len(levels), -1)
    pixel = rng.integers(0, copies.shape[1], len(copies))
    at = np.arange(len(copies)), pixel
    copies[at] += np.where(copies[at] == 255, -1, 1)
    images = np.concatenate([levels, copies.reshape(levels.shape)])
    return (images / 127.5 - 1).astype(np.float32)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stf-checkout", required=True)
    parser.add_argument("--digits", required=True)
    args = parser.parse_args()
    sys.path.insert(0, args.stf_checkout)
    from training.loss import EDMLoss

    for seed, name in enumerate(("random", "digits")):
        rng = np.random.default_rng(seed)
        references = random_images(rng) if name == "random" else digit_images(rng, args.digits)
        noise = rng.normal(size=(len(TIMES), BATCH, *references.shape[1:])).astype(np.float32)
        golden = {"references": references.transpose(0, 2, 3, 1), "noise": noise.transpose(0, 1, 3, 4, 2), "t": TIMES}
        for dtype in (torch.float32, torch.float64):
            rows, targets = torch.from_numpy(references).to(dtype), []
            for t, each in zip(torch.from_numpy(TIMES).to(dtype), torch.from_numpy(noise).to(dtype), strict=True):
                target = EDMLoss().stf_targets(t.repeat(BATCH), rows[:BATCH] + t * each, rows)
                targets.append(target.reshape(each.shape).numpy().transpose(0, 2, 3, 1))
            golden[str(dtype).removeprefix("torch.")] = np.stack(targets)
        np.savez_compressed(GOLDEN / f"stf_{name}.npz", **golden)


if __name__ == "__main__":
    main()
