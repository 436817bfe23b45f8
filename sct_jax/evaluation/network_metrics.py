"""The standard metrics, on features of Inception-v3, DINOv2 and EfficientNet-Lite2: FID and its relatives, by name.

A table says what each needs of the samples and of the reference, so that a pass keeps no more than is asked for and
what cannot work is refused before a sample is drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.evaluation.embed import Collected, Output, Wanted
from sct_jax.evaluation.frechet import frechet_distance
from sct_jax.evaluation.inception_score import inception_score
from sct_jax.evaluation.kernel import kid
from sct_jax.evaluation.manifold import density_coverage, precision_recall
from sct_jax.evaluation.reference import OtherSpace, Reference, load_reference
from sct_jax.features import NAMES, FeatureSpace, open_space

FEATURES, SPATIAL, PROBABILITIES = "features", "spatial", "probabilities"
OTHER_SPACES = tuple(space for space in NAMES if space != "inception")  # whose scores are named after them
SPLITS = 10  # of the Inception Score
SUBSET = 1000  # images of a subset of KID
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


class Family(NamedTuple):
    """Metrics that one computation gives.

    Attributes:
      names: of the metrics.
      output: of the feature network, which they compare.
      compute: scores by name, from the samples' rows or moments and those of real images.
      rows: whether they need each image's, or only the moments.
      real: whether they compare with real images.
      fewest: samples, and real images whose rows are compared; 0: one more than there are features.
    """

    names: tuple[str, ...]
    output: str
    compute: Callable[[Any, Any], dict[str, float]]
    rows: bool = True
    real: bool = True
    fewest: int = 0


def _fid(fake: Any, real: Any) -> dict[str, float]:
    return {"fid": frechet_distance(fake.mean, fake.cov, real.mean, real.cov)}


def _sfid(fake: Any, real: Any) -> dict[str, float]:
    return {"sfid": _fid(fake, real)["fid"]}


def _kid(fake: Any, real: Any) -> dict[str, float]:
    mean, error = kid(real, fake, subset_size=SUBSET)
    # There is no error where every subset holds all rows.
    return {"kid": mean} | ({} if math.isnan(error) else {"kid_standard_error": error})


def _inception_score(fake: Any, real: None) -> dict[str, float]:
    mean, spread = inception_score(fake, splits=SPLITS)
    return {"inception_score": mean, "inception_score_split_std": spread}


def _precision_recall(fake: Any, real: Any) -> dict[str, float]:
    return precision_recall(real, fake, k=PRECISION_NEIGHBOURS)


def _density_coverage(fake: Any, real: Any) -> dict[str, float]:
    return density_coverage(real, fake, k=DENSITY_NEIGHBOURS)


FAMILIES = (
    Family(("fid",), FEATURES, _fid, rows=False),
    Family(("sfid",), SPATIAL, _sfid, rows=False),
    Family(("inception_score",), PROBABILITIES, _inception_score, real=False, fewest=SPLITS),
    Family(("kid",), FEATURES, _kid, fewest=SUBSET),
    Family(("precision", "recall"), FEATURES, _precision_recall, fewest=PRECISION_NEIGHBOURS + 1),
    Family(("density", "coverage"), FEATURES, _density_coverage, fewest=DENSITY_NEIGHBOURS + 1),
)


class Metric(NamedTuple):
    """A metric: its feature space, its family, and its name in there."""

    space: str
    family: Family
    base: str


def _table() -> dict[str, Metric]:
    table = {name: Metric("inception", family, name) for family in FAMILIES for name in family.names}
    for space in OTHER_SPACES:
        for family in FAMILIES:
            if family.output == FEATURES:
                table |= {in_space(name, space): Metric(space, family, name) for name in family.names}
    return table


def in_space(name: str, space: str) -> str:
    """A score's name in a feature space: ``fid`` and ``kid`` are ``fd_dinov2`` and ``kid_dinov2`` in DINOv2's."""
    if space == "inception":
        return name
    return f"fd_{space}" if name == "fid" else f"{name}_{space}"


METRICS = _table()
ERRORS = {  # what stands beside a score, of one set of samples
    **{in_space("kid", space): in_space("kid_standard_error", space) for space in NAMES},
    "inception_score": "inception_score_split_std",
}
FRECHET = {space: in_space("fid", space) for space in NAMES}  # what a space is measured with where no metric is named


class NetworkEvaluator:
    """Scores of samples by the named metrics, from what a pass has kept of them (:mod:`sct_jax.evaluation.embed`).

    Args:
      names: of METRICS.
      spaces: the networks they need, by name.
      references: the real images' statistics, by feature space.
    """

    def __init__(self, names: Sequence[str], spaces: Mapping[str, FeatureSpace], references: Mapping[str, Reference]):
        self.names, self.spaces, self.references = tuple(dict.fromkeys(names)), dict(spaces), dict(references)
        for name in self.names:
            self._check_reference(name)

    @property
    def wanted(self) -> Wanted:
        """What a pass must keep."""
        asked = {(METRICS[name].family.rows, _output(name)) for name in self.names}
        return Wanted(frozenset(o for rows, o in asked if not rows), frozenset(o for rows, o in asked if rows))

    def check(self, num: int) -> None:
        """Raises a UserError for fewer samples than a metric needs, before any are drawn."""
        for name in self.names:
            fewest = self._fewest(name)
            if num < fewest:
                raise UserError(f"--num {num}: {name} needs at least {fewest:,} samples")

    def scores(self, seen: Collected) -> dict[str, float]:
        """Scores by name; beside ``kid`` its standard error, beside ``inception_score`` its spread over the splits."""
        self.check(seen.num)
        result, done = {}, {}
        for name in self.names:
            metric, output = METRICS[name], _output(name)
            key = (output, metric.family.names)
            if key not in done:
                kept = seen.rows if metric.family.rows else seen.moments
                done[key] = metric.family.compute(kept[output], self._real(name))
            own = {found: value for found, value in done[key].items() if found.startswith(metric.base)}
            result |= {in_space(found, metric.space): value for found, value in own.items()}
        return result

    def _fewest(self, name: str) -> int:
        family = METRICS[name].family
        return family.fewest or len(self._real(name).mean) + 1

    def _real(self, name: str) -> Any:
        metric = METRICS[name]
        if not metric.family.real:
            return None
        reference = self.references[metric.space]
        if metric.family.rows:
            return reference.features
        return reference.spatial if metric.family.output == SPATIAL else reference

    def _check_reference(self, name: str) -> None:
        metric = METRICS[name]
        if not metric.family.real:
            return
        if metric.space not in self.references:
            raise UserError(f"{name} {_needs_reference(metric.space)}")
        if self._real(name) is None:
            what = "the features of each image" if metric.family.rows else "moments of spatial features"
            extra = " --keep-features" if metric.family.rows else ""
            raise UserError(
                f"{name} needs {what}, which the --reference of {metric.space} does not hold: "
                f"sct-jax evaluate reference{extra} makes one"
            )
        if metric.family.rows and len(self._real(name)) < metric.family.fewest:
            raise UserError(
                f"{name} needs at least {metric.family.fewest:,} real images; "
                f"the --reference has {len(self._real(name)):,}"
            )


def open_network_metrics(
    names: Sequence[str], reference_files: Sequence[str], folder: str = "", spec: DataSpec | None = None
) -> NetworkEvaluator:
    """The evaluator of metrics by name, its weights and references read from files.

    Args:
      names: of METRICS.
      reference_files: in each the statistics of real images in one feature space or several.
      folder: of the weights, or one that holds a folder for each space; empty: the cache folder.
      spec: of the images that shall be compared; None: of any.

    Raises:
      UserError: for weights or references that are missing, damaged or do not fit.
    """
    spaces = {METRICS[name].space: None for name in names}
    opened = {name: open_space(name, weights_folder(folder, name)) for name in spaces}
    compared = {METRICS[name].space for name in names if METRICS[name].family.real}
    references = {name: _find(opened[name], reference_files, spec) for name in spaces if name in compared}
    return NetworkEvaluator(names, opened, references)


def joined(parts: Sequence[NetworkEvaluator]) -> NetworkEvaluator | None:
    """One evaluator of all that several measure; None of none."""
    if not parts:
        return None
    names = [name for part in parts for name in part.names]
    spaces = {name: space for part in parts for name, space in part.spaces.items()}
    return NetworkEvaluator(names, spaces, {name: real for part in parts for name, real in part.references.items()})


def weights_folder(folder: str, name: str) -> str:
    """Where a space's weights are, below ``folder`` or ``folder`` itself."""
    return str(Path(folder) / name) if folder and (Path(folder) / name).is_dir() else folder


def _find(space: FeatureSpace, reference_files: Sequence[str], spec: DataSpec | None) -> Reference:
    """The statistics of the space in the first of the files that holds them; OtherSpace if all are of other spaces."""
    complaints: list[str] = []
    kind: type[UserError] = OtherSpace
    images = {} if spec is None else {"resolution": spec.image_size, "channels": spec.channels}
    for file in reference_files:
        try:
            return load_reference(file, space, **images)
        except UserError as error:
            complaints.append(str(error))
            kind = kind if isinstance(error, OtherSpace) else UserError
    if not complaints:
        raise UserError(f"{FRECHET[space.name]} {_needs_reference(space.name)}")
    raise kind("; ".join(complaints))


def _needs_reference(space: str) -> str:
    return (
        "needs statistics of real images: give --reference FILE; "
        f"sct-jax evaluate reference --data-path IMAGES --features {space} --out FILE makes one"
    )


def _output(name: str) -> Output:
    return METRICS[name].space, METRICS[name].family.output
