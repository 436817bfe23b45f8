"""``sct-jax evaluate reference``: statistics of real images in a feature space, to compare samples with."""

from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.data import open_source
from sct_jax.errors import UserError
from sct_jax.evaluation.embed import Embedding, Wanted
from sct_jax.evaluation.network_metrics import FEATURES, SPATIAL, weights_folder
from sct_jax.evaluation.offline import kind_of_data, path_of
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.reference import Reference, check_ending, save_reference
from sct_jax.features import open_space
from sct_jax.training.mesh import make_mesh


def make_reference(
    data_path: str,
    out: str | Path,
    *,
    source: str = "",
    split: str = "train",
    image_size: int = 0,
    crop: str = "centre",
    features: str = "inception",
    weights: str = "",
    keep_features: bool = False,
    num: int | None = None,
    batch_size: int = 256,
) -> Path:
    """Sees all images of a data source with a feature network and writes their moments.

    Args:
      data_path: where the images lie; empty where ``source`` needs no path.
      out: the ``.npz`` to write.
      source: kind of data, a name of ``open_source``; empty: found out.
      split: part of the data.
      image_size: as in ``open_source``.
      crop: as in ``open_source``.
      features: the feature space, ``inception``, ``dinov2`` or ``efficientnet``.
      weights: folder of the network's weights; empty: where ``sct-jax import`` puts them.
      keep_features: also each image's features, for KID, precision and recall, density and coverage.
      num: so many images, drawn at random, always the same ones; None: all.
      batch_size: images at a time.

    Raises:
      UserError: for data or weights that are missing or damaged, too few images, and features that are not finite.
    """
    files.check_writable(out)
    check_ending(Path(out))
    if not (data_path or source):
        raise UserError("evaluate reference needs --data-path, or --source (see sct-jax evaluate reference --help)")
    space = open_space(features, weights_folder(weights, features))
    kind = source or kind_of_data(data_path)
    images = open_source(kind, path_of(kind, data_path), split, image_size, crop)
    num = len(images) if num is None else num
    if num <= space.dims:
        raise UserError(f"statistics of {space.dims} features need at least {space.dims + 1} images, got {num}")
    own, spatial = (features, FEATURES), (features, SPATIAL)
    moments = {own, spatial} if features == "inception" else {own}
    wanted = Wanted(frozenset(moments), frozenset({own} if keep_features else ()))
    seen = Embedding({features: space}, wanted, make_mesh()).images(images, num=num, batch_size=batch_size)
    found = seen.moments[own]
    card: dict[str, Any] = provenance(
        data={"source": kind, "path": data_path, "split": split, "crop": crop},
        images=num,
        features=space.provenance,
    )
    return save_reference(
        out,
        Reference(
            space=features,
            version=space.version,
            resolution=images.spec.image_size,
            channels=images.spec.channels,
            num=seen.num,
            mean=found.mean,
            cov=found.cov,
            features=seen.rows.get(own),
            spatial=seen.moments.get(spatial),
            card=card,
            sha256="",
        ),
    )
