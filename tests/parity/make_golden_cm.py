"""Makes ``golden/cm_*.npz``, ``golden/ect_schedule.npz`` and ``golden/ict_schedule.npz`` with the original code.

    python tests/parity/make_golden_cm.py --cm-checkout DIR --ect-checkout DIR    # needs PyTorch
    python tests/parity/make_golden_cm.py --jcm-checkout DIR                      # needs JAX, Flax, Optax
    python tests/parity/make_golden_cm.py                                         # iCT, needs neither

Made with openai/consistency_models at e32b69ee436d518377db86fb2127a3972d0d8716 (CT and CD in PyTorch, run in float64),
openai/consistency_models_cifar10 at d086e77dfdc30b51671685f9eec90c90d4f4eaa6 ("jcm", in JAX, its losses in float64, its
schedule in float32 as it trains) and locuslab/ect at 4311059770f54821d151a9b0e1f76770a5f3930e (float64).

What the originals import and these numbers do not need (MPI, LPIPS, Haiku, cloud storage) is stubbed. The raw network
is a fixed smooth function of its input and of ln(t)/4, times 1 for the trained weights, 0.8 for the target's and 0.9
for the teacher's: the numbers pin the grid, the preconditioning shifted to t_min, the solvers, which network is asked
where, the distances and the weights. iCT has no official code: its schedule and probabilities are the formulas of its
paper in float64, written here a second time.
"""

import argparse
import math
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
ONLINE, TARGET, TEACHER = 1.0, 0.8, 0.9
BATCH, SHAPE = 16, (8, 8, 3)


def network(xp, scale, x, noise_feature):
    """The raw network for PyTorch or JAX: ``noise_feature`` is ln(t)/4, shaped to broadcast."""
    return scale * (xp.tanh(x) + 0.3 * xp.sin(3 * x + noise_feature))


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32)
    return {"images": images, "noise": rng.normal(size=(BATCH, *SHAPE)).astype(np.float32)}


def stub(*names: str) -> None:
    for name in names:
        sys.modules[name] = mock.MagicMock()


def first_steps(scales: np.ndarray) -> np.ndarray:
    """The step at which each number of points is first used, from the numbers at all steps (they rise by ones)."""
    assert np.all(np.isin(np.diff(scales), (0, 1)))
    return np.concatenate([[0], 1 + np.flatnonzero(np.diff(scales))]).astype(np.int32)


def cm_losses(checkout: str) -> None:
    """CT (Euler with x_0) and CD (the teacher's Heun) of consistency_losses, for each image."""
    import torch

    stub("piq", "torchvision", "torchvision.transforms", "blobfile", "mpi4py")
    sys.path.insert(0, checkout)
    torch.set_default_dtype(torch.float64)
    from cm.karras_diffusion import KarrasDenoiser

    golden = batch()
    images, noise = (torch.from_numpy(golden[name].transpose(0, 3, 1, 2)).double() for name in ("images", "noise"))

    def model(scale):
        return lambda x, rescaled: network(torch, scale, x, rescaled.reshape(-1, 1, 1, 1) / 1000)

    for num_scales in (2, 18, 151):
        for norm in ("l1", "l2"):
            for weight in ("uniform", "karras"):
                for method in ("ct", "cd_heun"):
                    diffusion = KarrasDenoiser(weight_schedule=weight, distillation=True, loss_norm=norm)
                    teacher = {"teacher_model": model(TEACHER), "teacher_diffusion": KarrasDenoiser(distillation=False)}
                    sigmas = []
                    denoise = diffusion.denoise
                    diffusion.denoise = lambda m, x, sigma: (sigmas.append(sigma), denoise(m, x, sigma))[1]  # noqa: B023
                    torch.manual_seed(num_scales)
                    losses = diffusion.consistency_losses(
                        model(ONLINE),
                        images,
                        num_scales,
                        target_model=model(TARGET),
                        noise=noise,
                        **(teacher if method == "cd_heun" else {}),
                    )
                    golden[f"{method}_{norm}_{weight}_{num_scales}"] = losses["loss"].numpy()
        torch.manual_seed(num_scales)  # the indices are the first numbers that the original draws
        golden[f"index_{num_scales}"] = torch.randint(0, num_scales - 1, (BATCH,)).numpy().astype(np.int32)
        golden[f"t_{num_scales}"], golden[f"r_{num_scales}"] = (sigma.numpy() for sigma in sigmas)
    np.savez_compressed(GOLDEN / "cm_losses.npz", **golden)


def cm_schedules(checkout: str) -> None:
    """``create_ema_and_scales_fn`` at every step, for CIFAR-10 (s_1 = 150, μ_0 = 0.9) and ImageNet-64 (200, 0.95)."""
    sys.path.insert(0, checkout)
    from cm.script_util import create_ema_and_scales_fn

    golden = {}
    for s_1, mu_0 in ((150, 0.9), (200, 0.95)):
        schedule = create_ema_and_scales_fn("adaptive", mu_0, "progressive", 2, s_1, 800_000, 0)
        first = first_steps(np.array([schedule(step)[1] for step in range(800_001)]))
        golden[f"first_step_{s_1}"] = first
        golden[f"decay_{s_1}"] = np.array([schedule(int(step))[0] for step in first])
    np.savez_compressed(GOLDEN / "cm_schedules.npz", **golden)


