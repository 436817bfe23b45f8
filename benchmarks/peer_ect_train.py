"""ECT's own PyTorch classes train on given images from given weights: run by `time_to_quality.py`, where PyTorch is.

    python benchmarks/peer_ect_train.py --peer ECT --weights edm.safetensors --data images.npz --out FOLDER ...

The network is made with what the file of weights says (`sct-jax export --format safetensors`), the loss and the stages
are its own, RAdam and the moving average as its loop has them. Writes FOLDER/STEP.pt, the average, every so many steps.
"""

import argparse
import copy
import json
import os
from pathlib import Path

import numpy as np
import torch
from peer_ect import start, update
from safetensors import safe_open


def main() -> None:
    args = parse()
    device = start(args.peer)
    from training.loss import ECMLoss
    from training.networks import ECMPrecond

    torch.manual_seed(args.seed)
    with safe_open(str(args.weights), "pt") as file:
        kwargs = json.loads(file.metadata()["kwargs"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = ECMPrecond(**kwargs)
    network.load_state_dict(weights, strict=True)
    network = network.train().requires_grad_(True).to(device)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer, loss_of = torch.optim.RAdam(network.parameters(), lr=args.lr), ECMLoss(q=args.q)
    with np.load(args.data) as file:
        pixels, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    one_hot = torch.nn.functional.one_hot(labels.long(), kwargs["label_dim"]).to(torch.float32)
    rng = np.random.default_rng(args.seed)
    args.out.mkdir(parents=True)
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type}
    (args.out / "versions.json").write_text(json.dumps(versions))
    for step in range(1, args.steps + 1):
        if (step - 1) % args.stage_steps == 0:
            loss_of.update_schedule((step - 1) // args.stage_steps)
        chosen = rng.integers(0, len(pixels), args.batch)
        images = pixels[chosen].to(device).to(torch.float32) / 127.5 - 1
        loss = loss_of(net=network, images=images, labels=one_hot[chosen].to(device)).mean()
        update(network, average, optimizer, loss, args.ema)
        if step % args.every == 0 or step == args.steps:
            aside = args.out / "aside.part"
            torch.save(average.state_dict(), aside)
            os.replace(aside, args.out / f"{step}.pt")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of ECT")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors with the class's arguments")
    parser.add_argument("--data", type=Path, required=True, help=".npz: images uint8 [N, C, H, W], labels [N]")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    for name in ("batch", "steps", "every", "stage-steps", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("lr", "ema", "q"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
