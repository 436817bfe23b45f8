"""Inception-v3 as Google released it in December 2015: the network that FID, the Inception Score and sFID mean.

It differs from today's Inception-v3: average pools leave the padding out of the mean, the last block pools by the
maximum, there are 1008 classes, and the Inception Score takes the logits without their bias. Layers have the names of
that graph. Normalisation is folded into the convolutions: an import leaves ``{layer: {"kernel", "bias"}}``, kernels
HWIO, and ``{"output": {"kernel"}}``.

How images are prepared is a ``variant``, for the codes in use differ:

- ``""``: bilinear without half-pixel centres, (x - 128) / 128, as in the graph itself. So do TTUR's original code,
  ADM's evaluator, NVIDIA's (StyleGAN, EDM, EDM2: there as ``grid_sample``) and torch-fidelity. Most published FIDs of
  these models are of this one.
- ``"pytorch-fid"``: bilinear with half-pixel centres, (x - 127.5) / 127.5, as pytorch-fid does. Its features, and so
  its FIDs, differ slightly, with the same weights.

clean-fid resizes with Pillow's antialiased bicubic filter by default, which is neither.

Szegedy et al. 2016 (the network), Heusel et al. 2017 (FID), Nash et al. 2021 (sFID).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sct_jax.features.resize import bilinear, bilinear_tf1, resize

RESOLUTION, DIMS, CLASSES = 299, 2048, 1008
SPATIAL_CHANNELS = 7  # of the 192 of mixed_6/conv, on 17 x 17 places: sFID's 2023 numbers
VARIANTS = {"": (bilinear_tf1, 128.0), "pytorch-fid": (bilinear, 127.5)}

Params = dict[str, dict[str, jax.Array]]
# layer(name, x, width, size=(1, 1), stride=1, padding="SAME") -> y
Layer = Callable[..., jax.Array]
Tower = tuple[tuple, ...]


def extract(params: Params, images: jax.Array, variant: str = "") -> dict[str, jax.Array]:
    """Features of uint8 images [B, H, W, 3] of any size, as :func:`network` gives them."""
    return network(params, prepare(images, variant))


def prepare(images: jax.Array, variant: str = "") -> jax.Array:
    """Images in 0…255 as the network sees them: float32 [B, 299, 299, 3]."""
    weights, middle = VARIANTS[variant]
    return (resize(images.astype(jnp.float32), RESOLUTION, weights) - middle) / middle


def network(params: Params, x: jax.Array) -> dict[str, jax.Array]:
    """What metrics look at, float32.

    Args:
      params: as the module says.
      x: [B, 299, 299, 3], prepared.

    Returns:
      ``features`` [B, 2048], the last pool; ``probabilities`` [B, 1008], of the logits without bias; ``spatial``
      [B, 2023], the first seven channels of ``mixed_6/conv``, row by row.
    """

    def layer(name: str, x: jax.Array, width: int, size=(1, 1), stride: int = 1, padding: str = "SAME") -> jax.Array:
        return jax.nn.relu(_convolve(x, params[name]["kernel"], stride, padding) + params[name]["bias"])

    features, spatial = _body(layer, x)
    logits = jnp.matmul(features, params["output"]["kernel"], precision="highest")
    return {"features": features, "probabilities": jax.nn.softmax(logits), "spatial": spatial}


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def layer(name: str, x: jax.Array, width: int, size=(1, 1), stride: int = 1, padding: str = "SAME") -> jax.Array:
        kernel = (*size, x.shape[-1], width)
        found[name] = {"kernel": kernel, "bias": (width,)}
        return _convolve(x, jnp.zeros(kernel), stride, padding)

    x = jax.ShapeDtypeStruct((1, RESOLUTION, RESOLUTION, 3), jnp.float32)
    jax.eval_shape(lambda x: _body(layer, x), x)
    return found | {"output": {"kernel": (DIMS, CLASSES)}}


def _body(layer: Layer, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All layers up to the last pool: (features, spatial)."""
    x = layer("conv", x, 32, (3, 3), 2, "VALID")
    x = layer("conv_1", x, 32, (3, 3), 1, "VALID")
    x = layer("conv_2", x, 64, (3, 3))
    x = _shrink(x)
    x = layer("conv_3", x, 80)
    x = layer("conv_4", x, 192, (3, 3), 1, "VALID")
    x = _shrink(x)
    towers: tuple[Tower, Tower]
    for name, pooled in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):  # 35 x 35
        towers = ((48,), (64, (5, 5))), ((64,), (96, (3, 3)), (96, (3, 3)))
        x = _join(_branches(layer, name, x, 64, towers, pooled))
    x = _join(
        [
            layer("mixed_3/conv", x, 384, (3, 3), 2, "VALID"),
            _tower(layer, "mixed_3/tower", x, ((64,), (96, (3, 3)), (96, (3, 3), 2, "VALID"))),
            _shrink(x),
        ]
    )
    for name, width in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):  # 17 x 17
        row, column = (width, (1, 7)), (width, (7, 1))
        towers = ((width,), row, (192, (7, 1))), ((width,), column, row, column, (192, (1, 7)))
        branches = _branches(layer, name, x, 192, towers, 192)
        if name == "mixed_6":
            spatial = branches[0][..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        x = _join(branches)
    x = _join(
        [
            _tower(layer, "mixed_8/tower", x, ((192,), (320, (3, 3), 2, "VALID"))),
            _tower(layer, "mixed_8/tower_1", x, ((192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, "VALID"))),
            _shrink(x),
        ]
    )
    for name, pool in (("mixed_9", _average), ("mixed_10", _maximum)):  # 8 x 8
        x = _widest(layer, name, x, pool)
    return x.mean((1, 2)), spatial


def _branches(
    layer: Layer, name: str, x: jax.Array, width: int, towers: tuple[Tower, Tower], pooled: int
) -> list[jax.Array]:
    return [
        layer(f"{name}/conv", x, width),
        _tower(layer, f"{name}/tower", x, towers[0]),
        _tower(layer, f"{name}/tower_1", x, towers[1]),
        layer(f"{name}/tower_2/conv", _average(x), pooled),
    ]


def _tower(layer: Layer, name: str, x: jax.Array, tower: Tower) -> jax.Array:
    for index, settings in enumerate(tower):
        x = layer(f"{name}/conv" + (f"_{index}" if index else ""), x, *settings)
    return x


def _widest(layer: Layer, name: str, x: jax.Array, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The last two blocks, whose towers end in a row and a column beside each other."""
    ends = {"tower": layer(f"{name}/tower/conv", x, 384)}
    ends["tower_1"] = _tower(layer, f"{name}/tower_1", x, ((448,), (384, (3, 3))))
    branches = [layer(f"{name}/conv", x, 320)]
    for tower, end in ends.items():
        branches.append(layer(f"{name}/{tower}/mixed/conv", end, 384, (1, 3)))
        branches.append(layer(f"{name}/{tower}/mixed/conv_1", end, 384, (3, 1)))
    return _join([*branches, layer(f"{name}/tower_2/conv", pool(x), 192)])


def _join(branches: list[jax.Array]) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def _shrink(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def _maximum(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _average(x: jax.Array) -> jax.Array:
    """The mean of 3 x 3 pixels, at the edges of those that are there."""

    def total(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))
