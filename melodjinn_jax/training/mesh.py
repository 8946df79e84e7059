"""The mesh of devices, and where every array of a training state lies on it.

One axis each for the slices that a data-centre network joins, for plain data parallelism, for data parallelism whose
parameters are shared out too (fsdp), and for tensor parallelism. A table says what the axes of each parameter mean,
another on which mesh axis a meaning lies; a layout is nothing but these two and the lengths of the axes.

The mesh in scope (`jax.set_mesh`) is the one meant; without one, everything lies on the first device.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from melodjinn_jax.config import Config, DynamicsConfig
from melodjinn_jax.data.loader import HostShare
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.sharding import BATCH_AXES

AXES = (*BATCH_AXES, "tensor")

RULES: dict[str | None, str | None] = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", None: None}
"""On which mesh axis a logical axis of a parameter lies; None: whole on every device.

`embed` is the width of a model, which fsdp shares out and the compiler gathers layer by layer; `heads` and `mlp` are
what Megatron-LM splits (Shoeybi et al. 2019).
"""

PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("qkv/kernel", ("embed", "heads")),
    ("out/kernel", ("heads", "embed")),
    ("up/kernel", ("embed", "mlp")),
    ("down/kernel", ("mlp", "embed")),
    ("sink", ("heads",)),
    ("(embed|embed_latents)/kernel", (None, "embed")),
    ("(to_latent|to_features|to_depth|unembed)/kernel", ("embed", None)),
    # A gather from a table that is shared out makes the compiler bring it together first, at every step.
    (r"embed_\w+/embedding", (None, None)),
    ("scale|bias|ns_coeffs", (None,)),
)
"""Logical axes of parameters by the end of their path; a stack of layers has one more axis in front, kept whole."""

NETWORKS = re.compile(r"(lam|dynamics)(_(opt|ema))?")
"""Parts of a state that hold parameters, or something of the shape of each; all other parts are small, and whole."""

BYTES_PER_PARAMETER = 16  # float32 parameter, gradient and Adam's two moments
MAX_STATE_BYTES = 4 << 30  # a quarter of the smallest device meant, a TPU v5e


class MeshShape(NamedTuple):
    """Lengths of the mesh axes, outermost first."""

    slice: int
    data: int
    fsdp: int
    tensor: int

    @property
    def batch_shards(self) -> int:
        return self.slice * self.data * self.fsdp


def choose_shape(config: Config, devices: int, slices: int = 1) -> MeshShape:
    """The lengths of the mesh axes: as `runtime.mesh` says, and by the devices and the model's size where it is 0.

    Without a word from the config, parameters are shared out over as few devices of a slice as keep the state of one
    below 4 GiB, for every further one makes the network carry more; all other devices only divide the batch.

    Raises:
        UserError: the axes do not multiply to the devices, or do not divide the batch or the parts that it is cut into.
    """
    wanted = config.runtime.mesh
    slices = wanted.slice or slices
    tensor = wanted.tensor or 1
    rest = _divided(config, devices, slices * (wanted.data or 1) * (wanted.fsdp or 1) * tensor)
    if wanted.fsdp:
        data, fsdp = (wanted.data or rest), wanted.fsdp
    elif wanted.data:
        data, fsdp = wanted.data, rest
    else:
        fsdp = _smallest_fsdp(config, rest, tensor)
        data = rest // fsdp
    shape = MeshShape(slices, data, fsdp, tensor)
    if math.prod(shape) != devices:
        raise _misfit(config, devices)
    if config.training.batch_size % shape.batch_shards:
        raise UserError(
            f"training.batch_size is {config.training.batch_size}: it must be a multiple of {shape.batch_shards}, the "
            f"product of the mesh's axes slice {shape.slice}, data {shape.data} and fsdp {shape.fsdp}"
        )
    if config.training.batch_size % (shape.batch_shards * config.runtime.accumulate):
        raise UserError(
            f"runtime.accumulate is {config.runtime.accumulate}: times {shape.batch_shards}, the product of the mesh's "
            f"axes slice {shape.slice}, data {shape.data} and fsdp {shape.fsdp}, it must divide training.batch_size, "
            f"{config.training.batch_size}"
        )
    return shape


def _divided(config: Config, devices: int, given: int) -> int:
    if devices % given:
        raise _misfit(config, devices)
    return devices // given


def _misfit(config: Config, devices: int) -> UserError:
    given = {axis: getattr(config.runtime.mesh, axis) for axis in AXES if getattr(config.runtime.mesh, axis)}
    lengths = " x ".join(f"{axis} {length}" for axis, length in given.items()) or "one device of each slice"
    return UserError(
        f"runtime.mesh is {lengths}, which cannot share out {devices} device(s): give lengths whose product is "
        f"{devices}, or 0 for an axis that takes what is left"
    )


def _smallest_fsdp(config: Config, devices: int, tensor: int) -> int:
    """Fewest of `devices` whose shares of the dynamics model's state are small enough; all, if none are."""
    size = transformer_parameters(config.dynamics) * BYTES_PER_PARAMETER / tensor
    widths = [config.dynamics.dim] + ([] if config.data.actions else [config.latent_actions.dim])
    widths += [config.dynamics.depth_dim] if config.dynamics.layout == "depth" else []
    fitting = [n for n in range(1, devices + 1) if devices % n == 0 and all(width % n == 0 for width in widths)]
    return next((n for n in fitting if size / n <= MAX_STATE_BYTES), fitting[-1])


