"""Make the golden files of this folder: outputs of the original PyTorch DDPM++/NCSN++ with random weights.

    python tests/parity/make_golden_edm.py --edm-checkout DIR [--networks NAME ...] [--out DIR]

DIR is a checkout of github.com/NVlabs/edm; PyTorch is needed for this script only, not for the test. Every
parameter is drawn at random (those that start at zero too), so that no branch of the network is silent. A
file holds `config` (JSON: the arguments of `DDPMpp`), `weights/NAME`, the inputs `x` [B,H,W,C], `t` [B],
`labels`, `augment_labels`, the raw output `network_output`, the preconditioned `output`, and for one
network `gradients/NAME` of sum(output * cotangent). `cifar10` (the published size) is made only when named,
and is too large to keep.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

SMALL = dict(image_size=16, channels=16, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[16])
NCSNPP = dict(embedding="fourier", channel_mult_noise=2, encoder="residual", resample_filter=[1, 3, 3, 1])
NETWORKS = {
    "ddpmpp": SMALL,
    "ddpmpp_conditional": {
        **SMALL,
        **dict(channels=8, channel_mult=[2, 2], attention_resolutions=[8], label_dim=10, augment_dim=9),
    },
    "ncsnpp": {**SMALL, **NCSNPP, **dict(channels=8, channel_mult=[2, 2])},
    "skip": {**SMALL, **dict(encoder="skip", decoder="skip", resample_filter=[1, 3, 3, 1])},
    "cifar10": dict(image_size=32, channels=128, channel_mult=[2, 2, 2], num_blocks=4, attention_resolutions=[16]),
}
DEFAULT = ["ddpmpp", "ddpmpp_conditional", "ncsnpp", "skip"]
WITH_GRADIENTS = "ncsnpp"
THEIR_NAMES = dict(
    image_size="img_resolution",
    channels="model_channels",
    channel_mult="channel_mult",
    num_blocks="num_blocks",
    attention_resolutions="attn_resolutions",
    label_dim="label_dim",
    augment_dim="augment_dim",
    embedding="embedding_type",
    channel_mult_noise="channel_mult_noise",
    encoder="encoder_type",
    decoder="decoder_type",
    resample_filter="resample_filter",
)


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edm-checkout", required=True, type=Path)
    parser.add_argument("--networks", nargs="+", default=DEFAULT, choices=NETWORKS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.edm_checkout))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        path = arguments.out / f"edm_{name}.npz"
        np.savez_compressed(path, **golden(NETWORKS[name], gradients=name == WITH_GRADIENTS))
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


def golden(config: dict, gradients: bool) -> dict[str, np.ndarray]:
    """The content of one golden file."""
    import torch
    from training.networks import EDMPrecond

    torch.manual_seed(0)
    options = {THEIR_NAMES[key]: value for key, value in config.items()}
    net = EDMPrecond(img_channels=3, model_type="SongUNet", dropout=0.0, **options).eval()
    randomise(net)
    size = config["image_size"]
    t = torch.tensor([0.01, 0.2, 2.5, 60.0])
    x = (0.25 + t**2).sqrt().reshape(-1, 1, 1, 1) * torch.randn(len(t), 3, size, size)
    inputs = {}
    if "label_dim" in config:
        inputs["labels"] = torch.eye(config["label_dim"])[[3, 0, 9, 3]]
        inputs["labels"][3] = 0
    if "augment_dim" in config:
        inputs["augment_labels"] = torch.randn(len(t), config["augment_dim"])

    raw = []
    net.model.register_forward_hook(lambda module, arguments, result: raw.append(result))
    output = net(x, t, class_labels=inputs.get("labels"), augment_labels=inputs.get("augment_labels"))
    content = {f"weights/{key}": value for key, value in net.state_dict().items()}
    content |= inputs | dict(x=to_nhwc(x), t=t, output=to_nhwc(output), network_output=to_nhwc(raw[0]))
    if gradients:
        cotangent = torch.randn_like(output)
        (output * cotangent).sum().backward()
        content["cotangent"] = to_nhwc(cotangent)
        content |= {f"gradients/{key}": value.grad for key, value in net.named_parameters()}
    arrays = {key: value.detach().numpy().astype(np.float32) for key, value in content.items()}
    return {**arrays, "config": np.array(json.dumps({**config, "in_channels": 3, "out_channels": 3}))}


def randomise(net) -> None:
    """Draw every parameter: kernels of variance 1 / fan_in, norm scales near 1, biases near 0."""
    import torch

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))


def to_nhwc(images):
    """[B, C, H, W] -> [B, H, W, C]."""
    return images.permute(0, 2, 3, 1)


if __name__ == "__main__":
    main()
