"""Make the golden files lpips_….npz: distances of images by the PyPI package ``lpips``, with random backbones.

    python tests/parity/make_golden_lpips.py [--out DIR]

Needed for this script only: torch, torchvision, lpips. The linear heads are the published ones (v0.1); weights of the
backbones and images are drawn by drawn_feature_networks.py, here and in the test. A file has `parameters` (JSON: names
and shapes of torchvision's backbone), the heads by their names, `distance` between the images of two sets resized to
224 as consistency models resize them, and `gradient`, its sum's by the first set.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import lpips
import numpy as np
import torch
from drawn_feature_networks import draw_images, draw_network
from torch.nn import functional
from torchvision import models

BACKBONES = {"vgg": models.vgg16, "alex": models.alexnet, "squeeze": models.squeezenet1_1}


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    out = parser.parse_args().out
    for name, make in BACKBONES.items():
        path = out / f"lpips_{name}.npz"
        np.savez_compressed(path, **golden(name, make))
        print(f"{path}: {path.stat().st_size / 2**10:.0f} KiB")


def golden(name: str, make) -> dict[str, np.ndarray]:
    """What one file holds; computed in float64."""
    backbone = make(weights=None)
    shapes = {key: list(value.shape) for key, value in backbone.state_dict().items() if key.startswith("features.")}
    drawn = {key: torch.from_numpy(value) for key, value in draw_network(shapes).items()}
    backbone.load_state_dict(drawn, strict=False)
    load = torch.load
    with (
        mock.patch.object(models, BACKBONES[name].__name__, return_value=backbone),
        mock.patch.object(torch, "load", lambda path, **options: load(path, **options | {"map_location": "cpu"})),
    ):
        net = lpips.LPIPS(net=name, verbose=False).double()
    a, b = (images_of(draw_images((32, 32), 3, seed)) for seed in (1, 2))
    a.requires_grad_()
    up = lambda x: functional.interpolate(x, size=224, mode="bilinear")  # noqa: E731
    distance = net(up(a), up(b)).flatten()
    distance.sum().backward()
    heads = {key: value.float().numpy() for key, value in net.state_dict().items() if key.startswith("lin")}
    heads = {key: value for key, value in heads.items() if not key.startswith("lins.")}
    content = dict(distance=distance.detach().numpy(), gradient=a.grad.permute(0, 2, 3, 1).float().numpy())
    return dict(parameters=np.array(json.dumps(shapes))) | heads | content


def images_of(images: np.ndarray) -> torch.Tensor:
    """uint8 NHWC to float64 NCHW in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1


if __name__ == "__main__":
    main()
