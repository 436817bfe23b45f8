"""Makes ``golden/ect_loss.npz`` and ``golden/radam.npz`` with the original ECT loss and PyTorch's RAdam.

    python tests/parity/make_golden_ect.py --ect-checkout DIR

Needs PyTorch and a checkout of locuslab/ect. The network is a fixed smooth function of (x, t), so that the numbers pin
the mapping t -> r, the loss and its weight, and nothing else.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
STAGES = (0, 1, 3, 7)


def network(x, t, labels=None, augment_labels=None):
    return torch.tanh(x) / (1 + t**2) + 0.1 * torch.sin(3 * x) * t / (1 + t)


def ect_loss(checkout: str) -> None:
    sys.path.insert(0, checkout)
    torch.cuda.get_rng_state = torch.get_rng_state  # the original asks for the GPU's; this network draws nothing
    torch.cuda.set_rng_state = torch.set_rng_state
    from training.loss import ECMLoss

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (16, 3, 8, 8)).astype(np.float32)
    golden = {"images": images.transpose(0, 2, 3, 1)}
    for c in (0.0, 0.06):
        for stage in STAGES:
            loss_fn = ECMLoss(c=c)
            loss_fn.update_schedule(stage)
            torch.manual_seed(stage)
            normal = torch.randn([16, 1, 1, 1])
            noise = torch.randn([16, 3, 8, 8])
            torch.manual_seed(stage)  # the loss draws the same two arrays in the same order
            loss = loss_fn(network, torch.from_numpy(images))
            t = (normal * loss_fn.P_std + loss_fn.P_mean).exp()
            name = f"c{c}_stage{stage}"
            golden[f"{name}_t"] = t.numpy().reshape(-1)
            golden[f"{name}_r"] = loss_fn.t_to_r(t).numpy().reshape(-1)
            golden[f"{name}_noise"] = noise.numpy().transpose(0, 2, 3, 1)
            golden[f"{name}_loss"] = loss.numpy()
    np.savez_compressed(GOLDEN / "ect_loss.npz", **golden)


def radam() -> None:
    """Twenty updates of a vector with fixed gradients, as the published recipe sets RAdam (0.9, 0.999, 1e-8)."""
    rng = np.random.default_rng(1)
    start, grads = rng.normal(size=8).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    value = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.RAdam([value], lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    path = []
    for grad in grads:
        value.grad = torch.from_numpy(grad)
        optimizer.step()
        path.append(value.detach().numpy().copy())
    np.savez_compressed(GOLDEN / "radam.npz", start=start, grads=grads, path=np.stack(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ect-checkout", required=True)
    ect_loss(parser.parse_args().ect_checkout)
    radam()
