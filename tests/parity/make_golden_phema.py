"""Make golden/phema.npz: what EDM2's own functions for power profiles give, in float64.

    python tests/parity/make_golden_phema.py CHECKOUT [--out FILE]

CHECKOUT is a checkout of github.com/NVlabs/edm2; its training/phema.py imports PyTorch, which is needed for this
script only. The file holds `std` and `exponent`; for each case `CASE/steps`, `CASE/stds` (the snapshots),
`CASE/inner_products` among them, `CASE/wanted` (widths, at the last step) and `CASE/coefficients` [snapshots, wanted].
"""

import argparse
import sys
from pathlib import Path

import numpy as np

CASES = {
    "two_profiles": (np.repeat(np.arange(1, 9) * 1000, 2), np.tile([0.05, 0.10], 8), [0.03, 0.075, 0.15]),
    "one_profile": (np.arange(1, 17) * 250, np.full(16, 0.05), [0.04, 0.06, 0.1, 0.25]),
    "uneven": ([64, 1000, 1000, 4096, 5000, 5000], [0.1, 0.05, 0.1, 0.05, 0.05, 0.2], [0.08, 0.12, 0.28]),
}


def main() -> None:
    """Parse the command line, make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden" / "phema.npz")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    from training import phema

    stds = np.array([0.005, 0.01, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.288])
    arrays = {"std": stds, "exponent": phema.std_to_exp(stds)}
    for name, (steps, widths, wanted) in CASES.items():
        steps, widths, wanted = (np.array(values, np.float64) for values in (steps, widths, wanted))
        last = steps.max()
        column, row = steps.reshape(-1, 1), steps.reshape(1, -1)
        products = phema.power_function_correlation(column, widths.reshape(-1, 1), row, widths.reshape(1, -1))
        coefficients = phema.solve_posthoc_coefficients(steps, widths, last, wanted)
        case = dict(steps=steps, stds=widths, inner_products=products, wanted=wanted, coefficients=coefficients)
        arrays |= {f"{name}/{key}": value for key, value in case.items()}
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
