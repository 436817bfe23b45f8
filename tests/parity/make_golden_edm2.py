"""Make the golden files of this folder: outputs of the original PyTorch EDM2 with random weights, and its loss.

    python tests/parity/make_golden_edm2.py CHECKOUT [--networks NAME ...] [--out DIR]

CHECKOUT is a checkout of github.com/NVlabs/edm2; PyTorch and psutil are needed for this script only. Every
parameter is drawn at random (gains too, and kernels of any length), so that no branch of the network is silent. A
file holds `model` (JSON: fields of config.model), `spec` (image size, channels, classes), `weights/NAME`, the inputs
`x` [B,H,W,C], `t` [B], `labels` [B], and the original's `output` and `log_variance` [B] for them. For one network
there is the loss too, on `images`, `images_t`, `images_noise`, `images_labels`: `loss` [B], its mean over pixels, and
`gradients/NAME` of the mean of `loss` in training, that is with respect to normalised weights. `rates` has the
learning rates of the original's schedule at `rates_images` images seen. `s` (the published size S) is made only
when named, and is too large to keep.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

NETWORKS = {
    "conditional": dict(
        image_size=8,
        num_classes=10,
        channels=8,
        channel_mult=[2],
        channel_mult_embedding=2,
        channel_mult_noise=1,
        num_blocks=1,
        attention_resolutions=[8],
        attention_head_channels=8,
    ),
    "unconditional": dict(
        image_size=16,
        num_classes=0,
        channels=8,
        channel_mult=[1, 2],
        channel_mult_embedding=3,
        channel_mult_noise=2,
        num_blocks=1,
        attention_resolutions=[8],
        attention_head_channels=8,
        concat_balance=0.4,
        residual_balance=0.2,
        attention_balance=0.35,
        resample_filter=[1, 3, 3, 1],
        uncertainty_channels=16,
    ),
    "s": dict(
        image_size=64,
        num_classes=1000,
        channels=192,
        channel_mult=[1, 2, 3, 4],
        num_blocks=3,
        attention_resolutions=[16, 8],
    ),
}
DEFAULT = ["conditional", "unconditional"]
WITH_LOSS = "conditional"
THEIR_NAMES = dict(
    channels="model_channels",
    channel_mult="channel_mult",
    channel_mult_embedding="channel_mult_emb",
    channel_mult_noise="channel_mult_noise",
    num_blocks="num_blocks",
    attention_resolutions="attn_resolutions",
    attention_head_channels="channels_per_head",
    concat_balance="concat_balance",
    residual_balance="res_balance",
    attention_balance="attn_balance",
    resample_filter="resample_filter",
    uncertainty_channels="logvar_channels",
)


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--networks", nargs="+", default=DEFAULT, choices=NETWORKS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        path = arguments.out / f"edm2_{name}.npz"
        save = np.savez if name == "s" else np.savez_compressed
        save(path, **golden(NETWORKS[name], with_loss=name == WITH_LOSS))
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


def golden(config: dict, with_loss: bool) -> dict[str, np.ndarray]:
    """The content of one golden file."""
    import torch
    from training.networks_edm2 import Precond

    torch.manual_seed(0)
    size, classes = config["image_size"], config["num_classes"]
    fields = {key: value for key, value in config.items() if key in THEIR_NAMES}
    options = {THEIR_NAMES[key]: value for key, value in fields.items()}
    net = Precond(size, 3, classes, use_fp16=False, **options).eval()
    randomise(net)
    t = torch.tensor([0.01, 60.0] if size == 64 else [0.01, 0.2, 2.5, 60.0])
    x = (0.25 + t**2).sqrt().reshape(-1, 1, 1, 1) * torch.randn(len(t), 3, size, size)
    labels = torch.arange(len(t)) * 3 % max(classes, 1)
    content = {f"weights/{key}": value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        output, log_variance = net(x, t, one_hot(labels, classes), return_logvar=True)
    content |= dict(x=to_nhwc(x), t=t, labels=labels, output=to_nhwc(output), log_variance=log_variance.flatten())
    if with_loss:
        content |= loss_and_gradients(net, size, classes) | learning_rates()
    arrays = {key: np.asarray(value.detach() if hasattr(value, "detach") else value) for key, value in content.items()}
    arrays["model"] = np.array(json.dumps({**fields, "name": "edm2", "conditional": classes > 0}))
    return {**arrays, "spec": np.array([size, 3, classes])}


def loss_and_gradients(net, size: int, classes: int) -> dict:
    """The original's loss on fixed images, times and noise, per pixel, and its gradients."""
    import torch
    from training.training_loop import EDM2Loss

    images, noise, normal = torch.rand(4, 3, size, size) * 2 - 1, torch.randn(4, 3, size, size), torch.randn(4, 1, 1, 1)
    labels = torch.tensor([0, 4, 9, 4])
    loss = EDM2Loss(P_mean=-0.8, P_std=1.6)
    randn, randn_like = torch.randn, torch.randn_like
    try:
        torch.randn, torch.randn_like = lambda *_, **__: normal, lambda *_, **__: noise
        losses = loss(net.train(), images, one_hot(labels, classes)).mean((1, 2, 3))
    finally:
        torch.randn, torch.randn_like = randn, randn_like
    losses.mean().backward()
    return dict(
        images=to_nhwc(images),
        images_noise=to_nhwc(noise),
        images_t=(normal * 1.6 - 0.8).exp().flatten(),
        images_labels=labels,
        loss=losses,
        **{f"gradients/{key}": value.grad for key, value in net.named_parameters()},
    )


def learning_rates() -> dict:
    """The schedule of EDM2-S on ImageNet-64 (batch 2048) at some numbers of images seen."""
    from training.training_loop import learning_rate_schedule

    images = 2048 * np.array([1, 100, 4000, 4883, 20_000, 35_000, 70_000, 140_000, 524_287])
    rates = [learning_rate_schedule(n, 2048, ref_lr=0.01, ref_batches=35e3, rampup_Mimg=10) for n in images]
    return dict(rates_images=images, rates=np.array(rates))


def randomise(net) -> None:
    """Draw every parameter: kernels whose outputs have weights of all magnitudes, gains that matter.

    One block's gain is so large that its activations are clipped.
    """
    import torch

    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim:
                noise *= torch.exp(torch.randn(len(parameter), *[1] * (parameter.ndim - 1)))
            parameter.copy_(noise)
        list(net.unet.dec.values())[-1].emb_gain.fill_(500.0)


def one_hot(labels, classes: int):
    """[B] -> [B, classes], or None without classes."""
    import torch

    return torch.eye(classes)[labels] if classes else None


def to_nhwc(images):
    """[B, C, H, W] -> [B, H, W, C]."""
    return images.permute(0, 2, 3, 1)


if __name__ == "__main__":
    main()
