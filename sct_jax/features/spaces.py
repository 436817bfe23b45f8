"""Feature spaces: a network that sees, its weights, and the pure function from images to features."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.errors import UserError
from sct_jax.features import dinov2, efficientnet, inception, store

NAMES = ("inception", "dinov2", "efficientnet")
INCEPTION = "inception-v3-2015-12-05"

Features = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A network and how it looks at images.

    Attributes:
      name: one of NAMES.
      version: what must agree for features to be comparable: the network and how images are prepared for it.
      params: nested dict of float32 arrays.
      weights_sha256: of the imported weights, whatever file they came from.
      source_sha256: of that file.
      resolution: the network's; images of any size come in.
      dims: of the features.
    """

    name: str
    version: str
    params: dict[str, Any]
    weights_sha256: str
    source_sha256: str
    resolution: int
    dims: int
    network: Callable[[Any, jax.Array], Features]

    @property
    def provenance(self) -> dict[str, str]:
        """What numbers must name: the network, its weights, and the published file they came from."""
        names = ("version", "weights_sha256", "source_sha256")
        return {name: getattr(self, name) for name in names}

    def extract(self, params: Any, images: jax.Array) -> Features:
        """Features of images; pure, to be jitted with ``params`` as an argument.

        Args:
          params: ``self.params``, wherever they lie now.
          images: uint8 [B, H, W, C]; one channel is shown as grey.

        Returns:
          ``features`` float32 [B, dims]; of Inception also ``probabilities`` [B, 1008] and ``spatial`` [B, 2023].

        Raises:
          UserError: for images that are no pictures.
        """
        if images.ndim != 4 or images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{self.name} features are of pictures, uint8 with 1 or 3 channels, not {images.dtype} {images.shape}"
            )
        return self.network(params, jnp.broadcast_to(images, (*images.shape[:3], 3)))


def open_space(name: str, path: str | Path = "", variant: str = "") -> FeatureSpace:
    """A feature space, its weights read from the disk.

    Args:
      name: one of NAMES.
      path: the folder of its weights; empty: ``features/NAME`` in the cache folder.
      variant: ``pytorch-fid``: Inception with images prepared as that code does. For DINOv2, the size that the weights
        must have, such as ``vitl14``. Empty: Inception as in the graph of 2015; DINOv2 of any size. EfficientNet has
        none.

    Raises:
      UserError: for an unknown name or variant; when there are no weights, with the file to get and the command.
    """
    if name not in NAMES:
        raise UserError(f"no feature space {name!r}: there are {', '.join(NAMES)}")
    if name == "inception" and variant not in inception.VARIANTS:
        raise UserError(f"inception has no variant {variant!r}: leave it out, or give 'pytorch-fid'")
    if name == "efficientnet" and variant:
        raise UserError(f"efficientnet has no variant {variant!r}: leave it out")
    stored = store.load(name, path)
    network: Callable[[Any, jax.Array], Features]
    if name == "inception":
        version, resolution, dims = INCEPTION, inception.RESOLUTION, inception.DIMS
        version, network = f"{version}-{variant}".rstrip("-"), partial(inception.extract, variant=variant)
    elif name == "efficientnet":
        version, resolution, dims = efficientnet.VERSION, efficientnet.RESOLUTION, efficientnet.DIMS
        network = efficientnet.extract
    else:
        version, network = dinov2.version(stored.params), dinov2.extract
        resolution, dims = dinov2.RESOLUTION, stored.params["norm"]["scale"].shape[0]
        if variant and version != f"dinov2-{variant}":
            raise UserError(f"the weights are of {version}, not of dinov2-{variant}: import that file to another --out")
    source = stored.card.get("source", {}).get("sha256", "")
    return FeatureSpace(name, version, stored.params, stored.weights_sha256, source, resolution, dims, network)
