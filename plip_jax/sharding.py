"""The mesh and the sharding rules: one axis of devices, the batch split over it, the state whole on each or split too.

Programs are written on the global batch; jit splits the work (https://docs.jax.dev/en/latest/sharded-computation.html).
The few questions that processes ask each other outside a program are here as well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
# Arrays of fewer elements stay whole on each device. Of ViT-B/32 these are the norms, biases, class token and position
# embeddings: 0.2 % of the parameters in 39 of 46 arrays. To split them saves nothing and costs a collective each.
_SMALLEST_SPLIT = 2**16


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, ``data``, over the given devices or all of them, on all hosts; process by process."""
    if devices is None:
        # Process i feeds slice i of the batch. In the order of ids, or that of jax.make_mesh, a TPU chip of one host
        # may lie between those of another; then rows would change places with the number of hosts.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # Auto and not the default of new versions, Explicit: there image_features @ text_features.T is a type error.
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def place_among_processes(mesh: Mesh) -> tuple[int, int]:
    """Which of the processes that own a mesh's devices this one is, from 0, and how many they are.

    Of a mesh of local devices this process is the only one, however many take part in the run.
    """
    owners = sorted({device.process_index for device in mesh.devices.flat})
    return owners.index(jax.process_index()), len(owners)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Place this process's slice of a global batch on its devices.

    Args:
        mesh: of all hosts, or of this one alone.
        batch: a tree of arrays whose first axis is this process's share of the global batch.

    Returns:
        The tree with global arrays, the first axis split over the mesh.

    Raises:
        ValueError: the global batch does not divide by the number of devices.
    """
    sharding = split_batch(mesh)
    processes = place_among_processes(mesh)[1]

    def put(path: Any, array: np.ndarray) -> jax.Array:
        global_size = len(array) * processes
        if global_size % mesh.size:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"batch of {global_size} ({name}): expected a multiple of the {mesh.size} devices; "
                "change the global batch size or the number of devices"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree_util.tree_map_with_path(put, batch)


def params_sharding(mesh: Mesh, tree: Any, strategy: str) -> Any:
    """Where each array of a training state, or of a part of it, lives.

    The rule sees an array's path and shape only, so an optimiser's moments lie as the parameters they belong to.

    Args:
        mesh: the devices.
        tree: leaves with a shape: arrays or ``jax.ShapeDtypeStruct``.
        strategy: a key of ``PARAMS_SHARDINGS``.

    Returns:
        The tree with a ``NamedSharding`` for each array.

    Raises:
        ValueError: an unknown strategy; the message lists the known ones.
    """
    if strategy not in PARAMS_SHARDINGS:
        raise ValueError(f"unknown sharding of parameters {strategy!r}; known: {', '.join(PARAMS_SHARDINGS)}")
    rule = PARAMS_SHARDINGS[strategy]

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, rule(name, tuple(leaf.shape), mesh.size))

    return jax.tree_util.tree_map_with_path(place, tree)


def gather_params(mesh: Mesh, params: Any, strategy: str) -> Any:
    """The parameters whole on every device, for the forward pass; their gradients go back to where they live.

    Called while tracing. Left to itself the compiler keeps a split kernel where it is and, in every layer, gathers the
    activations of the whole global batch: the same numbers, with traffic and memory that grow with the batch.

    Args:
        mesh: the devices.
        params: split by `params_sharding`; a tree of parameters, not of a whole state.
        strategy: of `params_sharding`. A replicated tree is returned as it is.
    """
    split = params_sharding(mesh, params, strategy)
    whole = replicated(mesh)

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    def scatter(_: None, grads: Any) -> tuple[Any]:
        # Summed, then split, which compilers for TPU and GPU make one reduce-scatter of. Split at once, the gradient of
        # an embedding table would be had by gathering every token's gradient of the global batch.
        return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(grads, whole), split),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return params if strategy == "replicated" else gather(params)


def _whole(path: str, shape: tuple[int, ...], devices: int) -> PartitionSpec:
    del path, shape, devices  # the signature of the table
    return PartitionSpec()


def _fully_sharded(path: str, shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """The largest axis that the devices divide, the last of equal ones; whole where there is none, or little to split.

    Splits what Zhao et al. 2023 (PyTorch FSDP, https://arxiv.org/abs/2304.11277) split: parameters, gradients, moments.
    """
    # The first axis of stacked blocks is the layer, which lax.scan walks along: split, each step would fetch a slice.
    first = 1 if "blocks" in path.split("/") else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
    if math.prod(shape) < _SMALLEST_SPLIT or not axes:
        return PartitionSpec()
    widest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(DATA_AXIS if axis == widest else None for axis in range(widest + 1)))


PARAMS_SHARDINGS: dict[str, Callable[[str, tuple[int, ...], int], PartitionSpec]] = {
    "replicated": _whole,
    "fsdp": _fully_sharded,
}
"""``train.params_sharding`` -> where an array lives, by its path, its shape and the number of devices."""


class AgreedFlag:
    """The answer of `any_process`, under way until ``bool`` asks for it."""

    def __init__(self, answers: bool | jax.Array):
        self._answers = answers

    def __bool__(self) -> bool:
        return bool(np.any(np.asarray(self._answers)))


def any_process(flag: bool) -> AgreedFlag:
    """Whether the flag is set in any process, the same answer in all of them.

    Asks by a program on the devices and does not wait for it. Every process calls this the same number of times, and in
    the same order among all it runs on the devices. With one process the devices are not used.
    """
    return AgreedFlag(flag if jax.process_count() == 1 else _gather(int(flag)))


def values_of_processes(value: int) -> list[int]:
    """What each process passed, in the order of their numbers; waits. Every process calls this."""
    if jax.process_count() == 1:
        return [value]
    of_devices = np.asarray(_gather(value))
    owners = [device.process_index for device in make_mesh().devices.flat]
    return [int(of_devices[owners.index(process)]) for process in range(jax.process_count())]


def _gather(value: int) -> jax.Array:
    """The value of every device's process, int32 [devices] in the mesh's order, whole on every device."""
    mesh = make_mesh()
    # int32 and not a boolean, which not every backend's collectives take.
    here = np.full(len(mesh.local_devices), value, np.int32)
    return _gather_program(mesh)(jax.make_array_from_process_local_data(split_batch(mesh), here))


@functools.cache
def _gather_program(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda values: values, out_shardings=replicated(mesh))
