"""Three steps that practise, on the mesh of all devices: prints their metrics and the table of presses as JSON."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import CODEC, batch_of
from live_runs import random_codec
from test_practice import frozen_state, practising

from melodjinn_jax.training.mesh import host_share, open_mesh, place_batches
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.step import make_train_step


def main() -> None:
    models, rng = practising(practice_from=0.0), np.random.default_rng(0)
    mesh = open_mesh(models.config)
    with jax.set_mesh(mesh):
        state = frozen_state(models, rng)
        train_step = make_train_step(models, Phase.FROZEN, codec=random_codec(CODEC.codebook_size))
        metrics = []
        for _ in range(3):
            state, values = train_step(state, place_batches([batch_of(rng, models)], mesh, host_share(mesh)))
            metrics.append({name: float(value) for name, value in values.items()})
    table = np.asarray(state["dynamics"]["embed_press"]["embedding"]).tolist()
    found = {"devices": mesh.size, "compilations": train_step._cache_size(), "metrics": metrics, "table": table}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
