"""ECT's own PyTorch training step and sampler, timed: run by `train_step.py --peer`, in a Python that has PyTorch.

    python benchmarks/peer_ect.py --peer ECT --batch 4 --modes shipped      # ECT: a checkout of github.com/locuslab/ect

Its classes are used as they are: the network with its preconditioning, the loss, RAdam, and around them what an
iteration of its training loop does (gradients without NaN, optimizer step, moving average). Prints one line of JSON:
for each mode seconds of a step (median and least), the peak of bytes on a GPU, seconds of a batch in one-step sampling.

Modes: `shipped`, as its defaults have it: float32, TF32 off, eager, channels first. `tf32` and `bfloat16` (autocast)
are its best: channels last and torch.compile as well, where these run.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from timing import seconds


def main() -> None:
    args = parse()
    device = start(args.peer)
    if device.type == "cpu":
        torch.set_num_threads(args.threads or torch.get_num_threads())
    rows = []
    for mode in args.modes:
        try:
            rows.append({"mode": mode} | measure(args, device, mode))
        except Exception as error:  # a mode that this machine cannot run is a result too
            rows.append({"mode": mode, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"torch": torch.__version__, "device": name, "threads": torch.get_num_threads(), "rows": rows}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--channel-mult", type=int, nargs="+", default=[2, 2, 2])
    parser.add_argument("--num-blocks", type=int, default=4)
    parser.add_argument("--attention", type=int, nargs="*", default=[16], help="resolutions")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sample-batch", type=int, default=0, help="0: the batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=["shipped", "tf32", "bfloat16"], default=["shipped"])
    return parser.parse_args()


def measure(args: argparse.Namespace, device: torch.device, mode: str) -> dict[str, Any]:
    """A training step and a sample of one mode, measured on a fresh network of the CIFAR-10 kind."""
    from training.loss import ECMLoss
    from training.networks import ECMPrecond

    best = mode != "shipped"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = best
    torch.manual_seed(0)
    network = ECMPrecond(
        32,
        3,
        model_type="SongUNet",
        embedding_type="positional",
        encoder_type="standard",
        decoder_type="standard",
        channel_mult_noise=1,
        resample_filter=[1, 1],
        model_channels=args.channels,
        channel_mult=args.channel_mult,
        num_blocks=args.num_blocks,
        attn_resolutions=args.attention,
        dropout=args.dropout,
    )
    network = network.train().requires_grad_(True).to(device)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    if best:
        network, average = (net.to(memory_format=torch.channels_last) for net in (network, average))
    called = torch.compile(network) if best else network
    loss_of, optimizer = ECMLoss(), torch.optim.RAdam(network.parameters(), lr=1e-4)
    loss_of.update_schedule(0)
    pixels = torch.randint(0, 256, (args.batch, 3, 32, 32), dtype=torch.uint8)
    half = lambda: torch.autocast(device.type, torch.bfloat16, enabled=mode == "bfloat16")  # noqa: E731

    def step() -> None:
        images = pixels.to(device).to(torch.float32) / 127.5 - 1
        if best:
            images = images.to(memory_format=torch.channels_last)
        with half():
            loss = loss_of(net=called, images=images).mean()
        update(network, average, optimizer, loss, 0.9999)

    count = args.sample_batch or args.batch
    noise = torch.randn(count, 3, 32, 32, device=device)
    sampler = torch.compile(average) if best else average

    def sample() -> None:
        with torch.no_grad(), half():
            sampler(noise * 80.0, torch.full((count,), 80.0, device=device), None)

    def wait(result: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"parameters": sum(param.numel() for param in network.parameters())}
    result["step"] = seconds(step, args.repeats, wait)
    result["sample"] = seconds(sample, args.repeats, wait)
    if device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return result


def update(
    network: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    decay: float,
) -> None:
    """What an iteration of its training loop does with a loss: gradients without NaN, an update, the average."""
    loss.backward()
    for param in network.parameters():
        if param.grad is not None:
            torch.nan_to_num(param.grad, nan=0, posinf=1e5, neginf=-1e5, out=param.grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for mean, param in zip(average.parameters(), network.parameters(), strict=True):
            mean.copy_(param.detach().lerp(mean, decay))


def start(peer: Path) -> torch.device:
    """Makes a checkout's modules importable and PyTorch as its loop sets it; the device to compute on."""
    sys.path.insert(0, str(peer.resolve()))
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if torch.cuda.is_available():
        return torch.device("cuda")
    # Its loss asks CUDA for the state that the dropout mask is drawn from.
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = torch.get_rng_state, torch.set_rng_state
    return torch.device("cpu")


if __name__ == "__main__":
    main()
