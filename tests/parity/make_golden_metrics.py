"""Makes ``golden/metrics.json``: what torch-fidelity, prdc and scipy say about random features.

    python tests/parity/make_golden_metrics.py

Needs torch-fidelity 0.4.0, prdc 0.2 and scipy. The features are drawn by ``drawn_features.py`` on both sides, so that
the file holds only results. Each case has KID (mean and standard deviation over subsets, and the estimate on all rows),
precision and recall of torch-fidelity (its ``k`` 3), precision, recall, density and coverage of prdc (``k`` 5), both
asked in float64, the Fréchet distance by scipy's matrix square root in float64 and by torch-fidelity's eigenvalues, and
the Inception Score of a hundred logits, shuffled by torch-fidelity's seed and not.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from drawn_features import CASES, SUBSETS, drawn_features, drawn_logits
from prdc import compute_prdc
from scipy.linalg import sqrtm

for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = mock.MagicMock()  # these numbers need no images
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402


def frechet(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    (mu1, cov1), (mu2, cov2) = ((x.mean(axis=0), np.cov(x.T)) for x in (real, fake))
    cross = np.trace(sqrtm(cov1 @ cov2)).real
    theirs = metric_fid.fid_statistics_to_metric({"mu": mu1, "sigma": cov1}, {"mu": mu2, "sigma": cov2}, False)
    return {
        "scipy": float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross),
        "torch_fidelity": theirs[metric_fid.KEY_METRIC_FID],
    }


def results(name: str) -> dict[str, dict[str, float]]:
    real, fake = drawn_features(name)
    ours, theirs = torch.from_numpy(fake), torch.from_numpy(real)
    kid = metric_kid.kid_features_to_metric(ours, theirs, rng_seed=2020, verbose=False, **SUBSETS)
    few = min(len(real), len(fake))
    kernel = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    whole = metric_kid.kernel_mmd(fake[:few], real[:few], **kernel)
    pair = metric_prc.prc_features_to_metric(ours, theirs, prc_neighborhood=3, verbose=False)
    return {
        "kid": {"mean": kid[metric_kid.KEY_METRIC_KID_MEAN], "std": kid[metric_kid.KEY_METRIC_KID_STD], "all": whole},
        "torch_fidelity": {name: pair[name] for name in ("precision", "recall")},
        "prdc": {name: float(value) for name, value in compute_prdc(real, fake, nearest_k=5).items()},
        "frechet": frechet(real, fake),
    }


def inception_scores() -> dict[str, list[float]]:
    logits = torch.from_numpy(drawn_logits())
    scores = {
        "in_order": metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False),
        "shuffled": metric_isc.isc_features_to_metric(logits, splits=7, shuffle=True, rng_seed=2020),
    }
    keys = metric_isc.KEY_METRIC_ISC_MEAN, metric_isc.KEY_METRIC_ISC_STD
    return {name: [score[key] for key in keys] for name, score in scores.items()}


if __name__ == "__main__":
    golden = {name: results(name) for name in CASES} | {"inception_score": inception_scores()}
    text = json.dumps(golden, indent=1)
    (Path(__file__).parent / "golden" / "metrics.json").write_text(text + "\n", encoding="utf-8")
