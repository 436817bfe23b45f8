"""Makes ``golden/gc_loss.npz`` with the original code of generator-augmented flows, and the libraries it trains with.

    python tests/parity/make_golden_gc.py --gc-checkout DIR

Needs PyTorch, ema-pytorch 0.2.3, lion-pytorch and a checkout of thibautissenhuth/consistency_GC (made with
47c5787f875920e01a1d04293ce11c6fe1369abb). Its step is no function but part of a long main(): the statements from the
draw of the noise to the loss are taken from its syntax tree and run, with fixed networks in place of the U-Nets, times
1 for the trained weights and 0.9 for the generator. Also pinned: how the generator's average follows the weights
(ema-pytorch, updated every five steps, with its warm-up), and Lion.
"""

import argparse
import ast
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
TRAINED, GENERATOR = 1.0, 0.9
BATCH, SHAPE = 16, (3, 8, 8)
TOTAL = 8000
STEPS = (0, 3500, 7999)  # 10, 80 and 1280 intervals
FIRST, LAST = "batch_z", "loss"  # names that the first and the last of the statements assign


def network(scale):
    def denoise(x, t):
        t = t.view(-1, 1, 1, 1)
        return x / (1 + t**2) + scale * torch.sin(3 * x) * t / (1 + t)

    return denoise


def statements(checkout: Path) -> types.CodeType:
    """The original's step, from the draw of the noise to the loss."""
    tree = ast.parse((checkout / "train_consistency.py").read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        names = [ast.unparse(s.targets[0]) if isinstance(s, ast.Assign) else "" for s in body or ()] if body else []
        if isinstance(body, list) and FIRST in names and LAST in names:
            part = body[names.index(FIRST) : len(names) - names[::-1].index(LAST)]
            part = [s for s in part if "zero_grad" not in ast.unparse(s)]
            return compile(ast.Module(part, []), "train_consistency.py", "exec")
    raise SystemExit("the checkout has no such step")


def losses(checkout: Path) -> dict[str, np.ndarray]:
    sys.modules |= {name: mock.MagicMock() for name in ("ortools", "ortools.graph", "ortools.graph.python")}
    sys.modules["torchvision"] = mock.MagicMock()
    sys.path.insert(0, str(checkout))
    import utils

    torch.cuda.get_rng_state = lambda device: torch.get_rng_state()  # these networks draw nothing
    torch.cuda.set_rng_state = lambda state, device: torch.set_rng_state(state)
    step = statements(checkout)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32)
    golden = {"images": images.transpose(0, 2, 3, 1)}
    for k in STEPS:
        for mixed in (True, False):
            settings = utils.Train_config(
                n_train_steps=TOTAL,
                sigma_min=0.002,
                sigma_max=80,
                generator_induced_traj=mixed,
                generator_induced_traj_ema=True,
                mix_gen_induced_traj=0.5,
            )
            torch.manual_seed(k)
            scope = vars(utils) | {
                "train_cfg": settings,
                "i_train": k,
                "device": "cpu",
                "unet": network(TRAINED),
                "unet_ema": network(GENERATOR),
                "batch_real_data": torch.from_numpy(images),
                "b_size": BATCH,
            }
            exec(step, scope)  # the code of the checkout that was named
            name = f"{'gc' if mixed else 'ict'}_{k}"
            golden |= {
                f"{name}_points": np.int32(scope["current_n_step"]),
                f"{name}_t": scope["sigmas_ip1"].numpy(),
                f"{name}_r": scope["sigmas_i"].numpy(),
                f"{name}_noise": scope["batch_z"].numpy().transpose(0, 2, 3, 1),
                f"{name}_loss": (scope["loss_weights"] * scope["loss_batch"]).numpy(),
                f"{name}_mean": scope["loss"].numpy(),
            }
            if mixed:
                golden[f"{name}_generated"] = scope["mask"].numpy().ravel()
    return golden


def average() -> dict[str, np.ndarray]:
    """How the average follows a walk of two weights, after each of 40 steps, with a decay that the warm-up reaches."""
    from ema_pytorch import EMA

    weights = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    model = torch.nn.Linear(2, 1, bias=False)
    ema = EMA(model, beta=0.9, update_after_step=0, update_every=5)
    path = []
    for weight in weights:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(weight[None]))
        ema.update()
        path.append(ema.ema_model.weight.detach().numpy().ravel().copy())
    return {"average_weights": weights, "average_path": np.stack(path)}


def lion() -> dict[str, np.ndarray]:
    """Twenty updates of a vector with fixed gradients."""
    from lion_pytorch import Lion

    rng = np.random.default_rng(2)
    start, grads = rng.normal(size=8).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    value = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Lion([value], lr=1e-2)
    path = []
    for grad in grads:
        value.grad = torch.from_numpy(grad)
        optimizer.step()
        path.append(value.detach().numpy().copy())
    return {"lion_start": start, "lion_grads": grads, "lion_path": np.stack(path)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gc-checkout", required=True, type=Path)
    golden = losses(parser.parse_args().gc_checkout) | average() | lion()
    np.savez_compressed(GOLDEN / "gc_loss.npz", **golden)
