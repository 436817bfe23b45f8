"""Import: a file of another project becomes a config, parameters and a model card of ours."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sct_jax import cards, files, models
from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop import edm2_names, edm_names, names, openai_names, own_names
from sct_jax.interop.read import DAMAGED, Imported, read
from sct_jax.interop.unpickle import DAMAGE
from sct_jax.training import checkpoint

TABLES = {"edm": edm_names, "edm2": edm2_names, "openai": openai_names, "sct_jax": own_names}


def import_model(
    path: str | Path, *, method: str = "", image_size: int = 0
) -> tuple[config_lib.Config, DataSpec, dict, dict[str, Any]]:
    """The network of another project's checkpoint; nothing in the file is run.

    Args:
      path: the file, see :func:`sct_jax.interop.read.read`.
      method: what trained it (``edm``, ``ect``, ...), where the file does not tell or is to be overruled.
      image_size: of the network, where the weights do not tell.

    Returns:
      A config, the description of its images, the parameters, and the model card.

    Raises:
      UserError: for a file that cannot be read, a network that is not supported, weights that do not fit it.
    """
    imported = read(path, method=method, image_size=image_size)
    try:
        config = make_config(imported)
        params = _params(imported, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise UserError(f"{path}: {DAMAGED}") from error
    return config, imported.spec, params, cards.make(imported.source, config, params)


def import_to(path: str | Path, out: str | Path, *, method: str = "", image_size: int = 0) -> Path:
    """Imports a checkpoint into a new workdir ``out``, written aside and renamed, with its model card.

    Raises:
      UserError: as :func:`import_model`, and when ``out`` is there and not an empty folder, or cannot be written.
    """
    with files.new_folder(out) as aside:
        config, spec, params, card = import_model(path, method=method, image_size=image_size)
        checkpoint.write_weights(aside, params, config, spec)
        cards.write(aside, card)
    return Path(out)


def make_config(imported: Imported) -> config_lib.Config:
    """The config of an imported network; it names no data set."""
    config = config_lib.default_config()
    rooms = {
        "model": imported.model_fields,
        "objective": imported.objective_fields,
        "sampling": imported.sampling_fields,
        "data": {"source": "none"},
    }
    with config.unlocked():
        for room, fields in rooms.items():
            with config[room].ignore_type():
                config[room].update(fields)
    return config_lib.validate(config)


def _params(imported: Imported, config: config_lib.Config) -> dict:
    network = models.build(config.model, imported.spec)
    shapes = jax.tree.map(np.shape, jax.eval_shape(network.init, jax.random.key(0)))
    table = TABLES[imported.family]
    entries = table.entries(config.model, imported.spec, shapes)
    constants = table.constants(config.model, imported.spec)
    params, _, _ = names.import_params(entries, imported.state_dict, shapes, constants)
    return params
