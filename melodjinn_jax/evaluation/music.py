"""The evaluation of music that nobody has labelled: what `eval.json` holds of it and how each number is found."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.loader import training_iterator
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.evaluation.effects import Clips
from melodjinn_jax.evaluation.instrument import instrument_of
from melodjinn_jax.evaluation.meaning import measure_meaning
from melodjinn_jax.evaluation.measures import (
    FULL_SCALE,
    cross_entropies,
    level,
    logmel_correlation,
    logmel_distance,
    real_time_factor,
)
from melodjinn_jax.live.generator import generate
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, Run
from melodjinn_jax.training.step import encode_codes, encode_keys

# Clips drawn for every one that is measured, so that short tracks come up often enough.
DRAWS = 8


@dataclass(frozen=True)
class HeldOutMusic(Clips):
    """Held-out clips with the actions that the LAM, or the labels, find in them."""

    num_actions: int
    """Codes in use, or keys where only those are known."""


def load_held_out_music(run: Run, data: Mixture, config: EvaluationConfig) -> HeldOutMusic:
    """Random clips of the held-out split, the same ones every time, every track with its share of them."""
    batch = draw_held_out(data, config, run.action_space.stride, ("waveform", "codes", "id"))
    if data.labels:
        keys = codes = batch["actions"]
    else:
        networks = {name: run.state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS)}
        heard = run.heard(batch["waveform"], batch["codes"])
        keys, codes = (
            np.asarray(jax.jit(encode, static_argnums=0)(run.models, networks, heard))
            for encode in (encode_keys, encode_codes)
        )
    sound = batch["waveform"].reshape(config.clips, -1) / FULL_SCALE
    tracks = np.unique(_track_names(batch["id"]), return_inverse=True)[1]
    num_actions = len(np.unique(codes))
    return HeldOutMusic(sound, batch["codes"].astype(np.int32), keys.astype(np.int32), tracks, num_actions)


def draw_held_out(
    data: Mixture, config: EvaluationConfig, stride: int, fields: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The clips, as batches of training are; `fields` has `id` among them."""
    draw = training_iterator(
        data,
        split=config.split,
        batch_size=config.clips,
        crop_frames=config.frames,
        seed=0,
        stride=stride,
        fields=fields,
    )
    return _draw_evenly(draw, config.clips)


def _draw_evenly(draw: Iterator[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """`count` clips of those that come, the rarest track's first: else most would be of the longest track.

    An interval over tracks says the less, the fewer tracks have most of the clips. A clip that was drawn before comes
    last of all: it is no other context.
    """
    drawn = [next(draw) for _ in range(DRAWS)]
    pool = {name: np.concatenate([batch[name] for batch in drawn]) for name in drawn[0]}
    seen: Counter[str] = Counter()
    known: set[bytes] = set()
    turns = []
    for name, codes in zip(_track_names(pool["id"]), pool["codes"], strict=True):
        is_new = codes.tobytes() not in known
        known.add(codes.tobytes())
        turns.append(seen[name] if is_new else len(pool["id"]))
        seen[name] += is_new
    chosen = np.sort(np.argsort(turns, kind="stable")[:count])
    return {name: values[chosen] for name, values in pool.items()}


def _track_names(ids: np.ndarray) -> list[str]:
    # A record without a place is a track of its own.
    return [name.rpartition("/")[0] or name for name in ids.tolist()]


def evaluate_music(run: Run, held_out: HeldOutMusic, config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """All measures, and the example that the report shows (waveforms and actions of one clip)."""
    num_keys = run.action_space.num_keys
    decoded = np.asarray(run.codec.decode(held_out.codes))
    heard = level(held_out.waveform, run.codec.hop_length)
    measures: dict[str, Any] = {
        "num_actions": held_out.num_actions,
        "num_keys": num_keys,
        "held_out_level_db": heard[0],
        "held_out_silence_share": heard[1],
        "codec_logmel_distance": logmel_distance(held_out.waveform, decoded),
        **cross_entropies(run.models, run.state, held_out.codes, held_out.keys),
    }
    greedy, _ = _generate_and_measure(run, held_out, config, 0.0)
    sampled, example = _generate_and_measure(run, held_out, config, config.temperature)
    measures |= greedy
    measures["sampled"] = {"temperature": config.temperature, **sampled}
    instrument = instrument_of(run, config.strength)
    measures["meaning"], _ = measure_meaning(
        instrument, held_out, config.prompt_frames, config.temperature, config.takes
    )
    measures["generation_real_time_factor"] = real_time_factor(run.models, run.state, run.codec)
    return measures, example


def _generate_and_measure(
    run: Run, held_out: HeldOutMusic, config: EvaluationConfig, temperature: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Each clip continued from its prompt twice: under its own actions, and under NOOP."""
    B, start, hop = len(held_out.codes), config.prompt_frames, run.codec.hop_length
    in_prompt = np.arange(held_out.keys.shape[1]) < start // run.action_space.stride - 1
    codes = generate(
        run.models,
        run.played_dynamics,
        np.concatenate([held_out.codes] * 2),
        start,
        np.concatenate([held_out.keys, np.where(in_prompt, held_out.keys, 0)]),
        temperature=temperature,
    )
    sound = np.asarray(run.codec.decode(codes))
    truth, follow, noop = (x[:, start * hop :] for x in (held_out.waveform, sound[:B], sound[B:]))
    (follow_level, follow_silence), (noop_level, noop_silence) = level(follow, hop), level(noop, hop)
    measures = {
        "generation_logmel_correlation": logmel_correlation(truth, follow),
        "generation_logmel_distance": logmel_distance(truth, follow),
        "generation_level_db": follow_level,
        "generation_silence_share": follow_silence,
        "noop_level_db": noop_level,
        "noop_silence_share": noop_silence,
    }
    clip = int(np.argmax(np.count_nonzero(held_out.keys, axis=1)))
    example = {
        "clip": clip,
        "prompt_frames": start,
        "actions": held_out.keys[clip].tolist(),
        "prompt": held_out.codes[clip, :start],
        "truth": held_out.waveform[clip],
        "follow": sound[clip],
        "noop": sound[B + clip],
    }
    return measures, example
