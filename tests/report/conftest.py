"""Workdirs of runs that never happened, with everything a real one leaves behind."""

import json
import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sct_jax.report.grids import save_grid


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name, method=...)`` writes a complete workdir and returns it."""
    digits = np.round(load_digits().data * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)

    def make(name="sct", method="sct", lr=1e-4, grids=12, folder=tmp_path):
        workdir = folder / name
        (workdir / "samples").mkdir(parents=True)
        config = {
            "seed": 0,
            "total_steps": 4000,
            "objective": {"method": method, "schedule": "smooth"},
            "optimizer": {"lr": lr},
        }
        (workdir / "config.json").write_text(json.dumps(config))
        rng = np.random.default_rng(len(name))
        records = []
        for step in range(10, 4001, 10):
            loss = (3 if method == "sct" else 2) * math.exp(-step / 900) * rng.lognormal(0, 0.2) + 0.05
            record = {"kind": "train", "step": step, "seconds": step / 90, "loss": loss, "grad_norm": 4 * loss**0.5}
            records.append(record | {"lr": lr, "images_per_second": 11500.5})
            if step % 400 == 0:
                for count in (1, 2):
                    quality = {"fd_pca": 5 / count * math.exp(-step / 700) + 0.15, "fd_classifier": 4 / step**0.3}
                    quality["class_agreement"] = 1 - 0.6 * math.exp(-step / 500) / count
                    records.append({"kind": "evaluation", "step": step, "sampling_steps": count} | quality)
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
        for index in range(grids):
            for count in (1, 2):
                noise = rng.normal(0, 200 / (index + 1), (64, 8, 8, 1))
                images = np.clip(digits[:64] + noise, 0, 255).astype(np.uint8)
                save_grid(images, workdir / "samples" / f"step_{(index + 1) * 333:08d}_{count}step.png")
        t = np.geomspace(0.1, 80, 10)
        ct = 18 / (1 + (1.5 / t) ** 4)
        trace = np.stack([ct, ct / 16**0.7, ct / 128**0.9, 0 * ct], axis=1)
        variance = {"t": t.tolist(), "reference_sizes": [1, 16, 128, "all"], "trace": trace.tolist()}
        (workdir / "target_variance.json").write_text(json.dumps(variance | {"ct_trace": ct.tolist(), "queries": 64}))
        results = [{"sampling_steps": 1, "fd_pca": 0.1734, "fd_pca_std": 0.0123, "class_agreement": 0.996}]
        results.append({"sampling_steps": 2, "fd_pca": 0.1421, "class_agreement": 0.9961, "per_seed": [{}]})
        evaluation = {"results": results, "floor": {"fd_pca": 0.0583}, "provenance": {"commit": "0123abc"}}
        (workdir / "evaluation.json").write_text(json.dumps(evaluation))
        (workdir / "parameters.txt").write_text("| a | b |\nTotal: 1,318,976 -- 5275904 bytes\n")
        return workdir

    return make
