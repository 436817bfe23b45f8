"""Make the checkpoints of tests/interop/checkpoints: tiny networks of the originals, saved in the originals' formats.

    python tests/interop/make_checkpoints.py NAME=CHECKOUT ... [--out DIR]

NAME is one of edm, stf, ect, edm2, tcm, openai; CHECKOUT is that project's source. PyTorch is needed for this script
only. Each makes what its training script would have written, compressed by xz, and `NAME.npz` with inputs x [B,H,W,C],
t, labels, augment_labels (where it has them), the original's denoised `output`, and its whole state dict as
`weights/…` where that is small. Every parameter is drawn at random, from {-2, ..., 2} times the width of its kernel so
that the files compress. One process makes the files of one project: their modules have the same names.
"""

import argparse
import io
import lzma
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np

TIMES = [0.01, 0.2, 2.5, 60.0]
SMALL = dict(img_channels=3, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])


def main() -> None:
    """Parse the command line; make each project's files in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", metavar="NAME=CHECKOUT")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoints")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if len(arguments.checkouts) > 1:
        for checkout in arguments.checkouts:
            subprocess.run([sys.executable, __file__, checkout, "--out", str(arguments.out)], check=True)
        return
    name, _, checkout = arguments.checkouts[0].partition("=")
    sys.path.insert(0, checkout)
    for module in ("matplotlib", "matplotlib.pyplot"):  # imported by TCM, not needed here
        sys.modules.setdefault(module, types.ModuleType(module))
    import torch

    torch.manual_seed(0)
    leave_out_sources(name)
    files, arrays = MAKERS[name]()
    for file, content in files.items():
        (arguments.out / f"{file}.xz").write_bytes(lzma.compress(content, preset=6))
    np.savez_compressed(arguments.out / f"{name}.npz", **arrays)


def leave_out_sources(name: str) -> None:
    """Lets the persistent classes of a checkout pickle a remark in place of their modules' source code."""
    if name == "openai":
        return
    from torch_utils import persistence

    persistence._module_to_src = lambda module: "# sigma - self.sigma_min" if name == "ect" else "# left out"


def edm() -> tuple[dict, dict]:
    """Conditional DDPM++ with augmentation labels as EDM's snapshot, and its state dict in both containers."""
    from training.loss import EDMLoss
    from training.networks import EDMPrecond

    options = SMALL | dict(img_resolution=8, model_channels=8, label_dim=10, augment_dim=9, dropout=0.13)
    net = randomised(EDMPrecond(model_type="SongUNet", channel_mult_noise=1, resample_filter=[1, 1], **options))
    data = dict(ema=net, loss_fn=EDMLoss(), augment_pipe=None, dataset_kwargs=dict(path="images.zip", use_labels=True))
    files = {
        "edm.pkl": pickle.dumps(data),
        "edm_state_dict.pt": saved(net.state_dict()),
        "edm_state_dict_legacy.pt": saved(net.state_dict(), _use_new_zipfile_serialization=False),
    }
    return files, answers(net, labels=10, augment_dim=9) | weights(net)


def stf() -> tuple[dict, dict]:
    """Unconditional DDPM++ as STF's snapshot: it keeps the optimizer beside two networks."""
    import torch
    from training.networks import EDMPrecond

    options = SMALL | dict(img_resolution=8, model_channels=8, channel_mult_noise=1, resample_filter=[1, 1])
    net, trained = (randomised(EDMPrecond(model_type="SongUNet", **options)) for _ in range(2))
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    data = dict(optimizer_state=optimizer.state_dict(), step=1000, ema=net, net=trained)
    return {"stf.pkl": pickle.dumps(data)}, answers(net) | weights(net)


