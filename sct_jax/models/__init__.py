"""Architectures. The only room that knows Flax modules: what leaves it is a pair of pure functions, a ``Network``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.diffusion import precondition
from sct_jax.diffusion.condition import NO_CONDITION, Condition
from sct_jax.diffusion.process import per_image
from sct_jax.errors import UserError
from sct_jax.models import magnitude_preserving

if TYPE_CHECKING:
    from sct_jax.data import DataSpec

Array = jax.Array
Params = Any
# denoise(params, x, t, condition=None, dropout_key=None) -> prediction of x_0, as x.
Denoise = Callable[..., Array]


# Of float32 products inside the network. Accelerators would else round their inputs (TF32 on GPUs, bfloat16 on TPUs).
PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default", "float16": "default"}


class Network(NamedTuple):
    """A denoiser as pure functions.

    ``init(key)`` gives the parameters, a nested dict of float32 arrays. ``denoise(params, x, t, condition,
    dropout_key)`` takes noisy images ``[B, H, W, C]``, noise levels ``[B]`` and a ``Condition`` or None, which is
    ``NO_CONDITION``; with a ``dropout_key`` dropout is on, and the same key gives the same masks. A ``ValueError``
    answers a time to jump to or a weight of guidance where the network has no input for it.

    ``forward`` is ``denoise`` by operations that forward-mode differentiation (``jax.jvp``) accepts, for passes that
    nothing is differentiated backwards through: ``denoise`` has gradients of its own making. The values are the same;
    None where ``denoise`` itself will do.

    ``project(params)`` is what the train step does to the parameters after each update, None where that is nothing.
    ``uncertainty(params, t)`` is the logarithm of the loss the network expects at noise levels ``t`` ``[B]``, None
    where it has no head for it.
    """

    init: Callable[[Array], Params]
    denoise: Denoise
    uses_convolution: bool
    forward: Denoise | None = None
    project: Callable[[Params], Params] | None = None
    uncertainty: Callable[[Params, Array], Array] | None = None


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
        module = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    except ValueError as error:
        raise UserError(f"the network of config.model does not fit the data: {error}") from error

    graph = nnx.graphdef(module)
    module.set_attributes(forward_mode=True)
    forward_graph = nnx.graphdef(module)

    def init(key: Array) -> Params:
        return _string_keys(nnx.to_pure_dict(nnx.state(construct(nnx.Rngs(key)))))

    def denoise_by(
        graph: Any,
        params: Params,
        x: Array,
        t: Array,
        condition: Condition | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        c = precondition.coefficients(t, model.sigma_data, model.boundary, model.sigma_min)
        given = NO_CONDITION if condition is None else condition
        further = _further_inputs(model, given, x.shape[:1])
        labels = jnp.full(x.shape[:1], -1) if given.labels is None else given.labels
        label_vector = jax.nn.one_hot(labels, label_dim) if label_dim else None
        if model.gradient_dtype == "compute":
            params = _rounded_kernels(params, _dtype(model))
        network = nnx.merge(graph, nnx.State(_integer_keys(params)))
        with jax.default_matmul_precision(PRECISION[model.compute_dtype]):
            scaled = per_image(c.c_in, x) * x
            output = network(scaled, c.c_noise, label_vector, given.augment_labels, dropout_key, **further)
        return per_image(c.c_skip, x) * x + per_image(c.c_out, x) * output.astype(jnp.float32)

    def uncertainty(params: Params, t: Array) -> Array:
        c = precondition.coefficients(t, model.sigma_data, model.boundary, model.sigma_min)
        network = nnx.merge(graph, nnx.State(_integer_keys(params)))
        with jax.default_matmul_precision(PRECISION["float32"]):
            return network.uncertainty(c.c_noise)

    convolves = model.name != "film_mlp"
    network = Network(init, partial(denoise_by, graph), convolves, partial(denoise_by, forward_graph))
    if model.name == "edm2":
        head = uncertainty if model.uncertainty_channels else None
        network = network._replace(project=magnitude_preserving.project, uncertainty=head)
    return network


def _further_inputs(model: Any, given: Condition, batch: tuple[int, ...]) -> dict[str, Array]:
    """What a network that has inputs for them is told of the time to jump to and of the weight of guidance."""
    for name, value, field in (("s", given.s, "target_time"), ("guidance", given.guidance, "guidance_input")):
        if value is not None and not model[field]:
            raise ValueError(f"this network has no input for Condition.{name}: its config.model.{field} is False")
    further = {}
    if model.target_time:
        further["c_target"] = precondition.c_target(jnp.zeros(batch) if given.s is None else given.s)
    if model.guidance_input:
        further["guidance"] = jnp.zeros(batch) if given.guidance is None else given.guidance
    return further


# Fields of config.model that the U-Nets take by the same name: all of them, and each its own.
_UNET = (
    *("channels", "channel_mult", "channel_mult_embedding", "num_blocks", "attention_resolutions"),
    *("dropout", "label_dropout", "remat", "target_time", "guidance_input"),
)
_DDPMPP = ("augment_dim", "channel_mult_noise", "embedding", "encoder", "resample_filter")
_ADM = ("augment_dim", "attention_head_channels", "time_scale", "adaptive_scale")
_EDM2 = (
    *("channel_mult_noise", "attention_head_channels", "dropout_max_resolution", "resample_filter"),
    *("label_balance", "concat_balance", "residual_balance", "attention_balance", "uncertainty_channels"),
)


def _ddpmpp(model: Any, spec: "DataSpec", label_dim: int, rngs: nnx.Rngs) -> nnx.Module:
    from sct_jax.models.ddpmpp import DDPMpp

    return _unet(DDPMpp, _DDPMPP, model, spec, label_dim, rngs)


def _adm(model: Any, spec: "DataSpec", label_dim: int, rngs: nnx.Rngs) -> nnx.Module:
    from sct_jax.models.adm import ADM

    return _unet(ADM, _ADM, model, spec, label_dim, rngs)


def _edm2(model: Any, spec: "DataSpec", label_dim: int, rngs: nnx.Rngs) -> nnx.Module:
    from sct_jax.models.edm2 import EDM2

    if model.augment_dim:
        raise UserError("config.model.augment_dim: edm2 takes no augmentation labels; set it to 0")
    return _unet(EDM2, _EDM2, model, spec, label_dim, rngs)


def _unet(
    network: Callable[..., nnx.Module],
    own: tuple[str, ...],
    model: Any,
    spec: "DataSpec",
    label_dim: int,
    rngs: nnx.Rngs,
) -> nnx.Module:
    return network(
        image_size=spec.image_size,
        in_channels=spec.channels,
        out_channels=spec.channels,
        label_dim=label_dim,
        compute_dtype=_dtype(model),
        rngs=rngs,
        **{name: model[name] for name in (*_UNET, *own)},
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
        target_time=model.target_time,
        guidance_input=model.guidance_input,
        compute_dtype=_dtype(model),
        rngs=rngs,
    )


def _dtype(model: Any) -> str:
    return model.compute_dtype if model.compute_dtype in ("bfloat16", "float16") else "float32"


ARCHITECTURES = {"ddpmpp": _ddpmpp, "adm": _adm, "edm2": _edm2, "film_mlp": _film_mlp}


def _string_keys(tree: Any) -> Any:
    """Lists of layers have integer keys in Flax; a checkpoint wants strings."""
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _integer_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


def _rounded_kernels(params: Params, dtype: jnp.dtype) -> Params:
    """The same nested dict with its kernels as ``dtype``, so that their gradients are made and summed in it."""
    return {
        key: _rounded_kernels(value, dtype)
        if isinstance(value, Mapping)
        else value.astype(dtype)
        if key in ("kernel", "weight")  # film_mlp's are weights
        else value
        for key, value in params.items()
    }
