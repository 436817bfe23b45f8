"""The methods as rows of one table: what each chooses of the objective's parts. Configs take a row and set numbers.

Training a consistency model is temporal-difference learning: a state ``(x_t, t)``, a transition to ``(x_r, r)``, a
bootstrap target ``sg[f(x_r, r)]``, a distance and a weight. ECT (arXiv 2406.14548) and SCT (arXiv 2410.18958) differ in
two entries. The rows hold the published CIFAR-10 numbers.
"""

from typing import Any

_PAIR = {
    "time_mean": -1.1,
    "time_std": 2.0,
    "q": 2.0,
    "k": 8.0,
    "b": 1.0,
    "ratio_limit": 0.999,
    "stage_steps": 25_000,
}
_LOSS = {"distance": "pseudo_huber", "huber_c": 1e-8, "weight": "inverse_gap"}

ROWS: dict[str, dict[str, Any]] = {
    #       pair (t, r)                                  transition                           distance and weight
    "ect": {"method": "ect", **_PAIR, "schedule": "staged", "transition": "sample", **_LOSS},
    "sct": {"method": "sct", **_PAIR, "schedule": "smooth", "transition": "posterior_mean", **_LOSS},
    # Diffusion pre-training (EDM, arXiv 2206.00364): no transition, the target is the sample.
    "edm": {"method": "edm", "time_mean": -1.2, "time_std": 1.2},
}
