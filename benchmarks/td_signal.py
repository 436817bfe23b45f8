"""How much of the TD difference each precision keeps, stage by stage of the schedule, on the weights of a model.

    python benchmarks/td_signal.py --checkpoint runs/digits_edm --config configs/digits_sct.py --out OUT

For every stage (the gap ``t − r`` shrinks by ``objective.q`` from one to the next): the mean cosine, over training's
noise levels, between the difference in ``--dtypes`` and float32's, evaluated, as a derivative, and as ``auto`` takes it
(`sct_jax/objectives/td_signal.py`). ``--config`` gives objective and data, overridden by ``--set``; the network is the
checkpoint's. Writes OUT.json and OUT.md.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import made_by, pairs

from sct_jax import config as config_lib
from sct_jax import files, models
from sct_jax.data import open_source
from sct_jax.data.spec import unit_range
from sct_jax.evaluation.provenance import provenance
from sct_jax.interop import weights as weights_lib
from sct_jax.objectives import bootstrap, td_signal


def measure(config, spec, params, images, labels, dtype: str, stages: list[int]) -> list[dict[str, float]]:
    """A row a stage; ``auto``'s octaves are decided as in a run, stage after stage."""
    build = lambda dtype: models.build(config_lib.replaced(config, {"model.compute_dtype": dtype}).model, spec)  # noqa: E731
    network, exact = build(dtype), build("float32")
    find = jax.jit(td_signal.build(config, network.denoise, network.forward, exact.denoise))
    rows, chosen = [], np.zeros(len(bootstrap.OCTAVES), bool)
    for stage in stages:
        step = jnp.int32(stage * config.objective.stage_steps)
        signal = jax.tree.map(np.asarray, find(params, images, labels, jax.random.key(0), step))
        chosen |= signal.better_as_derivative()
        trained = signal.trained("mixed", chosen)
        rows.append(
            {
                "stage": stage,
                "evaluated": signal.mean(signal.evaluated),
                "tangent": signal.mean(signal.tangent),
                "auto": signal.mean(trained),
                "auto_least_octave": float(trained[signal.share > 1e-3].min()),
                "share_as_derivative": float(signal.share[chosen].sum()),
            }
        )
        print(dtype, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--stages", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--images", type=int, default=td_signal.IMAGES)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    found = weights_lib.load(args.checkpoint)
    config = config_lib.load_config(Path(args.config), pairs(args.set))
    theirs = {key: value for key, value in config_lib.flatten(found.config).items() if key.startswith("model.")}
    config = config_lib.replaced(config, theirs | {"model.dropout": config.model.dropout})
    data = config.data
    source = open_source(data.source, data.path, split=data.split, image_size=data.image_size)
    places = np.linspace(0, len(source) - 1, args.images).astype(int)
    images, labels = zip(*(source[int(place)] for place in places), strict=True)
    images, labels = jnp.asarray(unit_range(np.stack(images))), jnp.asarray(labels)
    stages = [int(stage) for stage in args.stages.split(",")]
    results = {
        dtype: measure(config, source.spec, found.params, images, labels, dtype, stages)
        for dtype in args.dtypes.split(",")
    }
    facts = provenance(checkpoint=args.checkpoint, step=int(getattr(found, "step", 0) or 0))
    files.write_json(f"{args.out}.json", {"results": results, "provenance": facts})
    lines = [
        "| computes in | stage | evaluated | derivative | auto | auto, least octave | share as derivative |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for dtype, rows in results.items():
        for row in rows:
            cells = (f"{row[name]:.4f}" for name in ("evaluated", "tangent", "auto", "auto_least_octave"))
            lines.append(f"| {dtype} | {row['stage']} | {' | '.join(cells)} | {row['share_as_derivative']:.0%} |")
    files.write_text(f"{args.out}.md", "\n".join(lines) + f"\n\n{made_by(facts)}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
