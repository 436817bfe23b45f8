"""The methods as rows of one table: what each chooses of the objective's parts. Configs take a row and set numbers.

Training a consistency model is temporal-difference learning: a state ``(x_t, t)``, a transition to ``(x_r, r)``, a
bootstrap target ``sg[f(x_r, r)]``, a distance and a weight. The rows hold the published CIFAR-10 numbers, but for CD's
EMA, which is that of ImageNet-64: on CIFAR-10 the authors take none (``configs/cifar10_cd.py``).

| row | source              | time pair                 | transition     | bootstrap | distance, weight      |
|-----|---------------------|---------------------------|----------------|-----------|-----------------------|
| ct  | CM, 2303.01469      | grid, 2 … 150, uniform    | the sample     | EMA, μ(k) | L2, 1                 |
| cd  | CM, 2303.01469      | grid of 18, uniform       | teacher, Heun  | EMA, 0.95 | L2, 1                 |
| ict | iCT, 2310.14189     | grid, 10 … 1280, lognormal| the sample     | online    | pseudo-Huber, 1/(t−r) |
| ect | ECT, 2406.14548     | lognormal t, r in stages  | the sample     | online    | norm, 1/(t−r)         |
| sct | SCT, 2410.18958     | lognormal t, r smoothly   | posterior mean | online    | norm, 1/(t−r)         |
| tcm1| TCM, 2410.14895     | truncated, r in stages    | the sample     | online    | norm, 1/(t−r)         |
| tcm | TCM, stage 2        | Student-t above t', capped| the sample     | divided   | norm, 1/(t−r)         |
| gc  | GC, 2406.09570      | grid, 10 … 1280, lognormal| half generated | online    | pseudo-Huber, 1/(t−r) |
"""

from typing import Any

_MAPPING = {
    "pair": "mapping",
    "times": "lognormal",
    "time_mean": -1.1,
    "time_std": 2.0,
    "q": 2.0,
    "k": 8.0,
    "b": 1.0,
    "ratio_limit": 0.999,
    "ratio_limit_of": "pair",
    "stage_steps": 25_000,
    "first_stage": 0,
}
_UNCAPPED = _MAPPING | {"ratio_limit": 1.0}  # ECT's code has no cap; TCM's, which SCT's row takes, is 0.999
_TRUNCATED = _MAPPING | {"times": "truncated_lognormal", "t_min": 0.002, "t_max": 80.0, "ratio_limit_of": "schedule"}
_TRUNCATED |= {"schedule": "staged"}
# Stage 2 goes on at the gap that stage 1 ended with: 1 − 1/2^10 is above the limit.
_STUDENT = _TRUNCATED | {"times": "truncated_student", "time_mean": 0.0, "time_std": 0.2, "time_freedom": 0.01}
_STUDENT |= {"first_stage": 9}
_GRID = {"pair": "grid", "times": "uniform", "t_min": 0.002, "t_max": 80.0, "rho": 7.0, "schedule": "staged"}
_ONLINE = {"bootstrap": "online"}
_DIVIDED = {"bootstrap": "divided", "dividing_time": 1.0, "boundary_share": 0.25, "boundary_weight": 0.1}
_GENERATED = {"transition": "generated", "generated": 0.5, "generator_decay": 0.9999, "generator_every": 5}
_NORM = {"distance": "pseudo_huber", "huber_c": 1e-8, "weight": "inverse_gap"}
_SQUARED = {"distance": "squared_l2", "weight": "uniform"}
_ICT_HUBER = {"distance": "pseudo_huber", "huber_c": 0.00054 * 3072**0.5, "weight": "inverse_gap"}

_CT_EMA = {"bootstrap": "ema", "target_decay": 0.9, "target_decay_adaptive": True}
_CD_EMA = {"bootstrap": "ema", "target_decay": 0.95, "target_decay_adaptive": False}
_CT_GRID = _GRID | {"growth": "progressive", "s_0": 2, "s_1": 150}
_CD_GRID = _GRID | {"growth": "fixed", "s_0": 18, "s_1": 18}
_ICT_GRID = _GRID | {"growth": "doubling", "s_0": 10, "s_1": 1280}
_ICT_GRID |= {"times": "lognormal", "time_mean": -1.1, "time_std": 2.0}

ROWS: dict[str, dict[str, Any]] = {
    #       time pair                                 transition                       bootstrap   distance and weight
    "ct": {"method": "ct", **_CT_GRID, "transition": "sample", **_CT_EMA, **_SQUARED},
    "cd": {"method": "cd", **_CD_GRID, "transition": "teacher_heun", **_CD_EMA, **_SQUARED},
    "ict": {"method": "ict", **_ICT_GRID, "transition": "sample", **_ONLINE, **_ICT_HUBER},
    "ect": {"method": "ect", **_UNCAPPED, "schedule": "staged", "transition": "sample", **_ONLINE, **_NORM},
    "sct": {"method": "sct", **_MAPPING, "schedule": "smooth", "transition": "posterior_mean", **_ONLINE, **_NORM},
    "tcm1": {"method": "tcm1", **_TRUNCATED, "transition": "sample", **_ONLINE, **_NORM},
    "tcm": {"method": "tcm", **_STUDENT, "transition": "sample", **_DIVIDED, **_NORM},
    "gc": {"method": "gc", **_ICT_GRID, **_GENERATED, **_ONLINE, **_ICT_HUBER},
    # Diffusion pre-training: no transition. The target is the sample (EDM, arXiv 2206.00364) or its posterior mean
    # (Stable Target Field, arXiv 2302.00670).
    "edm": {"method": "edm", "times": "lognormal", "time_mean": -1.2, "time_std": 1.2, "transition": "sample"},
    "stf": {"method": "stf", "times": "lognormal", "time_mean": -1.2, "time_std": 1.2, "transition": "posterior_mean"},
}

# The transitions that make a method what it is; its other choices are free.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    "ct": ("sample",),
    "cd": ("teacher_euler", "teacher_heun"),
    "ict": ("sample",),
    "ect": ("sample",),
    "sct": ("posterior_mean",),
    "tcm1": ("sample",),
    "tcm": ("sample",),
    "gc": ("generated",),
    "stf": ("posterior_mean",),
}