def transformer_parameters(config: DynamicsConfig) -> int:
    """Parameters in the matrices of the dynamics model's blocks, which are nearly all that a large model has."""
    return 12 * config.num_layers * config.dim**2


def open_mesh(config: Config, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, or those given.

    Raises:
        UserError: as `choose_shape`.
    """
    devices = devices or jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = choose_shape(config, len(devices), slices)
    if slices > 1:
        if shape.slice != slices:
            raise UserError(f"runtime.mesh.slice is {shape.slice}: the devices lie in {slices} slices")
        array = mesh_utils.create_hybrid_device_mesh((1, *shape[1:]), (slices, 1, 1, 1), devices)
    else:
        array = mesh_utils.create_device_mesh(tuple(shape), devices)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


# Where arrays lie


def parameter_spec(path: str, rank: int, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where the parameter (or its moment, or its average) at `path` lies: `encoder/blocks/up/kernel`.

    The form is the one in which compiled programs return it, without axes of length 1 and trailing Nones: any other
    form of the same would make the second step compile again.

    Raises:
        ValueError: the table knows no such parameter.
    """
    if rank == 0:
        return PartitionSpec()
    for pattern, axes in PARAMETERS:
        if re.search(rf"(^|/)({pattern})$", path) and rank >= len(axes):
            whole: list[str | None] = [None] * (rank - len(axes))
            return canonical_spec(whole + [RULES[axis] for axis in axes], mesh)
    raise ValueError(f"training/mesh.py says nothing of a parameter {path} with {rank} axes")


def canonical_spec(axes: list[str | None], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Mesh axes by array axis, without those of length 1 and trailing Nones."""
    kept = [axis if axis and mesh.shape[axis] > 1 else None for axis in axes]
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def state_shardings(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A sharding for every array of a training state, or of a part of one in a dict by its name."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        part, *names = [_name(key) for key in path]
        if not NETWORKS.fullmatch(part):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, parameter_spec("/".join(names), len(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _name(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))


def scope_shardings(state: Any) -> Any:
    """`state_shardings` on the mesh in scope; without one, the first device for every array."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state)
    return state_shardings(state, mesh)


def pin_state(state: Any) -> Any:
    """A state inside jit, each array where `state_shardings` says, so that a step returns what it was given."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))


def replicated() -> NamedSharding | None:
    """Whole on every device of the mesh in scope; None without one. What the host reads must lie so."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else NamedSharding(mesh, PartitionSpec())


# Batches


def share_rows(array: np.ndarray) -> jax.Array:
    """An array [B, ...] that every process holds, shared out like a batch if the mesh in scope divides it."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.numpy.asarray(array)
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    spec = PartitionSpec() if len(array) % shards else PartitionSpec(BATCH_AXES)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def host_share(mesh: Mesh) -> HostShare:
    """This process's share of a batch: the parts on its devices, in the order of the batch."""
    num_parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    by_part = mesh.devices.reshape(num_parts, -1)
    here = jax.process_index()
    parts = [index for index, row in enumerate(by_part) if any(device.process_index == here for device in row)]
    return HostShare(tuple(parts), num_parts)


def place_batches(batches: list[dict[str, np.ndarray]], mesh: Mesh, share: HostShare) -> dict[str, jax.Array]:
    """The rows that this process read as its share of global arrays.

    One batch `[B * parts / num_parts, ...]` becomes `[B, ...]`, several become `[len(batches), B, ...]`.
    """
    if len(batches) == 1:
        rows, spec = batches[0], PartitionSpec(BATCH_AXES)
    else:
        rows = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        spec = PartitionSpec(None, BATCH_AXES)
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return {name: _place_rows(array, sharding, share) for name, array in rows.items()}


def _place_rows(rows: np.ndarray, sharding: NamedSharding, share: HostShare) -> jax.Array:
    axis = len(sharding.spec) - 1  # of the clips
    size = rows.shape[axis] // len(share.parts)
    here = {part * size: position * size for position, part in enumerate(share.parts)}

    def shard(index: Any) -> np.ndarray:
        first = here[index[axis].start or 0]
        return rows[(*index[:axis], slice(first, first + size))]

    shape = (*rows.shape[:axis], size * share.num_parts, *rows.shape[axis + 1 :])
    return jax.make_array_from_callback(shape, sharding, shard)
