"""Compiles a training step for devices that are not there; `python -m melodjinn_jax.compile` runs it in a subprocess.

    python -m melodjinn_jax.training.aot FOLDER TOPOLOGY PHASE QUANTIZER

FOLDER holds a config.json; the last line printed is JSON. libtpu may crash, and takes its process along.
"""

import dataclasses
import json
import re
import sys
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from melodjinn_jax.config import Config, RuntimeConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.sharding import BATCH_AXES
from melodjinn_jax.models.transformer import UNROLLED_LAYERS_ACCELERATOR
from melodjinn_jax.training.costs import find_collectives, memory_traffic
from melodjinn_jax.training.mesh import open_mesh
from melodjinn_jax.training.speed import step_flops
from melodjinn_jax.training.state import CodecShape, Models, Phase, abstract_state, count_parameters
from melodjinn_jax.training.step import make_train_step
from melodjinn_jax.training.workdir import load_config


def parts_of(models: Models, phase: Phase) -> list[str]:
    """Parts of the state in which a run that begins by itself does a phase's steps."""
    parts = ["step", "rng", "first_bad_step"]
    if not models.config.data.actions:
        parts += ["feature_scale", "lam"]
        parts += ["lam_opt"] if phase is not Phase.FROZEN else []
        parts += ["codebook", "key_of_code"] if phase is not Phase.DISCOVER else []
        parts += ["probe_keys"] if phase is Phase.QUANTISE else []
    if step_flops(models, phase).dynamics:
        parts += ["dynamics", "dynamics_opt", "dynamics_start"]
        parts += ["dynamics_ema"] if models.config.dynamics.ema_decay else []
    return parts


def abstract_batch(models: Models, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch, shared out over the mesh."""
    training, codec = models.config.training, models.codec
    clip = (training.batch_size, training.crop_frames)
    shapes: dict[str, tuple[int, ...]] = {"codes": (*clip, codec.num_codebooks)}
    if models.config.data.actions:
        blocks = training.crop_frames // models.config.latent_actions.action_stride
        shapes["actions"] = (clip[0], blocks - 1)
    else:
        shapes["waveform"] = (*clip, codec.hop_length)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {
        name: jax.ShapeDtypeStruct(shape, "int16" if name == "waveform" else "uint16", sharding=sharding)
        for name, shape in shapes.items()
    }


def compile_step(config: Config, codec: CodecShape, phase: Phase, mesh: Mesh) -> tuple[Models, Any, Any]:
    """The models, the abstract state, and the compiled step of a phase."""
    models = Models(config, codec)
    with jax.set_mesh(mesh):
        state = abstract_state(models, parts_of(models, phase))
        train_step: Any = make_train_step(models, phase)
        traced = train_step.trace(state, abstract_batch(models, mesh))
        return models, state, traced.lower(lowering_platforms=("tpu",)).compile()


def _as_on_tpu(runtime: RuntimeConfig) -> RuntimeConfig:
    """The settings with those that ask what device there is answered: here it is not the one to compile for."""
    attention = "splash" if runtime.attention == "auto" else runtime.attention
    unrolled_layers = runtime.unrolled_layers or UNROLLED_LAYERS_ACCELERATOR
    return dataclasses.replace(runtime, attention=attention, unrolled_layers=unrolled_layers)


def describe(config: Config, codec: CodecShape, topology: str, phase: Phase) -> dict[str, Any]:
    """What `compile` reports, as JSON can hold it."""
    config = dataclasses.replace(config, runtime=_as_on_tpu(config.runtime))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = open_mesh(config, list(devices))
    models, state, compiled = compile_step(config, codec, phase, mesh)
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    flops = step_flops(models, phase)
    return {
        "mesh": {axis: int(length) for axis, length in mesh.shape.items()},
        "parameters": {part: count_parameters(state[part]) for part in ("lam", "dynamics") if part in state},
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "collectives": [dataclasses.asdict(found) for found in find_collectives(hlo, mesh.size)],
        "flops": dataclasses.asdict(flops),
        "traffic": memory_traffic(hlo),
    }


def main() -> None:
    folder, topology, phase, codec = sys.argv[1:]
    try:
        result = describe(load_config(folder), CodecShape(*json.loads(codec)), topology, Phase(phase))
    except UserError as error:
        result = {"error": str(error)}
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"required for .* \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
        if not used:
            raise
        result = {"error": f"the model does not fit: a device would need {used[1]} of its {used[2]} bytes of memory"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
