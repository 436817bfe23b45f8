"""Makes ``golden/crops.npz``: images cropped and resized by the functions of EDM2's dataset tool.

    python tests/parity/make_golden_crop.py --edm2-checkout DIR

Needs a checkout of github.com/NVlabs/edm2 and what its ``dataset_tool.py`` imports. Its ``center-crop`` is also EDM's,
its ``center-crop-dhariwal`` ADM's. The file holds ``image-N`` [H,W,3] and, for each size and transform,
``output-N-SIZE-TRANSFORM`` [SIZE,SIZE,3].
"""

import argparse
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SHAPES = ((8, 8), (19, 12), (16, 33), (67, 70), (9, 7))  # as it is, both ways, halved twice, and made larger
SIZES = (8, 16)
TRANSFORMS = ("center-crop", "center-crop-dhariwal")


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from dataset_tool import make_transform

    rng = np.random.default_rng(0)
    golden = {}
    for number, shape in enumerate(SHAPES):
        image = golden[f"image-{number}"] = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for size in SIZES:
            for transform in TRANSFORMS:
                golden[f"output-{number}-{size}-{transform}"] = make_transform(transform, size, size)(image)
    np.savez_compressed(GOLDEN / "crops.npz", **golden)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edm2-checkout", required=True)
    main(parser.parse_args().edm2_checkout)
