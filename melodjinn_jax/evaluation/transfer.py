"""Action transfer: the structure of one recording, played on the sound of another; and how much of it came over."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from melodjinn_jax.data.audio import SILENCE_DB, to_int16
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.actions import encode_track, extract_actions
from melodjinn_jax.evaluation.descriptors import correlations, levels, onset_strength, spectrum
from melodjinn_jax.live.generator import generate
from melodjinn_jax.models.latent_action import receptive_field
from melodjinn_jax.training.run import Run

# Transfers of the same actions in another order: enough for a rank of 1 in 20.
SHUFFLES = 19
SCORED_SECONDS = 20.0


@dataclass(frozen=True)
class Recordings:
    """What is transferred, cut to whole blocks."""

    source: np.ndarray
    """float32 [samples]: its actions are played."""
    keys: np.ndarray
    """int [N - 1], of the source."""
    prompt: np.ndarray
    """int32 codes [P, Q] of the sound to play them on."""
    heard: np.ndarray
    """int [P / S - 1]: the keys within the prompt."""


def check_recording(run: Run, flag: str, path: str, waveform: np.ndarray) -> None:
    """Raise `UserError` if a recording is shorter than what the LAM hears at once, or silent."""
    block = run.action_space.stride * run.codec.hop_length
    needed = receptive_field(run.config.latent_actions) * block
    rate = run.codec.sample_rate
    if len(waveform) < needed:
        raise UserError(
            f"{flag} {path} is {len(waveform) / rate:.2f} s long, and the latent action model hears "
            f"{needed / rate:.2f} s at once: give a longer recording"
        )
    whole = waveform[: len(waveform) // block * block]
    if levels(whole[None], run.codec.hop_length).max() <= SILENCE_DB:
        raise UserError(f"{flag} {path} is silent (below {SILENCE_DB:.0f} dB throughout): give one that can be heard")


def prepare(run: Run, source: np.ndarray, prompt: np.ndarray | None) -> Recordings:
    """The actions of one recording, and the end of the other as the prompt; without one, a silent block."""
    block = run.action_space.stride * run.codec.hop_length
    source = source[: len(source) // block * block]
    if prompt is None:
        silence = np.asarray(run.codec.encode(np.zeros((1, block), np.float32)))[0]
        return Recordings(source, extract_actions(run, source), silence, np.zeros(0, np.int64))
    stride = run.action_space.stride
    # What the dynamics model can look back on; the codec and the LAM hear the whole recording.
    frames = max(1, run.config.dynamics.window // stride) * stride
    prompt = prompt[: len(prompt) // block * block]
    codes = np.asarray(run.codec.encode(prompt[None]))[0, -frames:]
    heard = extract_actions(run, prompt)
    return Recordings(source, extract_actions(run, source), codes, heard[len(heard) - (len(codes) // stride - 1) :])


def transfer(run: Run, recordings: Recordings, keys: np.ndarray, temperature: float, seed: int) -> np.ndarray:
    """Sound float32 [B, N * S * H] of keys [B, N - 1] played on after the prompt, which is not part of it.

    The actions have the strength at which the run is evaluated.
    """
    stride, start = run.action_space.stride, len(recordings.prompt)
    rows, frames = len(keys), start + (keys.shape[1] + 1) * stride
    given = np.zeros((rows, frames, recordings.prompt.shape[1]), np.int32)
    given[:, :start] = recordings.prompt
    # Nothing is known to lead from the prompt into the first block.
    before = np.broadcast_to(np.append(recordings.heard, 0), (rows, start // stride))
    codes = generate(
        run.models,
        run.played_dynamics,
        given,
        start,
        np.concatenate([before, keys], axis=1),
        seed=seed,
        temperature=temperature,
    )
    return np.asarray(run.codec.decode(codes))[:, start * run.codec.hop_length :]


def score(run: Run, recordings: Recordings, played: np.ndarray, temperature: float, seed: int) -> dict[str, Any]:
    """How much of the source's structure is heard in a transfer, next to transfers of the same actions shuffled.

    Args:
      run: with a frozen LAM.
      recordings: what was transferred.
      played: float32 [samples], the transfer of the keys as they are.
      temperature: of the shuffled ones.
      seed: of the shuffled ones.

    Returns:
      for each of `onsets`, `envelope` and `keys`: the value of the transfer (the first two are correlations with the
      source, the third is the share of the pressed non-NOOP keys that the LAM hears in it, each key weighing the
      same), mean, low and high of the shuffled ones (their range), and `gain`, the value less that mean. `rank` is the
      share of shuffled ones that the transfer is better than.
    """
    stride, hop = run.action_space.stride, run.codec.hop_length
    second = run.codec.sample_rate / (hop * stride)
    blocks = min(len(recordings.keys) + 1, int(SCORED_SECONDS * second))
    keys = recordings.keys[: blocks - 1]
    rng = np.random.default_rng(seed)
    shuffled_keys = np.stack([rng.permutation(keys) for _ in range(SHUFFLES)])
    shuffled = transfer(run, recordings, shuffled_keys, temperature, seed + 1)
    length = blocks * stride * hop
    sounds = np.concatenate([played[None, :length], shuffled])
    likeness = structure(run, recordings.source[:length], keys, sounds)
    return {
        "seconds": round(len(played) / run.codec.sample_rate, 3),
        "scored_seconds": round(length / run.codec.sample_rate, 3),
        "presses": int(np.count_nonzero(recordings.keys)),
        "shuffles": SHUFFLES,
        **{name: _against(values[0], values[1:]) for name, values in likeness.items()},
    }


def structure(run: Run, source: np.ndarray, keys: np.ndarray, sounds: np.ndarray) -> dict[str, np.ndarray]:
    """How like the structure of a source [samples] with keys [N - 1] each of the sounds [B, samples] is: [B] each."""
    rate, hop = run.codec.sample_rate, run.codec.hop_length
    sources = np.broadcast_to(source, sounds.shape)

    def onsets(waveform: np.ndarray) -> np.ndarray:
        return np.asarray(onset_strength(waveform, rate, hop))

    heard = np.stack([encode_track(run, to_int16(sound).reshape(-1, hop)) for sound in sounds])
    return {
        "onsets": correlations(onsets(sources), onsets(sounds)),
        "envelope": correlations(levels(sources, hop), levels(sounds, hop)),
        "keys": recovered(keys, heard),
    }


def recovered(keys: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Share of the pressed non-NOOP keys [n] heard in each of [B, n], or one block later; every key weighs the same.

    NaN where none was pressed.
    """
    pressed = np.unique(keys[keys > 0])
    if not len(pressed):
        return np.full(len(heard), np.nan)
    later = np.pad(heard[:, 1:], ((0, 0), (0, 1)))
    found = (heard == keys) | ((heard == 0) & (later == keys))
    return np.mean([found[:, keys == key].mean(axis=1) for key in pressed], axis=0)


def _against(value: float, shuffled: np.ndarray) -> dict[str, float | None]:
    if not np.isfinite(value):
        return dict.fromkeys(("value", "shuffled", "shuffled_low", "shuffled_high", "gain", "rank"))
    fields = {
        "value": value,
        "shuffled": shuffled.mean(),
        "shuffled_low": shuffled.min(),
        "shuffled_high": shuffled.max(),
        "gain": value - shuffled.mean(),
        "rank": np.mean(shuffled < value),
    }
    return {name: round(float(number), 4) for name, number in fields.items()}


def likeness_of_sound(run: Run, sound: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference of two sounds' mean spectra, in decibels, whatever their levels: [samples] each."""
    means = [spectrum(w[None], run.codec.sample_rate, run.codec.hop_length)[0].mean(axis=0) for w in (sound, other)]
    difference = (means[0] - means[0].mean()) - (means[1] - means[1].mean())
    return round(float(np.sqrt(np.mean(difference**2))), 3)
