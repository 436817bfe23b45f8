"""Make the golden files of this folder: outputs of NVIDIA's PyTorch DDPM++/NCSN++ and ADM with random weights.

    python tests/parity/make_golden_edm.py --edm-checkout DIR [--networks NAME ...] [--out DIR]

DIR is a checkout of github.com/NVlabs/edm; PyTorch is needed for this script only, not for the test. Every
parameter is drawn at random (those that start at zero too), so that no branch of the network is silent. A
file holds `config` (JSON: the arguments of `DDPMpp`), `weights/NAME`, the inputs `x` [B,H,W,C], `t` [B],
`labels`, `augment_labels`, the raw output `network_output`, the preconditioned `output`, and for one
network `gradients/NAME` of sum(output * cotangent).

ADM has heads of 64 channels whatever its size, so its weights would be too large to keep: they are drawn by
drawn_weights.py, here and in the test. Its files (`adm_nvidia….npz`) hold `model` and `spec` (JSON: fields of
`config.model`, the data), `parameters` (JSON: names and shapes), `buffers/NAME`, and `x`, `t`, `labels` (-1: none),
`augment_labels` and the denoiser's `output`. The published sizes, `cifar10…` and `adm_nvidia_imagenet64`, have that
form too and are made only when named.

`ect_denoiser`, made only when named, has that form too and needs DIR to be a checkout of github.com/locuslab/ect: what
a network that its CIFAR-10 code trained answers in evaluation, where the denoiser is the identity at t = 0.003.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from drawn_weights import draw

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
}
ADM = dict(name="adm", image_size=8, channels=64, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4])
CIFAR10 = dict(image_size=32, channels=128, channel_mult=[2, 2, 2], num_blocks=4, attention_resolutions=[16])
IMAGENET64 = dict(channels=192, channel_mult=[1, 2, 3, 4], num_blocks=3, attention_resolutions=[32, 16, 8])
DRAWN = {
    "adm_nvidia": ADM,
    "adm_nvidia_conditional": dict(ADM, label_dim=10, augment_dim=9),
    "adm_nvidia_imagenet64": dict(name="adm", image_size=64, label_dim=1000, **IMAGENET64),
    "cifar10": dict(CIFAR10, name="ddpmpp"),
    "cifar10_conditional": dict(CIFAR10, name="ddpmpp", label_dim=10, augment_dim=9),
    "cifar10_ncsnpp": dict(CIFAR10, name="ddpmpp", **NCSNPP),
    "ect_denoiser": dict(SMALL, name="ddpmpp", channels=8, boundary="sigma_min", sigma_min=0.003),
}
DEFAULT = ["ddpmpp", "ddpmpp_conditional", "ncsnpp", "skip", "adm_nvidia", "adm_nvidia_conditional"]
TIMES = [0.01, 0.2, 2.5, 60.0]
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
    parser.add_argument("--networks", nargs="+", default=DEFAULT, choices=[*NETWORKS, *DRAWN])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.edm_checkout))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        if name in DRAWN:
            path = arguments.out / f"{name}.npz"
            np.savez_compressed(path, **golden_of_drawn_weights(DRAWN[name]))
        else:
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
    t = torch.tensor(TIMES)
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


def golden_of_drawn_weights(config: dict) -> dict[str, np.ndarray]:
    """The content of one golden file whose network has what `drawn_weights.draw` gives with seed 0."""
    import torch
    from training import networks

    options = {THEIR_NAMES[key]: value for key, value in config.items() if key in THEIR_NAMES}
    kind = "DhariwalUNet" if config["name"] == "adm" else "SongUNet"
    preconditioner = networks.ECMPrecond if "sigma_min" in config else networks.EDMPrecond
    net = preconditioner(img_channels=3, model_type=kind, dropout=0.0, **options).eval()
    shapes = {name: list(parameter.shape) for name, parameter in net.named_parameters()}
    with torch.no_grad():
        for name, value in draw(shapes, seed=0).items():
            net.get_parameter(name).copy_(torch.from_numpy(value))
    generator = np.random.RandomState(1)
    size, classes = config["image_size"], config.get("label_dim", 0)
    t = np.array(TIMES, np.float32) if size < 64 else np.array([0.2, 60.0], np.float32)
    x = (np.sqrt(0.25 + t**2)[:, None, None, None] * generator.standard_normal((len(t), size, size, 3))).astype("f4")
    content = dict(x=x, t=t)
    arguments = {}
    if classes:
        content["labels"] = np.array([3, 0, 9, -1] if size < 64 else [3, 999])
        arguments["class_labels"] = torch.from_numpy(np.eye(classes + 1, dtype=np.float32)[content["labels"], :classes])
    if "augment_dim" in config:
        content["augment_labels"] = generator.standard_normal((len(t), config["augment_dim"])).astype(np.float32)
        arguments["augment_labels"] = torch.from_numpy(content["augment_labels"])
    with torch.no_grad():
        output = net(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), **arguments)
    content["output"] = to_nhwc(output).numpy()
    content |= {f"buffers/{name}": value.numpy() for name, value in net.named_buffers()}
    fields = {key: value for key, value in config.items() if key not in ("image_size", "label_dim")}
    model = {**fields, "conditional": bool(classes)}
    spec = dict(image_size=size, channels=3, num_classes=classes)
    texts = dict(model=model, spec=spec, parameters=shapes)
    return content | {key: np.array(json.dumps(value)) for key, value in texts.items()}


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