def jcm(checkout: str) -> None:
    """The losses of ``get_consistency_loss_fn``, CT and CD by Euler and Heun, and ``get_ema_scales_fn``."""
    import jax
    import jax.numpy as jnp
    import ml_collections

    class Keys:
        def __init__(self, key):
            self.key = key

        def __next__(self):
            self.key, key = jax.random.split(self.key)
            return key

    stub("blobfile")
    sys.modules["haiku"] = types.ModuleType("haiku")
    sys.modules["haiku"].PRNGSequence = Keys
    sys.path.insert(0, checkout)
    from jcm import losses, sde_lib

    training = {"loss": "consistency_adaptive", "target_ema_mode": "adaptive", "scale_mode": "progressive"}
    training |= {"start_ema": 0.9, "start_scales": 2, "end_scales": 150, "n_iters": 800_000}
    schedule = losses.get_ema_scales_fn(ml_collections.ConfigDict({"training": training}))
    decays, scales = jax.jit(jax.vmap(schedule))(jnp.arange(800_001))
    first = first_steps(np.asarray(scales))
    golden = batch() | {"first_step_150": first, "decay_150": np.asarray(decays)[first]}

    jax.config.update("jax_enable_x64", True)
    model = types.SimpleNamespace(
        apply=lambda variables, x, labels, train, mutable: network(
            jnp, variables["params"], x, labels.reshape(-1, 1, 1, 1)
        )
    )
    images, sde = jnp.asarray(golden["images"], jnp.float64), sde_lib.KVESDE()
    methods = {"ct": ("euler", True), "cd_euler": ("euler", False), "cd_heun": ("heun", False)}
    for num_scales in (18, 151):
        key = jax.random.key(num_scales)
        keys = Keys(key)  # the indices and the noise are the first two things that the original draws
        golden[f"index_{num_scales}"] = np.asarray(
            jax.random.randint(next(keys), (BATCH,), 0, num_scales - 1), np.int32
        )
        golden[f"noise_{num_scales}"] = np.asarray(jax.random.normal(next(keys), images.shape), np.float32)
        for norm in ("l1", "l2"):
            for method, (solver, dsm_target) in methods.items():
                loss = losses.get_consistency_loss_fn(
                    sde, model, TEACHER, {}, model, False, norm, dsm_target=dsm_target, solver=solver
                )
                one = lambda mask: loss(key, ONLINE, {}, {"image": images, "mask": mask}, TARGET, num_scales)[0]  # noqa: B023, E731
                golden[f"{method}_{norm}_{num_scales}"] = np.asarray([one(mask) for mask in jnp.eye(BATCH)])
    del golden["noise"]
    np.savez_compressed(GOLDEN / "cm_jcm.npz", **golden)


def ect_schedule(checkout: str) -> None:
    """ECMLoss's mapping t -> r at nine stages, for the q of CIFAR-10 (2) and of ImageNet-64 (4)."""
    import torch

    sys.path.insert(0, checkout)
    from training.loss import ECMLoss

    t = torch.from_numpy(np.geomspace(1e-3, 200.0, 48))
    golden = {"t": t.numpy()}
    for q in (2, 4):
        rows = []
        for stage in range(9):
            loss = ECMLoss(q=q)
            loss.update_schedule(stage)
            rows.append(loss.t_to_r(t).numpy())
        golden[f"r_q{q}"] = np.stack(rows)
    np.savez_compressed(GOLDEN / "ect_schedule.npz", **golden)


def ict_schedule() -> None:
    """N(k) (arXiv 2310.14189, eq. 8) over K = 400,000 steps, P(i) (eq. 10) and the grid, at some of its sizes."""
    s_0, s_1, total = 10, 1280, 400_000
    period = math.floor(total / (math.log2(math.floor(s_1 / s_0)) + 1))
    points = np.array([min(s_0 * 2 ** (k // period), s_1) + 1 for k in range(total + 1)])
    first = np.concatenate([[0], 1 + np.flatnonzero(np.diff(points))])
    golden = {"first_step": first.astype(np.int32), "points": points[first].astype(np.int32)}
    erf = np.vectorize(math.erf)
    for num in (11, 161, 1281):
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        sigma = (low + np.arange(num) / (num - 1) * (high - low)) ** 7
        edges = erf((np.log(sigma) + 1.1) / (math.sqrt(2) * 2.0))
        golden[f"probabilities_{num}"] = np.diff(edges) / np.diff(edges).sum()
    np.savez_compressed(GOLDEN / "ict_schedule.npz", **golden)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cm", "jcm", "ect"):
        parser.add_argument(f"--{name}-checkout")
    arguments = parser.parse_args()
    if arguments.cm_checkout:
        cm_losses(arguments.cm_checkout)
        cm_schedules(arguments.cm_checkout)
    if arguments.jcm_checkout:
        jcm(arguments.jcm_checkout)
    if arguments.ect_checkout:
        ect_schedule(arguments.ect_checkout)
    if not any(vars(arguments).values()):
        ict_schedule()
