"""Which class of another project a network of ours is, what it is made with, and the weights under its names.

The other way round, from a file to a config, is architecture.py and originals.py.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from sct_jax.interop import edm2_names, edm_names, names, openai_names, own_names

NVIDIA_HEAD = 64  # channels of an attention head in their ADM


class Original(NamedTuple):
    """A class whose instances made with ``kwargs`` take the weights by ``load_state_dict(..., strict=True)``.

    Attributes:
      repository: on GitHub.
      name: of the class, with its module.
      kwargs: what it is made with, in JSON types.
      table: the names of its parameters (``entries`` and ``constants``).
      prefix: of all names, beside those of the table.
      preconditioned: whether the class is a denoiser; else it is the raw network, to be preconditioned by the user.
    """

    repository: str
    name: str
    kwargs: dict[str, Any]
    table: Any
    prefix: str = ""
    preconditioned: bool = True


def original_of(model: Any, spec: Any) -> Original | None:
    """The class for the network of ``config.model``; None where no project has it (``film_mlp``, unusual options).

    The boundary of ``model`` is that of sampling (``config.sampled_model``): what the class evaluates with.
    """
    if model.target_time or model.guidance_input:
        return None
    if model.name == "ddpmpp" or (model.name == "adm" and _is_nvidia(model)):
        return _edm(model, spec)
    if model.name == "adm" and _is_openai(model):
        return _openai(model, spec)
    return _edm2(model, spec) if model.name == "edm2" else None


def state_dict(model: Any, spec: Any, params: Any) -> dict[str, np.ndarray]:
    """The weights by the names of :func:`original_of`'s class; where there is none, by our own, in our layouts."""
    original = original_of(model, spec)
    if original is None:
        return own_names.state_dict(params)
    table = original.table.entries(model, spec, jax.tree.map(np.shape, params))
    constants = original.table.constants(model, spec)
    arrays = names.export_state_dict(table, params, constants, original.prefix)
    if original.table is edm2_names and not original.preconditioned:
        inner = edm2_names.NETWORK
        return {name.removeprefix(inner): value for name, value in arrays.items() if name.startswith(inner)}
    return arrays


def _edm(model: Any, spec: Any) -> Original:
    """EDM's preconditioner, or ECT's where the boundary of sampling is shifted, over DDPM++/NCSN++ or ADM."""
    kwargs = _common(model, spec) | {
        "sigma_data": model.sigma_data,
        "augment_dim": model.augment_dim,
        "model_type": "SongUNet" if model.name == "ddpmpp" else "DhariwalUNet",
        "label_dropout": model.label_dropout,
        "channel_mult_emb": model.channel_mult_embedding,
    }
    if model.name == "ddpmpp":
        kwargs |= {
            "embedding_type": model.embedding,
            "channel_mult_noise": model.channel_mult_noise,
            "encoder_type": model.encoder,
            "decoder_type": "standard",
            "resample_filter": list(model.resample_filter),
        }
    if model.boundary == "sigma_min":
        kwargs["sigma_min"] = model.sigma_min
        return Original("locuslab/ect", "training.networks.ECMPrecond", kwargs, edm_names, "model.")
    return Original("NVlabs/edm", "training.networks.EDMPrecond", kwargs, edm_names, "model.")


def _edm2(model: Any, spec: Any) -> Original:
    """EDM2's preconditioner, or only its network where the former would lack its head or evaluate another boundary."""
    kwargs = _common(model, spec) | {
        "channel_mult_noise": model.channel_mult_noise,
        "channel_mult_emb": model.channel_mult_embedding,
        "label_balance": model.label_balance,
        "concat_balance": model.concat_balance,
        "res_balance": model.residual_balance,
        "attn_balance": model.attention_balance,
        "channels_per_head": model.attention_head_channels,
        "resample_filter": list(model.resample_filter),
    }
    if not model.uncertainty_channels or model.boundary != "zero":
        network = "training.networks_edm2.UNet"
        return Original("NVlabs/edm2", network, kwargs, edm2_names, preconditioned=False)
    kwargs |= {"use_fp16": False, "sigma_data": model.sigma_data, "logvar_channels": model.uncertainty_channels}
    return Original("NVlabs/edm2", "training.networks_edm2.Precond", kwargs, edm2_names)


def _openai(model: Any, spec: Any) -> Original:
    kwargs = {
        "image_size": spec.image_size,
        "in_channels": spec.channels,
        "model_channels": model.channels,
        "out_channels": spec.channels,
        "num_res_blocks": model.num_blocks,
        "attention_resolutions": [spec.image_size // size for size in model.attention_resolutions],
        "dropout": model.dropout,
        "channel_mult": list(model.channel_mult),
        "num_classes": spec.num_classes if model.conditional else None,
        "num_head_channels": model.attention_head_channels,
        "use_scale_shift_norm": model.adaptive_scale,
        "resblock_updown": True,
    }
    return Original("openai/consistency_models", "cm.unet.UNetModel", kwargs, openai_names, preconditioned=False)


def _common(model: Any, spec: Any) -> dict[str, Any]:
    return {
        "img_resolution": spec.image_size,
        "img_channels": spec.channels,
        "label_dim": spec.num_classes if model.conditional else 0,
        "model_channels": model.channels,
        "channel_mult": list(model.channel_mult),
        "num_blocks": model.num_blocks,
        "attn_resolutions": list(model.attention_resolutions),
        "dropout": model.dropout,
    }


def _is_nvidia(model: Any) -> bool:
    return model.adaptive_scale and model.time_scale == 1 and model.attention_head_channels == NVIDIA_HEAD


def _is_openai(model: Any) -> bool:
    return model.time_scale == 1000 and model.channel_mult_embedding == 4 and not model.augment_dim
