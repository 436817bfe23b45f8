"""What measures a model, in one pass over its samples: offline metrics by its data, and those on feature networks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax import cards, files
from sct_jax.config import sampled_model
from sct_jax.data import open_source
from sct_jax.data.sources import NO_DATA
from sct_jax.errors import UserError
from sct_jax.evaluation.embed import QUANTISATION, Embedding, Wanted
from sct_jax.evaluation.metrics import OFFLINE, Evaluator, check_names
from sct_jax.evaluation.mixtures import MixtureEvaluator
from sct_jax.evaluation.network_metrics import FRECHET, METRICS, NetworkEvaluator, joined, open_network_metrics
from sct_jax.evaluation.offline import make_evaluator, measure, path_of, with_data
from sct_jax.evaluation.reference import OtherSpace
from sct_jax.features import MissingWeights
from sct_jax.model import Model
from sct_jax.sampling.generate import MULTISTEP

MOST_SAMPLES = {Evaluator: 10_000, MixtureEvaluator: 1000}  # unless asked for
TITLES = {"fid": "FID", "fd_dinov2": "FD-DINOv2", "fd_efficientnet": "fd_efficientnet"}
UNTOLD = (
    "the reference does not tell how images were resized: as here in EDM's, EDM2's and ADM's, otherwise in "
    "pytorch-fid's and clean-fid's, which shifts FID"
)
STANDARD_SAMPLES = 50_000  # of the metrics on feature networks: what published numbers are of


class Meter:
    """Draws samples of one model and scores them.

    Args:
      model: the model.
      metrics: names; None: all offline ones that apply, and FID (or another space's distance) where weights and
        reference are there.
      references: files with statistics of real images.
      features: folder of the feature networks' weights; empty: the cache folder.
      data_path: where the data lies now, if not where the config says.
      options: of sampling: ``noise``, ``eta``, ``guide``, ``omega``, ``batch_size``.

    Attributes:
      notes: a line each on what is left out that is measured usually, and on references that do not tell what they are.

    Raises:
      UserError: for metrics, data, weights or references that are not there or do not fit; before anything is drawn.
    """

    def __init__(
        self,
        model: Model,
        *,
        metrics: Sequence[str] | None = None,
        references: Sequence[str | Path] = (),
        features: str | Path = "",
        data_path: str = "",
        options: dict[str, Any] | None = None,
    ):
        self.model, self.notes = model, list[str]()
        references, features = [str(file) for file in references], str(features)
        self._options = dict(options or {})
        bad, omega = model.check_guide(self._options.get("guide"), self._options.get("omega"))
        self._options |= {"guide": bad, "omega": omega}
        self._denoise = model.guided(bad, omega)
        self._labels = model.check_labels(None)
        for file in references:
            if not Path(file).exists():
                raise UserError(f"--reference {file}: there is no such file")
        if metrics is not None and not metrics:
            raise UserError("--metrics: name one at least, or leave it out")
        pictures = model.spec.dtype == "uint8"
        if pictures:
            check_names(metrics or (), (*OFFLINE, *METRICS))
        standard = [name for name in metrics or () if pictures and name in METRICS]
        self._names = None if metrics is None else [name for name in metrics if name not in standard]
        self.offline: Evaluator | MixtureEvaluator | None = None
        self._data: dict[str, Any] | None = None
        if self._names or (metrics is None and (data_path or model.config.data.source != NO_DATA or not references)):
            self._open_data(data_path)
        self.network: NetworkEvaluator | None = None
        if standard:
            self.network = open_network_metrics(standard, references, features, model.spec)
        elif metrics is None and pictures:
            self.network = self._usual(references, features)
        given = self.network.references if self.network else {}
        if "inception" in given and not given["inception"].version:
            self.notes.append(UNTOLD)
        wanted = replace(self.network.wanted if self.network else Wanted(), images=self.offline is not None)
        spaces = self.network.spaces if self.network else {}
        self._embedding = Embedding(spaces, wanted, model.mesh) if pictures else None

    def checked_num(self, num: int | None) -> int:
        """How many samples to take: ``num``, or as many as are usual where it is None.

        Raises:
          UserError: for fewer than a metric needs, and for options of sampling that do not suit the model.
        """
        if num is None and self.network is not None:
            num = STANDARD_SAMPLES
        elif num is None:
            num = min(self._data["images"], MOST_SAMPLES[type(self.offline)])
        self.model.check_options(self._options.get("noise"), self._options.get("eta"))
        if self.offline is not None:
            self.offline.check(num, self._names)
        if self.network is not None:
            self.network.check(num)
        return num

    def scores(
        self, num: int, steps: int, seed: int = 0, *, first: int = 0, times: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Scores by name of images ``first … first + num − 1`` of a seed."""
        options = {"first": first, "times": times, **self._options}
        labels = self._sample_labels(num, first)
        if self._embedding is None:
            samples = np.concatenate(list(self.model.batches(num, steps, seed, **options)))
            scores = measure(self.offline, self._denoise, samples, labels, self._names, seed)
        else:
            seen = self._embedding.samples(self.model, num, steps, seed, **options)
            scores = {}
            if self.offline is not None:
                scores |= self.offline.metrics(seen.images, labels, self._names)
            if self.network is not None:
                scores |= self.network.scores(seen)
        if not scores:
            raise UserError(f"--metrics {','.join(self._names or ())}: none applies to an unconditional model")
        return scores

    def floor(self, num: int) -> dict[str, float]:
        """What real images score offline."""
        if self.offline is None:
            return {}
        labels = {"sample_labels": self._sample_labels(num, 0)} if isinstance(self.offline, MixtureEvaluator) else {}
        return self.offline.floor(num, seed=0, names=self._names, **labels)

    def curves(self, seeds: Sequence[int]) -> list[dict[str, Any]] | None:
        """Of a model of a known mixture: its error against the noise level for each seed."""
        if not isinstance(self.offline, MixtureEvaluator):
            return None
        return [self.offline.curve(self._denoise, int(seed)) for seed in seeds]

    def facts(self) -> dict[str, Any]:
        """For the provenance: the model, what it was measured against, and how samples were drawn."""
        model = self.model
        facts: dict[str, Any] = {
            "step": model.step,
            "ema_profile": model.profile,
            "weights_sha256": cards.hash_weights(model.params),
            "sampling": _sampling_facts(model, self._options),
            "batch_size": self._options.get("batch_size", 256),
        }
        if self._data is not None:
            facts["data"] = self._data
        if self._embedding is not None:
            facts["quantisation"] = QUANTISATION
        if self.network is not None:
            facts["references"] = {
                name: {"version": real.version, "images": real.num, "sha256": real.sha256}
                for name, real in self.network.references.items()
            }
            facts["features"] = {name: space.provenance for name, space in self.network.spaces.items()}
        return facts

    def evaluations(self, steps: int) -> int:
        """Network evaluations: Heun's method takes two a step but for the last, guidance one more for each."""
        return (2 * steps - 1 if self.model.kind == "diffusion" else steps) * (1 + bool(self._options["omega"]))

    def _sample_labels(self, num: int, first: int) -> np.ndarray | None:
        return None if self._labels is None else np.asarray(self._labels)[(first + np.arange(num)) % len(self._labels)]

    def _open_data(self, data_path: str) -> None:
        model = self.model
        config = with_data(model.config, model.spec, data_path, model.path)
        data, classes = config.data, {} if model.config.model.conditional else {"num_classes": 0}
        where = path_of(data.source, data_path) or data.path
        train = open_source(data.source, where, split=data.split, image_size=data.image_size)
        expected = replace(model.spec, num_examples=0, class_names=(), **classes)
        if replace(train.spec, num_examples=0, class_names=(), **classes) != expected:
            raise UserError(
                f"the data at {where or data.source} ({train.spec}) is not what {model.path} was trained on "
                f"({model.spec})"
            )
        self.offline = make_evaluator(config, train, where, files.cache_folder())
        self._data = {
            "source": data.source,
            "split": data.split,
            "held_out_split": data.held_out_split,
            "images": len(train),
        }

    def _usual(self, references: Sequence[str], features: str) -> NetworkEvaluator | None:
        """The Fréchet distance of each space, as far as weights and statistics are there.

        Without weights it is noted what is left out; statistics that are given and of no use are a mistake.
        """
        found: list[NetworkEvaluator] = []
        complaints: dict[str, UserError] = {}
        for name in FRECHET.values():
            try:
                found.append(open_network_metrics([name], references, features, self.model.spec))
            except UserError as error:
                complaints[name] = error
            if not references:
                break
        missing = any(isinstance(error, MissingWeights) for error in complaints.values())
        misfit = any(not isinstance(error, MissingWeights | OtherSpace) for error in complaints.values())
        if len(found) < len(references) and (misfit or (complaints and not missing)):
            raise UserError("; ".join(dict.fromkeys(map(str, complaints.values()))))
        if not found and self.offline is None:
            raise next(iter(complaints.values()))
        if complaints and len(found) < max(1, len(references)):
            name, reason = next(iter(complaints.items()))
            self.notes.append(f"{TITLES[name]} is left out: {reason}")
        return joined(found)


def _sampling_facts(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """How the samples were drawn, as far as it applies to the model."""
    facts, config, bad = {"kind": model.kind}, model.config.sampling, options["guide"]
    if model.kind in MULTISTEP:
        facts["noise"] = options.get("noise") or config.noise
    if model.kind != "diffusion":
        sampled = sampled_model(model.config)
        facts["boundary"] = sampled.boundary
        facts |= {"sigma_min": sampled.sigma_min} if sampled.boundary == "sigma_min" else {}
    if model.kind == "phased":
        facts["eta"] = config.eta if options.get("eta") is None else options["eta"]
    if bad is not None:
        facts["guide"] = bad.path if isinstance(bad, Model) else bad
        facts["omega"] = options["omega"]
    if isinstance(bad, Model):
        facts |= {"guide_step": bad.step, "guide_ema_profile": bad.profile}
    return facts
