"""Batch normalisation as part of the convolution before it."""

import numpy as np


def folded(
    kernel: np.ndarray,
    scale: np.ndarray | float,
    shift: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> dict[str, np.ndarray]:
    """``(conv(x) − mean) · scale / √(variance + ε) + shift`` as one convolution with a bias.

    Args:
      kernel: PyTorch's, [O, I, H, W].
      scale: [O] or 1.
      shift: [O].
      mean: [O].
      variance: [O].
      epsilon: of the normalisation.

    Returns:
      ``{"kernel": [H, W, I, O], "bias": [O]}``, float32, computed in float64.
    """
    factor = scale / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    kernel, bias = np.transpose(kernel, (2, 3, 1, 0)) * factor, shift - mean * factor
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
