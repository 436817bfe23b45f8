"""Makes ``golden/train_step_{edm,ect}.npz``: training steps of the original PyTorch code on a tiny DDPM++.

    python tests/parity/make_golden_train_step.py edm|ect --checkout DIR

Needs PyTorch and a checkout of github.com/NVlabs/edm or github.com/locuslab/ect. What runs is the body of the
original's training loop, cut out of its source between two of its comments: its loss, its treatment of the gradients
and of the learning rate, torch's optimizer, its EMA. Every parameter is random (those that start at zero too), images
and random numbers are the same at every step, dropout is off (its masks would differ).

A file holds ``config`` (JSON), ``images`` (uint8, NHWC), ``labels``, ``augment_labels``, the random numbers ``normal``
[B] and ``noise``; the first step's ``loss`` and ``grad_norm``; and, each as one vector that ``parameters`` (JSON: names
and shapes) takes apart, ``weights``, the first step's ``gradients``, ``params_STEPS`` and ``ema_STEPS`` after 1 and 3.
"""

import argparse
import contextlib
import copy
import importlib
import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
BATCH, SIZE, CLASSES = 4, 8, 3
STEPS = (1, 3)
NETWORK = dict(
    model_channels=4,
    channel_mult=[1],
    channel_mult_emb=2,
    num_blocks=1,
    attn_resolutions=[8],
    dropout=0.0,
)
CONFIG = {
    "edm": dict(lr=1e-2, eps=1e-8, ramp_steps=4, half_life=20.0, ema_ramp=0.5),
    "ect": dict(lr=3e-2, eps=1e-8, ema_decay=0.5, stage=1),
}


def random_numbers(method: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "normal": np.array([-1.0, 0.1, 0.7, 1.5], np.float32),
        "noise": rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32),
    }
    if method == "edm":
        arrays["labels"] = np.array([2, 0, 1, 1])
        arrays["augment_labels"] = rng.normal(size=(BATCH, 9)).astype(np.float32)
    return arrays


def build(method: str):
    """The network and the loss, as the original's train.py sets them for CIFAR-10."""
    from training import loss, networks

    sizes = dict(img_resolution=SIZE, img_channels=3, model_type="SongUNet", **NETWORK)
    if method == "edm":
        return networks.EDMPrecond(label_dim=CLASSES, augment_dim=9, **sizes), loss.EDMLoss()
    loss_fn = loss.ECMLoss()
    loss_fn.update_schedule(CONFIG["ect"]["stage"])
    return networks.ECMPrecond(**sizes), loss_fn


def randomise(net) -> None:
    """Kernels of variance 1 / fan_in, norm scales near 1, biases near 0."""
    for name, parameter in net.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = 0.2 * noise + ("norm" in name and name.endswith("weight"))


def loop_body(module) -> list:
    """The original's update, and its EMA, as code objects."""
    source = inspect.getsource(module.training_loop)
    body = source[source.index("# Accumulate gradients.") : source.index("# Perform maintenance tasks")]
    parts = body.split("# Update EMA.")
    return [compile(textwrap.dedent(" " * 8 + part.strip()), module.__name__, "exec") for part in parts]


def golden(method: str) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    loop = importlib.import_module({"edm": "training.training_loop", "ect": "training.ct_training_loop"}[method])
    net, loss_fn = build(method)
    randomise(net)
    config, given = CONFIG[method], random_numbers(method)
    content = dict(given) | {"weights": vector(net)}
    to_nchw = lambda array: torch.from_numpy(array).permute(0, 3, 1, 2)  # noqa: E731
    torch.randn = lambda shape, **_: torch.from_numpy(given["normal"]).reshape(shape)
    torch.randn_like = lambda images: to_nchw(given["noise"])
    torch.cuda.get_rng_state = lambda: None
    torch.cuda.set_rng_state = lambda state: None
    labels = torch.eye(CLASSES)[given["labels"]] if method == "edm" else torch.zeros([BATCH, 0])
    told = torch.from_numpy(given["augment_labels"]) if method == "edm" else None
    losses = []
    scope = dict(
        vars(loop),
        net=net.train(),
        ddp=net,
        ema=copy.deepcopy(net).eval().requires_grad_(False),
        loss_fn=loss_fn,
        augment_pipe=(lambda images: (images, told)) if method == "edm" else None,
        optimizer_kwargs=dict(lr=config["lr"]),
        training_stats=SimpleNamespace(report=lambda name, loss: losses.append(loss.detach())),
        misc=SimpleNamespace(ddp_sync=lambda *_: contextlib.nullcontext()),
        dataset_iterator=iter(lambda: (to_nchw(given["images"]), labels), None),
        device="cpu",
        num_accumulation_rounds=1,
        loss_scaling=1,
        batch_size=BATCH,
        batch_gpu_total=BATCH,
        lr_rampup_kimg=config.get("ramp_steps", 0) * BATCH / 1000,
        ema_halflife_kimg=config["half_life"] / 1000 if method == "edm" else None,
        ema_rampup_ratio=config.get("ema_ramp"),
        ema_beta=config.get("ema_decay"),
    )
    rule = torch.optim.Adam if method == "edm" else torch.optim.RAdam
    scope["optimizer"] = rule(net.parameters(), lr=config["lr"], betas=(0.9, 0.999), eps=config["eps"])
    update, average = loop_body(loop)
    for step in range(max(STEPS)):
        # The original's ramp starts with a step of rate 0, ours with the one after it; their EMAs count alike.
        exec(update, scope | {"cur_nimg": (step + 1) * BATCH})
        with torch.no_grad():
            exec(average, scope | {"cur_nimg": step * BATCH})
        if step == 0:
            content["gradients"] = vector(value.grad for value in net.parameters())
            content["grad_norm"] = np.linalg.norm(content["gradients"].astype(np.float64))
            content["loss"] = losses[0].reshape(BATCH, -1).sum(1).mean().numpy()  # what is differentiated
        if step + 1 in STEPS:
            content[f"params_{step + 1}"] = vector(net)
            content[f"ema_{step + 1}"] = vector(scope["ema"])
    shape = dict(image_size=SIZE, num_classes=CLASSES if method == "edm" else 0)
    content["parameters"] = np.array(json.dumps([[name, value.shape] for name, value in net.named_parameters()]))
    return content | {"config": np.array(json.dumps(config | NETWORK | shape))}


def vector(parameters) -> np.ndarray:
    """The parameters of a network, or the tensors of an iterable, one after another."""
    tensors = parameters.parameters() if isinstance(parameters, torch.nn.Module) else parameters
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy().copy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=CONFIG)
    parser.add_argument("--checkout", required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.checkout)
    np.savez_compressed(GOLDEN / f"train_step_{arguments.method}.npz", **golden(arguments.method))