def ect() -> tuple[dict, dict]:
    """Unconditional NCSN++ as ECT's snapshot, and its training state with an optimizer that has taken a step."""
    import torch
    from training.loss import ECMLoss
    from training.networks import ECMPrecond

    ncsnpp = dict(embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=[1, 3, 3, 1])
    options = SMALL | ncsnpp | dict(img_resolution=8, model_channels=8)
    net = randomised(ECMPrecond(model_type="SongUNet", **options))
    data = dict(ema=net, loss_fn=ECMLoss(q=256), augment_pipe=None, dataset_kwargs=dict(path="images.zip"))
    files, arrays = {"ect.pkl": pickle.dumps(data)}, answers(net) | weights(net)
    net.train().requires_grad_(True)
    optimizer = torch.optim.RAdam(net.parameters(), lr=0.0)
    net(torch.zeros(1, 3, 8, 8), torch.ones(1)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():  # moments of random bits would not compress
        state["exp_avg"].zero_()
        state["exp_avg_sq"].zero_()
    files["ect_training_state.pt"] = saved(dict(net=net, optimizer_state=optimizer.state_dict()))
    return files, arrays


def edm2() -> tuple[dict, dict]:
    """Conditional EDM2 in float16, as its snapshot."""
    import dnnlib
    import torch
    from training.networks_edm2 import Precond
    from training.training_loop import EDM2Loss

    options = SMALL | dict(img_resolution=8, label_dim=10, model_channels=32, logvar_channels=16, dropout=0.1)
    net = randomised(Precond(channel_mult_emb=2, **options)).to(torch.float16)
    data = dnnlib.EasyDict(encoder=None, dataset_kwargs=dnnlib.EasyDict(path="images.zip"), loss_fn=EDM2Loss())
    data.ema = net
    file = pickle.dumps(data)
    net.to(torch.float32)
    return {"edm2.pkl": file}, answers(net, labels=10)


def tcm() -> tuple[dict, dict]:
    """EDM2's network in ECT's preconditioner, as TCM's snapshot: ImageNet-64's."""
    from training.loss import ECMLoss
    from training.networks import ECMPrecond

    options = SMALL | dict(img_resolution=8, label_dim=10, model_channels=32, channel_mult_emb=2, dropout=0.1)
    net = randomised(ECMPrecond(model_type="EDM2UNet", dout_resolutions=[4, 2, 1], **options))
    data = dict(ema=net, loss_fn=ECMLoss(), augment_pipe=None, dataset_kwargs=dict(path="images.zip"))
    return {"tcm.pkl": pickle.dumps(data)}, answers(net, labels=10)


def openai() -> tuple[dict, dict]:
    """Conditional ADM as the state dict of a consistency model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    from make_golden_openai import stand_in_for_what_is_not_needed

    stand_in_for_what_is_not_needed()
    from cm import script_util

    script_util.NUM_CLASSES = 10
    settings = script_util.model_and_diffusion_defaults() | dict(
        image_size=8, num_channels=128, num_res_blocks=1, channel_mult="1,1", attention_resolutions="4"
    )
    settings |= dict(num_head_channels=64, resblock_updown=True, class_cond=True, distillation=True)
    net, diffusion = script_util.create_model_and_diffusion(**settings)
    randomised(net)

    def denoise(x, t, class_labels=None):
        return diffusion.denoise(net, x, t, y=class_labels.argmax(1))[1]

    return {"ct_imagenet.pt": saved(net.state_dict())}, answers(denoise, labels=10, some_without=False)


def randomised(net):
    """The network with random parameters from few values: of variance 1 / fan_in, scales of norms near 1.

    Of large kernels 3 % are not zero, of very large ones 1 %.
    """
    import torch

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise, kept = torch.randn_like(parameter).round().clamp(-2, 2) + 0.0, 1.0
            if parameter.numel() > 8_000:
                kept = 0.03 if parameter.numel() < 100_000 else 0.01
                noise = noise.where(torch.rand_like(parameter) < kept, 0.0)
            if parameter.ndim > 1:
                parameter.copy_(noise * 2.0 ** round(-0.5 * np.log2(kept * parameter[0].numel())))
            else:
                parameter.copy_(0.25 * noise + (parameter.ndim == 0 or ("norm" in name and name.endswith("weight"))))
    return net.eval().requires_grad_(False)


def answers(net, labels: int = 0, augment_dim: int = 0, some_without: bool = True) -> dict[str, np.ndarray]:
    """Inputs and the original's prediction; the last row has no label where the network allows that."""
    import torch

    t = torch.tensor(TIMES)
    x = (0.25 + t**2).sqrt().reshape(-1, 1, 1, 1) * torch.randn(len(t), 3, 8, 8)
    content, arguments = dict(x=x.permute(0, 2, 3, 1), t=t), {}
    if labels:
        content["labels"] = torch.tensor([3, 0, 9, -1 if some_without else 3])
        arguments["class_labels"] = torch.eye(labels + 1)[content["labels"]][:, :labels]
    if augment_dim:
        content["augment_labels"] = arguments["augment_labels"] = torch.randn(len(t), augment_dim)
    with torch.no_grad():
        content["output"] = net(x, t, **arguments).permute(0, 2, 3, 1)
    return {key: value.numpy() for key, value in content.items()}


def weights(net) -> dict[str, np.ndarray]:
    """The whole state dict."""
    return {f"weights/{name}": value.numpy() for name, value in net.state_dict().items()}


def saved(content, **options) -> bytes:
    """What torch.save writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


MAKERS = dict(edm=edm, stf=stf, ect=ect, edm2=edm2, tcm=tcm, openai=openai)

if __name__ == "__main__":
    main()
