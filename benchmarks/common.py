"""What several benchmarks share: overrides from the command line, numbers and provenance as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a dict."""
    return dict(text.split("=", 1) for text in texts)


def spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation, or a dash where the metric does not apply."""
    if any(value is None for value in values):
        return "–"
    digits = 4 if abs(np.mean(values)) < 0.1 else 3
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def made_by(facts: dict[str, Any]) -> str:
    """The command and commit of a benchmark's provenance, to stand under its table; no full stop."""
    commit = facts["commit"]["hash"][:12] if facts["commit"] else "unknown"
    return f"Made by `python benchmarks/{' '.join(facts['command'])}` at commit {commit}"
