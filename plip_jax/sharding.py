"""The mesh and the sharding rules: one axis of devices, batches split over it, everything else on every device.

Programs are written on the global batch; jit splits the work (https://docs.jax.dev/en/latest/sharded-computation.html).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``data``, over the given devices or all of them, on all hosts."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto and not the default of new versions, Explicit: there image_features @ text_features.T is a type error.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's slice of a global batch on its devices.

    Args:
        mesh: the mesh of all hosts.
        batch: arrays whose first axis is this process's share of the global batch.

    Returns:
        Global arrays, the first axis split over the mesh.

    Raises:
        ValueError: the global batch does not divide by the number of devices.
    """
    sharding = split_batch(mesh)
    for name, array in batch.items():
        global_size = len(array) * jax.process_count()
        if global_size % mesh.size:
            raise ValueError(
                f"batch of {global_size} ({name}): expected a multiple of the {mesh.size} devices; "
                "change the global batch size or the number of devices"
            )
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
