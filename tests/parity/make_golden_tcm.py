"""Makes ``golden/tcm_loss.npz`` with the loss and the divided network of the original TCM.

    python tests/parity/make_golden_tcm.py --tcm-checkout DIR

Needs PyTorch, SciPy and a checkout of NVlabs/TCM (made with b132239ef96075ea5d24c32bb8af81ca76b1510f). Its plotting and
its GPU are stubbed. The network is a fixed smooth function of (x, t), times 1 for the trained weights and 0.8 for those
of stage 1: the numbers pin the times, the mapping with its cap, which network is asked where, the boundary, the loss
and its weights. What the training loop does with the loss's two parts is one line of it, which is repeated here.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
TRAINED, STAGE1 = 1.0, 0.8
BATCH, SHAPE = 18, (3, 8, 8)  # a quarter of 18 is 4.5: the boundary has 4 images
STAGES = (0, 3, 12)  # at 12 the cap holds
W_BOUNDARY = 0.1


def network(scale):
    """The identity at t = 0, as a preconditioned network is: the original asks it at r = 1e-6 in place of 0."""
    return lambda x, t, *_, **__: x / (1 + t**2) + scale * torch.sin(3 * x) * t / (1 + t)


class Asked:
    """The original's divided network, which notes what it is asked."""

    def __init__(self, net):
        self.net, self.transition_t, self.seen = net, net.transition_t, []

    def __call__(self, x, t, *rest, **more):
        self.seen.append((x, t))
        return self.net(x, t, *rest, **more)


def stage1_loss(loss_class, images) -> dict[str, np.ndarray]:
    """Stage 1: truncated lognormal times and no division; per-image losses."""
    golden = {}
    for stage in STAGES:
        loss_fn = loss_class(P_mean=-1.1, P_std=2.0, c=1e-8)
        loss_fn.update_schedule(stage)
        np.random.seed(stage)  # noqa: NPY002 the original's own generator
        torch.manual_seed(stage)
        seen = []
        net = network(TRAINED)
        spy = lambda x, t, *rest, **more: (seen.append((x, t)), net(x, t))[1]  # noqa: B023, E731
        _, loss, _, _, _ = loss_fn(spy, images)
        golden |= pair(f"stage1_{stage}", seen, images) | {f"stage1_{stage}_loss": loss.numpy()}
    return golden


def stage2_loss(loss_class, divide, images) -> dict[str, np.ndarray]:
    """Stage 2 as the command of its README sets it: per-image losses of both parts, and their sum as it trains."""
    golden = {}
    for weighting, c in (("default", 1e-8), ("cout_sq", 0.06)):
        for stage in STAGES:
            loss_fn = loss_class(
                P_mean=0.0,
                P_std=0.2,
                t_lower=1.0,
                c=c,
                tdist="t",
                df=0.01,
                boundary_prob=0.25,
                weighting=weighting,
            )
            loss_fn.update_schedule(stage)
            np.random.seed(stage)  # noqa: NPY002
            torch.manual_seed(stage)
            net = Asked(divide(network(STAGE1), network(TRAINED), transition_t=1.0))
            _, loss, _, _, boundary = loss_fn(net, images)
            torch.manual_seed(stage)  # the permutation is the first thing that the original draws
            chosen = torch.zeros(BATCH, dtype=torch.bool)
            chosen[torch.randperm(BATCH)[: int(BATCH * 0.25)]] = True
            name = f"stage2_{weighting}_{stage}"
            golden |= pair(name, net.seen, images) | {
                f"{name}_boundary": chosen.numpy(),
                f"{name}_loss": loss.numpy(),
                f"{name}_boundary_loss": boundary.numpy(),
                f"{name}_total": (loss.mean() + boundary.mean() * W_BOUNDARY).numpy(),
            }
    return golden


def pair(name, seen, images) -> dict[str, np.ndarray]:
    """Times and states of the two calls, the trained side's first."""
    (x_t, t), (_, r) = seen
    golden = {f"{name}_t": t.numpy().ravel(), f"{name}_r": r.numpy().ravel()}
    return golden | {f"{name}_noise": ((x_t - images) / t).numpy().transpose(0, 2, 3, 1).astype(np.float32)}


def times(truncated_t) -> dict[str, np.ndarray]:
    """Quantiles of stage 2's times by the original's inversion, at fixed uniform numbers."""
    share = np.linspace(0.0, 1.0, 41)[1:-1]
    with mock.patch("numpy.random.uniform", lambda low, high, count: low + share * (high - low)):
        drawn = truncated_t(len(share), mu=0.0, sigma=0.2, lower=0.0, upper=np.log(80.0), df=0.01)
    return {"times_share": share, "times_log_t": drawn}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tcm-checkout", required=True)
    sys.path.insert(0, parser.parse_args().tcm_checkout)
    for module in ("matplotlib", "matplotlib.pyplot", "requests"):
        sys.modules[module] = mock.MagicMock()
    torch.cuda.get_rng_state = torch.get_rng_state  # these networks draw nothing
    torch.cuda.set_rng_state = torch.set_rng_state
    from torch_utils import distributed, misc

    distributed.print0 = lambda *_: None
    from training.loss import ECMLoss
    from training.networks_tcm import TCMPrecond

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32)
    golden = {"images": images.transpose(0, 2, 3, 1)}
    images = torch.from_numpy(images)
    golden |= stage1_loss(ECMLoss, images) | stage2_loss(ECMLoss, TCMPrecond, images) | times(misc.truncated_t)
    np.savez_compressed(GOLDEN / "tcm_loss.npz", **golden)
