"""Architectures. The only room that knows Flax modules: what leaves it is a pair of pure functions, a ``Network``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.diffusion import precondition
from sct_jax.diffusion.process import per_image
from sct_jax.errors import UserError

if TYPE_CHECKING:
    from sct_jax.data import DataSpec

Array = jax.Array
Params = Any
# denoise(params, x, t, labels=None, augment_labels=None, dropout_key=None) -> prediction of x_0, as x.
Denoise = Callable[..., Array]


# Of float32 products inside the network. Accelerators would else round their inputs (TF32 on GPUs, bfloat16 on TPUs).
PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


class Network(NamedTuple):
    """A denoiser as pure functions.

    ``init(key)`` gives the parameters, a nested dict of float32 arrays. ``denoise(params, x, t, labels,
    augment_labels, dropout_key)`` takes noisy images ``[B, H, W, C]``, noise levels ``[B]``, class labels int32 ``[B]``
    (−1: no label) or None, augmentation labels or None; with a ``dropout_key`` dropout is on, and the same key gives
    the same masks.
    """

    init: Callable[[Array], Params]
    denoise: Denoise
    uses_convolution: bool


def build(model: Any, spec: "DataSpec") -> Network:
    """The network that ``config.model`` describes, for images of ``spec``.

    Raises:
      UserError: when the network is not there, when the images do not fit it or have no labels to condition on.
    """
    if model.name not in ARCHITECTURES:
        raise UserError(
            f"config.model.name = {model.name!r}: this network is not in this version yet; there are "
            f"{' and '.join(ARCHITECTURES)}"
        )
    if model.conditional and not spec.num_classes:
        raise UserError("config.model.conditional = True, but the data set has no labels; set it to False")
    label_dim = spec.num_classes if model.conditional else 0

    def construct(rngs: nnx.Rngs) -> nnx.Module:
        return ARCHITECTURES[model.name](model, spec, label_dim, rngs)

    try:
        graph, _ = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(0))))
    except ValueError as error:
        raise UserError(f"the network of config.model does not fit the data: {error}") from error

    def init(key: Array) -> Params:
        return _string_keys(nnx.to_pure_dict(nnx.state(construct(nnx.Rngs(key)))))

    def denoise(
        params: Params,
        x: Array,
        t: Array,
        labels: Array | None = None,
        augment_labels: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        c = precondition.coefficients(t, model.sigma_data, model.boundary, model.sigma_min)
        labels = jnp.full(x.shape[:1], -1) if labels is None else labels
        label_vector = jax.nn.one_hot(labels, label_dim) if label_dim else None
        network = nnx.merge(graph, nnx.State(_integer_keys(params)))
        with jax.default_matmul_precision(PRECISION[model.compute_dtype]):
            output = network(per_image(c.c_in, x) * x, c.c_noise, label_vector, augment_labels, dropout_key)
        return per_image(c.c_skip, x) * x + per_image(c.c_out, x) * output.astype(jnp.float32)

    return Network(init, denoise, uses_convolution=model.name != "film_mlp")


def _ddpmpp(model: Any, spec: "DataSpec", label_dim: int, rngs: nnx.Rngs) -> nnx.Module:
    from sct_jax.models.ddpmpp import DDPMpp

    return DDPMpp(
        image_size=spec.image_size,
        in_channels=spec.channels,
        out_channels=spec.channels,
        label_dim=label_dim,
        augment_dim=model.augment_dim,
        channels=model.channels,
        channel_mult=tuple(model.channel_mult),
        channel_mult_embedding=model.channel_mult_embedding,
        channel_mult_noise=model.channel_mult_noise,
        num_blocks=model.num_blocks,
        attention_resolutions=tuple(model.attention_resolutions),
        dropout=model.dropout,
        label_dropout=model.label_dropout,
        embedding=model.embedding,
        encoder=model.encoder,
        resample_filter=tuple(model.resample_filter),
        compute_dtype=_dtype(model),
        rngs=rngs,
    )


def _film_mlp(model: Any, spec: "DataSpec", label_dim: int, rngs: nnx.Rngs) -> nnx.Module:
    from sct_jax.models.film_mlp import FilmMLP

    return FilmMLP(
        spec.image_size,
        spec.channels,
        width=model.channels,
        num_blocks=model.num_blocks,
        label_dim=label_dim,
        augment_dim=model.augment_dim,
        dropout=model.dropout,
        label_dropout=model.label_dropout,
        compute_dtype=_dtype(model),
        rngs=rngs,
    )


def _dtype(model: Any) -> str:
    return "bfloat16" if model.compute_dtype == "bfloat16" else "float32"


ARCHITECTURES = {"ddpmpp": _ddpmpp, "film_mlp": _film_mlp}


def _string_keys(tree: Any) -> Any:
    """Lists of layers have integer keys in Flax; a checkpoint wants strings."""
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _integer_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}
