"""Trains a tiny model on meshes of eight simulated devices, from the states of one device; prints JSON.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/tools/meshes.py FOLDER 1,8,1,1 1,2,2,2 ...

For each mesh and phase, the losses of 20 steps, how often the step compiled, and whether the LAM stayed what it was.
FOLDER holds the checkpoints with which each phase begins.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import CODEC, random_waveform, tiny_models

from melodjinn_jax.config import DynamicsConfig, LatentActionConfig, PhasesConfig, TrainingConfig
from melodjinn_jax.data.loader import ALL_ROWS
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.mesh import AXES, place_batches
from melodjinn_jax.training.phases import PhaseMachine, PhaseRecord
from melodjinn_jax.training.state import Phase, abstract_state
from melodjinn_jax.training.step import make_train_step

STEPS = 20
STARTS = {Phase.DISCOVER: 1, Phase.QUANTISE: 2, Phase.FROZEN: 3}


class Batches:
    """An iterator as checkpoints want it; every phase has the same batches."""

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        pass


def batches(models):
    rng = np.random.default_rng(1)
    training = models.config.training
    for _ in range(STEPS):
        waveform = random_waveform(rng, training.batch_size, training.crop_frames)
        codes = rng.integers(0, CODEC.codebook_size, (*waveform.shape[:2], CODEC.num_codebooks)).astype(np.uint16)
        yield {"waveform": waveform, "codes": codes}


def make_mesh(shape: tuple[int, ...]) -> Mesh:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def train_phase(models, phase: Phase, state, mesh: Mesh):
    lam = jax.device_get(state["lam"])
    train_step = make_train_step(models, phase)
    losses = []
    for rows in batches(models):
        batch = place_batches([rows], mesh, ALL_ROWS)
        with jax.transfer_guard("disallow"):
            state, values = train_step(state, batch)
        losses.append({name: np.asarray(value).tolist() for name, value in values.items()})
    same = jax.tree.map(np.array_equal, lam, jax.device_get(state["lam"]))
    return state, {
        "losses": losses,
        "compilations": train_step._cache_size(),
        "lam_is_unchanged": all(jax.tree.leaves(same)),
        "parts": sorted(state),
    }


def main() -> None:
    folder, *shapes = sys.argv[1:]
    models = tiny_models(
        latent_actions=LatentActionConfig(dim=16, num_heads=8, latent_dim=4, window=6, max_codes=8),
        dynamics=DynamicsConfig(dim=16, num_heads=8, num_layers=2, window=6),
        phases=PhasesConfig(
            STEPS, dynamics_start="quantise", freeze="step", freeze_deadline=2 * STEPS, check_every=STEPS, probe_clips=8
        ),
        training=TrainingConfig(steps=3 * STEPS, batch_size=8, crop_frames=24),
    )
    results = {}
    store = CheckpointStore(Path(folder), keep=3)
    with jax.set_mesh(one := make_mesh((1, 1, 1, 1))):
        machine = PhaseMachine(models, random_waveform(np.random.default_rng(0), 8, 48))
        state, record = machine.start({}, False)
        results["one"] = {}
        for step, phase in enumerate(Phase):
            store.save(STARTS[phase], state, Batches(), {"parts": sorted(state), "record": record.to_json()})
            state, results["one"][phase] = train_phase(models, phase, state, one)
            state, record = machine.advance(state, record, (step + 1) * STEPS)
    for shape in shapes:
        results[shape] = {}
        with jax.set_mesh(mesh := make_mesh(tuple(map(int, shape.split(","))))):
            for phase, start in STARTS.items():
                store.latest()
                metadata = store._verify(start).metadata
                assert PhaseRecord.from_json(metadata["record"]).phase is phase
                # Loading compares the digest of every array with what was saved.
                state = store.load(start, abstract_state(models, metadata["parts"]), Batches())
                spread = {len(x.sharding.device_set) for x in jax.tree.leaves(state)}
                assert spread == {mesh.size}, spread
                state, results[shape][phase] = train_phase(models, phase, state, mesh)
    store.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
