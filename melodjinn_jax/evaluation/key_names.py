"""The names of keys: proposed from what a key was measured to do; a person has the last word, in the file of names."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.bootstrap import resample
from melodjinn_jax.evaluation.descriptors import PITCH_CLASSES
from melodjinn_jax.evaluation.effects import ATTACK_FRAMES, BANDS, Effects
from melodjinn_jax.live.keys import FILE, read_key_names

SUBTLE = "subtle"
# What a listener notices: decibels of level, of onset strength, octaves, share of one pitch class.
LEVEL_DB, ONSET_DB, OCTAVES, PITCH_SHARE = 1.0, 1.5, 0.15, 0.02
STOP_DB = -6.0
_RESAMPLES = 200
# Thirds of the spectrum: up to 0.6 kHz, from 1.1 to 3.5 kHz, above 4.5 kHz.
_LOW, _MIDDLE, _HIGH = slice(0, 3), slice(5, 10), slice(11, BANDS)


@dataclass(frozen=True)
class Proposal:
    """A name, and the share of resamples of the contexts from which the same name follows."""

    name: str
    sure: float


def propose_names(effects: Effects) -> list[Proposal]:
    """A name for each of keys 1.., from its measured effect; a second kick is called kick 2."""
    counts = resample(effects.tracks, _RESAMPLES)
    proposals = []
    for key in range(effects.num_keys):
        name = name_of(_mean_effect(effects, key, np.ones(len(effects.tracks))))
        drawn = [name_of(_mean_effect(effects, key, row)) for row in counts]
        proposals.append(Proposal(name, drawn.count(name) / len(drawn)))
    seen: Counter[str] = Counter()
    for index, proposal in enumerate(proposals):
        seen[proposal.name] += 1
        if seen[proposal.name] > 1:
            proposals[index] = Proposal(f"{proposal.name} {seen[proposal.name]}", proposal.sure)
    return proposals


def _mean_effect(effects: Effects, key: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    weights = counts / counts.sum()
    means = {
        name: np.tensordot(weights, getattr(effects, name)[key], axes=1)
        for name in ("attack", "sustain", "onsets", "brightness", "pitch")
    }
    return {**means, "bands": np.tensordot(weights, effects.spectrum[key][:, :ATTACK_FRAMES].mean(axis=1), axes=1)}


def name_of(effect: dict[str, np.ndarray]) -> str:
    """A plain word for a mean effect: level `attack` at once and `sustain` later, `onsets`, `brightness`, `pitch` [12],
    and the `bands` [BANDS] at once, all next to NOOP."""
    attack, sustain = float(effect["attack"]), float(effect["sustain"])
    if effect["onsets"] >= ONSET_DB and attack >= LEVEL_DB and sustain <= attack / 2:
        return _drum(effect["bands"])
    pitch = int(np.argmax(effect["pitch"]))
    change = attack if abs(attack) > abs(sustain) else sustain
    candidates = {
        _level_word(attack, sustain): abs(change) / LEVEL_DB,
        "brighter" if effect["brightness"] > 0 else "darker": abs(float(effect["brightness"])) / OCTAVES,
        f"note {PITCH_CLASSES[pitch]}": float(effect["pitch"][pitch]) / PITCH_SHARE,
        "accent": float(effect["onsets"]) / ONSET_DB,
    }
    best = max(candidates, key=lambda name: candidates[name])
    return best if candidates[best] >= 1 else SUBTLE


def _level_word(attack: float, sustain: float) -> str:
    if max(attack, sustain, key=abs) < 0:
        return "stop" if min(attack, sustain) <= STOP_DB else "softer"
    return "build" if sustain - attack >= LEVEL_DB else "louder"


def _drum(bands: np.ndarray) -> str:
    """A hit by where in the spectrum it adds most."""
    added = np.maximum(bands, 0)
    low, middle, high = (float(added[part].mean()) for part in (_LOW, _MIDDLE, _HIGH))
    if low >= max(middle, high):
        sounds_low = high < low / 2
        return ("tom" if added[0] < added[1:3].max() else "kick") if sounds_low else "snare"
    if high >= middle and low < high / 2:
        return "hat"
    return "clap" if low < max(middle, high) / 2 else "snare"


def keep_names(folder: Path, proposals: list[Proposal]) -> list[str]:
    """The names of all keys: those of the file, and proposals for the keys that it does not name, added to it.

    Raises:
      UserError: the file is damaged or cannot be written.
    """
    given = read_key_names(folder)
    names = given + [proposal.name for proposal in proposals[len(given) :]]
    if names != given:
        try:
            write_atomically(folder / FILE, (json.dumps(names, ensure_ascii=False, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{folder / FILE} cannot be written: {error.strerror}") from error
    return names[: len(proposals)]
