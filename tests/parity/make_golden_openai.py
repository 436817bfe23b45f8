"""Make the golden files adm_openai….npz: outputs of OpenAI's consistency models with random weights.

    python tests/parity/make_golden_openai.py CHECKOUT [--networks NAME ...] [--out DIR]

CHECKOUT is one of github.com/openai/consistency_models; PyTorch is needed for this script only, not for the test. The
files have the form of make_golden_edm.py's adm_nvidia….npz. What the checkout imports and does not need here (MPI,
LPIPS, torchvision, blob files) is an empty module in this process. FlashAttention exists for half precision on GPUs
only: it is replaced by the same function, softmax(q k' / sqrt(d)) v, in float32, in the layout of channels that the
checkout gives it. (The checkout's other attention casts to half precision.)
"""

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
from drawn_weights import draw

SMALL = dict(image_size=8, num_channels=128, num_res_blocks=1, channel_mult="1,2", attention_resolutions="4")
PUBLISHED = dict(num_head_channels=64, resblock_updown=True, dropout=0.0)
NETWORKS = {
    # ImageNet-64, consistency training or distillation: conditional, the denoiser is the identity at t = 0.002.
    "conditional": dict(SMALL, class_cond=True, use_scale_shift_norm=True, distillation=True),
    # LSUN, EDM: unconditional, the embedding is added.
    "lsun": dict(SMALL, class_cond=False, use_scale_shift_norm=False, distillation=False),
    "imagenet64": dict(
        image_size=64,
        num_channels=192,
        num_res_blocks=3,
        channel_mult="",
        attention_resolutions="32,16,8",
        class_cond=True,
        use_scale_shift_norm=True,
        distillation=True,
    ),
}
CLASSES = {"conditional": 10, "lsun": 0, "imagenet64": 1000}
TIMES = {8: [0.01, 0.2, 2.5, 60.0], 64: [0.2, 60.0]}


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--networks", nargs="+", default=["conditional", "lsun"], choices=NETWORKS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    arguments = parser.parse_args()
    stand_in_for_what_is_not_needed()
    sys.path.insert(0, str(arguments.checkout))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        path = arguments.out / f"adm_openai_{name}.npz"
        np.savez_compressed(path, **golden(NETWORKS[name], CLASSES[name]))
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


def golden(config: dict, classes: int) -> dict[str, np.ndarray]:
    """The content of one golden file; the network has what `drawn_weights.draw` gives with seed 0."""
    import torch
    from cm import script_util

    script_util.NUM_CLASSES = classes
    settings = {**script_util.model_and_diffusion_defaults(), **PUBLISHED, **config}
    net, diffusion = script_util.create_model_and_diffusion(**settings)
    net.eval()
    shapes = {name: list(parameter.shape) for name, parameter in net.named_parameters()}
    with torch.no_grad():
        for name, value in draw(shapes, seed=0).items():
            net.get_parameter(name).copy_(torch.from_numpy(value))
    generator = np.random.RandomState(1)
    size = config["image_size"]
    t = np.array(TIMES[size], np.float32)
    x = (np.sqrt(0.25 + t**2)[:, None, None, None] * generator.standard_normal((len(t), size, size, 3))).astype("f4")
    content = dict(x=x, t=t)
    if classes:
        content["labels"] = np.array([3, 0, 9, 3])[: len(t)]
    arguments = {"y": torch.from_numpy(content["labels"])} if classes else {}
    with torch.no_grad():
        images = torch.from_numpy(x).permute(0, 3, 1, 2)
        output = diffusion.denoise(net, images, torch.from_numpy(t), **arguments)[1]
    content["output"] = output.permute(0, 2, 3, 1).numpy()
    content |= {f"buffers/{name}": value.numpy() for name, value in net.named_buffers()}
    texts = dict(model=our_fields(config), spec=dict(image_size=size, channels=3, num_classes=classes))
    texts["parameters"] = shapes
    return content | {key: np.array(json.dumps(value)) for key, value in texts.items()}


def our_fields(config: dict) -> dict:
    """The fields of `config.model` for settings of theirs."""
    return dict(
        name="adm",
        conditional=config["class_cond"],
        channels=config["num_channels"],
        channel_mult=[int(mult) for mult in (config["channel_mult"] or "1,2,3,4").split(",")],
        num_blocks=config["num_res_blocks"],
        attention_resolutions=[int(resolution) for resolution in config["attention_resolutions"].split(",")],
        adaptive_scale=config["use_scale_shift_norm"],
        time_scale=1000.0,
        boundary="sigma_min" if config["distillation"] else "zero",
        sigma_min=0.002,
    )


def stand_in_for_what_is_not_needed() -> None:
    """Modules that the checkout imports: empty ones, and float32 attention under FlashAttention's name."""
    for name, attributes in {
        "mpi4py": dict(MPI=None),
        "blobfile": {},
        "piq": dict(LPIPS=lambda **options: None),
        "torchvision": {},
        "torchvision.transforms": dict(RandomCrop=None),
        "flash_attn": {},
        "flash_attn.flash_attention": dict(FlashAttention=float32_attention()),
        "einops": dict(rearrange=rearrange),
    }.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)


def rearrange(array, pattern: str, three: int = 3, h: int = 1):
    """The two patterns of einops that attention in the checkout uses."""
    if pattern == "b (three h d) s -> b s three h d":
        batch, width, tokens = array.shape
        return array.reshape(batch, three, h, width // (three * h), tokens).permute(0, 4, 1, 2, 3)
    if pattern == "b s h d -> b (h d) s":
        return array.permute(0, 2, 3, 1).flatten(1, 2)
    raise ValueError(pattern)


def float32_attention() -> type:
    """A module with FlashAttention's interface: qkv [B, tokens, 3, heads, d] -> ([B, tokens, heads, d], None)."""
    import torch

    class Attention(torch.nn.Module):
        def __init__(self, attention_dropout: float = 0.0, **options):
            super().__init__()

        def forward(self, qkv, **options):
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            return (weights @ v).transpose(1, 2), None

    return Attention


if __name__ == "__main__":
    main()
