"""The Inception-v3 of 2015 in PyTorch, with the names of NVIDIA's translation of the graph; for the scripts beside it.

Written from the graph's own layer names and public descriptions of that translation: convolutions without bias, then
normalisation by ``mean``, ``var`` and ``beta`` (no scale, epsilon 0.001); images resized by ``grid_sample`` so that it
equals TensorFlow 1's bilinear resize.
"""

from collections import OrderedDict

import torch
from torch.nn import functional


class Convolution(torch.nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, channels: int, features: int, height: int, width: int, stride: int = 1, same: bool = True):
        super().__init__()
        self.stride = stride
        self.padding = [height // 2, width // 2] if same else [0, 0]
        self.weight = torch.nn.Parameter(torch.zeros(features, channels, height, width))
        self.beta = torch.nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x):
        x = functional.conv2d(x, self.weight.to(x.dtype), stride=self.stride, padding=self.padding)
        return functional.batch_norm(x, self.mean, self.var, bias=self.beta, eps=1e-3).relu()


class Joined(torch.nn.ModuleDict):
    """What its modules make of one input, side by side."""

    def forward(self, x):
        outputs = []
        for part in self.values():
            outputs.append(part(x))
        return torch.cat(outputs, 1)


class Widest(torch.nn.Module):
    """The last two blocks."""

    def __init__(self, channels: int, pool: torch.nn.Module):
        super().__init__()
        self.conv = Convolution(channels, 320, 1, 1)
        self.tower_conv = Convolution(channels, 384, 1, 1)
        self.tower_mixed_conv = Convolution(384, 384, 1, 3)
        self.tower_mixed_conv_1 = Convolution(384, 384, 3, 1)
        self.tower_1_conv = Convolution(channels, 448, 1, 1)
        self.tower_1_conv_1 = Convolution(448, 384, 3, 3)
        self.tower_1_mixed_conv = Convolution(384, 384, 1, 3)
        self.tower_1_mixed_conv_1 = Convolution(384, 384, 3, 1)
        self.tower_2_pool = pool
        self.tower_2_conv = Convolution(channels, 192, 1, 1)

    def forward(self, x):
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        pairs = [self.tower_mixed_conv(a), self.tower_mixed_conv_1(a)]
        pairs += [self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b)]
        return torch.cat([self.conv(x)] + pairs + [self.tower_2_conv(self.tower_2_pool(x))], 1)  # noqa: RUF005 (script)


class InceptionV3(torch.nn.Module):
    """Images [B, 3, H, W] in 0…255 to probabilities, or to features."""

    def __init__(self):
        super().__init__()
        self.layers = layers()
        self.output = torch.nn.Linear(2048, 1008)

    def forward(self, img, return_features: bool = False, no_output_bias: bool = False):
        x = self.layers(prepared(img)).reshape(-1, 2048)
        if return_features:
            return x
        x = functional.linear(x, self.output.weight) if no_output_bias else self.output(x)
        return x.softmax(1)


def prepared(images):
    """[B, 3, 299, 299] in [-1, 1]."""
    batch, channels, height, width = images.shape
    theta = torch.eye(2, 3)
    theta[0, 2] += 1 / width - 1 / 299
    theta[1, 2] += 1 / height - 1 / 299
    grid = functional.affine_grid(theta.repeat(batch, 1, 1), [batch, channels, 299, 299], align_corners=False)
    x = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (x - 128) / 128


def layers() -> torch.nn.Sequential:
    """All up to the last pool."""
    found = OrderedDict(
        conv=Convolution(3, 32, 3, 3, 2, False),
        conv_1=Convolution(32, 32, 3, 3, 1, False),
        conv_2=Convolution(32, 64, 3, 3),
        pool0=torch.nn.MaxPool2d(3, 2),
        conv_3=Convolution(64, 80, 1, 1),
        conv_4=Convolution(80, 192, 3, 3, 1, False),
        pool1=torch.nn.MaxPool2d(3, 2),
    )
    for name, channels, pooled in (("mixed", 192, 32), ("mixed_1", 256, 64), ("mixed_2", 288, 64)):
        found[name] = Joined(
            OrderedDict(
                conv=Convolution(channels, 64, 1, 1),
                tower=tower((channels, 48, 1, 1), (48, 64, 5, 5)),
                tower_1=tower((channels, 64, 1, 1), (64, 96, 3, 3), (96, 96, 3, 3)),
                tower_2=tower((channels, pooled, 1, 1), pool=average()),
            )
        )
    found["mixed_3"] = Joined(
        OrderedDict(
            conv=Convolution(288, 384, 3, 3, 2, False),
            tower=tower((288, 64, 1, 1), (64, 96, 3, 3), (96, 96, 3, 3, 2, False)),
            pool=torch.nn.MaxPool2d(3, 2),
        )
    )
    for name, n in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
        found[name] = Joined(
            OrderedDict(
                conv=Convolution(768, 192, 1, 1),
                tower=tower((768, n, 1, 1), (n, n, 1, 7), (n, 192, 7, 1)),
                tower_1=tower((768, n, 1, 1), (n, n, 7, 1), (n, n, 1, 7), (n, n, 7, 1), (n, 192, 1, 7)),
                tower_2=tower((768, 192, 1, 1), pool=average()),
            )
        )
    found["mixed_8"] = Joined(
        OrderedDict(
            tower=tower((768, 192, 1, 1), (192, 320, 3, 3, 2, False)),
            tower_1=tower((768, 192, 1, 1), (192, 192, 1, 7), (192, 192, 7, 1), (192, 192, 3, 3, 2, False)),
            pool=torch.nn.MaxPool2d(3, 2),
        )
    )
    found["mixed_9"] = Widest(1280, average())
    found["mixed_10"] = Widest(2048, torch.nn.MaxPool2d(3, 1, 1))
    return torch.nn.Sequential(found | {"pool2": torch.nn.AvgPool2d(8)})


def tower(*convolutions: tuple, pool: torch.nn.Module | None = None) -> torch.nn.Sequential:
    """Convolutions one after the other, named conv, conv_1, ..., after ``pool`` where there is one."""
    found = OrderedDict() if pool is None else OrderedDict(pool=pool)
    for index, settings in enumerate(convolutions):
        found[f"conv_{index}" if index else "conv"] = Convolution(*settings)
    return torch.nn.Sequential(found)


def average() -> torch.nn.AvgPool2d:
    """The mean of 3 x 3 pixels without padding."""
    return torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
