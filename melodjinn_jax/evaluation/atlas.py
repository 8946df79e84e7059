"""The atlas of a run's keys: how often each comes, where in the data, and what it does when it is pressed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.audio import to_float32
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.actions import encode_track, require_frozen
from melodjinn_jax.evaluation.bootstrap import Estimate, estimate, mean_of, ratio_of
from melodjinn_jax.evaluation.descriptors import PITCH_CLASSES
from melodjinn_jax.evaluation.effects import Clips, Effects, measure_effects
from melodjinn_jax.evaluation.instrument import instrument_of
from melodjinn_jax.evaluation.key_names import Proposal, propose_names
from melodjinn_jax.evaluation.meaning import alike, density, recovery, starts_of
from melodjinn_jax.evaluation.music import load_held_out_music
from melodjinn_jax.training.run import Run, check_held_out

# Training records in which keys are looked for, and what is shown of them.
RECORDS = 64
EXCERPTS = 3
BEFORE_SECONDS, AFTER_SECONDS = 0.3, 0.7


@dataclass(frozen=True)
class Excerpt:
    """A moment of sound around a press."""

    title: str
    sound: np.ndarray
    """float32 [samples]."""
    presses: tuple[tuple[int, int], ...]
    """(frame, key) of every key that begins in it, in order of time."""


@dataclass(frozen=True)
class KeyCard:
    """One key."""

    key: int
    proposal: Proposal
    share: Estimate
    """Of all actions."""
    per_minute: Estimate
    """Times that it begins."""
    held: float
    """Seconds that it lasts, mean."""
    effects: dict[str, Estimate]
    """Change of `attack`, `sustain`, `onsets`, `brightness` and `pitch`, next to NOOP."""
    pitch_class: str
    """The one that gains most."""
    spectrum: np.ndarray
    """[W, BANDS]: mean change in decibels over time."""
    found: tuple[Excerpt, ...]
    """In the training data."""
    played: tuple[Excerpt, ...]
    """Pressed after the beginnings of held-out clips."""


@dataclass(frozen=True)
class Atlas:
    """All keys of a run."""

    cards: tuple[KeyCard, ...]
    alone: tuple[Excerpt, ...]
    """The contexts of `played` under NOOP."""
    measures: dict[str, Any]
    """Of all keys together: `density`, `alike`, `recovery`."""
    contexts: int
    records: int
    sample_rate: int
    hop_length: int


@dataclass(frozen=True)
class Heard:
    """Training records and their actions."""

    sound: list[np.ndarray]
    """float32 [samples] each."""
    keys: list[np.ndarray]
    """int [n] each; the first leads into the block after the first one."""
    offsets: list[int]
    """Frames before the first whole block."""
    titles: list[str]
    tracks: np.ndarray


def make_atlas(run: Run, data: Mixture, config: EvaluationConfig) -> Atlas:
    """Measure every key and find its excerpts.

    Raises:
      UserError: the actions are not frozen, there is no key, or the data lacks what is needed.
    """
    require_frozen(run)
    if not run.action_space.num_keys:
        raise UserError(f"--workdir {run.workdir.path} found no key beside NOOP: there is nothing to show")
    heard = listen_to_training(run, data)
    clips = held_out_clips(run, data, config)
    instrument = instrument_of(run, config.strength)
    frames = _blocks(run, AFTER_SECONDS) * run.action_space.stride
    effects = measure_effects(instrument, clips, config.prompt_frames, config.temperature, frames)
    length = min(len(keys) for keys in heard.keys)
    rows = np.stack([keys[:length] for keys in heard.keys])
    cards = tuple(
        _card(run, key, proposal, rows, heard, effects) for key, proposal in enumerate(propose_names(effects), start=1)
    )
    measures = {**density(instrument, rows, heard.tracks), **alike(effects)}
    measures |= recovery(effects) if run.has_lam else {}
    return Atlas(
        cards=cards,
        alone=_played(effects, 0),
        measures=measures,
        contexts=len(clips.codes),
        records=len(heard.sound),
        sample_rate=run.codec.sample_rate,
        hop_length=run.codec.hop_length,
    )


def held_out_clips(run: Run, data: Mixture, config: EvaluationConfig) -> Clips:
    """Held-out clips with their keys, of music or of the drum world (whose clips are tracks of their own)."""
    if run.config.data.datasets:
        check_held_out(data, config, run.action_space.stride)
        return load_held_out_music(run, data, config)
    split = data.datasets[0].load_split(config.split, config.clips)
    patches, codes = split["waveform"][:, : config.frames], split["codes"][:, : config.frames]
    sound = to_float32(patches).reshape(len(patches), -1)
    return Clips(sound, codes.astype(np.int32), instrument_of(run).listen(sound), np.arange(len(patches)))


def listen_to_training(run: Run, data: Mixture) -> Heard:
    """Some training records of each DATASET, by their weights, with the keys that the LAM or the labels find there."""
    heard = Heard([], [], [], [], np.zeros(0, int))
    rng = np.random.default_rng(0)
    names = []
    for index, dataset in enumerate(data.datasets):
        fields = ("waveform", "codes", "id", "provenance")
        labels = data.labels[index] if data.labels else None
        source = labels.source(dataset, "train", fields) if labels else dataset.source("train", fields)
        share = data.weights[index] / sum(data.weights)
        count = min(len(source), max(1, round(RECORDS * share)))
        for place in sorted(rng.choice(len(source), count, replace=False).tolist()):
            record = source[place]
            heard.sound.append(to_float32(record["waveform"]).reshape(-1))
            patches = record["waveform"] if labels else run.heard(record["waveform"][None], record["codes"][None])[0]
            heard.keys.append(record["actions"] if labels else encode_track(run, patches))
            heard.offsets.append(int(record["first_frame"]) if labels else 0)
            heard.titles.append(str(record["provenance"].get("title") or record["id"]))
            names.append(record["id"].rpartition("/")[0] or record["id"])
    tracks = np.unique(names, return_inverse=True)[1]
    return Heard(heard.sound, heard.keys, heard.offsets, heard.titles, tracks)


def _blocks(run: Run, seconds: float) -> int:
    """Blocks that last this long, two at least."""
    return max(2, round(seconds * run.codec.sample_rate / (run.codec.hop_length * run.action_space.stride)))


def _card(run: Run, key: int, proposal: Proposal, rows: np.ndarray, heard: Heard, effects: Effects) -> KeyCard:
    seconds = run.codec.hop_length * run.action_space.stride / run.codec.sample_rate
    held = np.count_nonzero(rows == key, axis=1)
    begun = np.count_nonzero(starts_of(rows) & (rows == key), axis=1)
    minutes = np.full(len(rows), rows.shape[1] * seconds / 60)
    pitch = effects.pitch[key - 1]
    top = int(pitch.mean(axis=0).argmax())
    curves = {name: getattr(effects, name)[key - 1] for name in ("attack", "sustain", "onsets", "brightness")}
    changes = {**curves, "pitch": pitch[:, top]}
    return KeyCard(
        key=key,
        proposal=proposal,
        share=estimate(mean_of(held / rows.shape[1]), heard.tracks),
        per_minute=estimate(ratio_of(begun, minutes), heard.tracks),
        held=float(held.sum() / max(1, begun.sum()) * seconds),
        effects={name: estimate(mean_of(values), effects.tracks) for name, values in changes.items()},
        pitch_class=PITCH_CLASSES[top],
        spectrum=effects.spectrum[key - 1].mean(axis=0),
        found=find_excerpts(run, key, heard),
        played=_played(effects, key),
    )


def find_excerpts(run: Run, key: int, heard: Heard) -> tuple[Excerpt, ...]:
    """Where a key begins in the data, with sound before it and after: from different records, as far as there are."""
    stride, hop = run.action_space.stride, run.codec.hop_length
    before, after = (_blocks(run, seconds) * stride for seconds in (BEFORE_SECONDS, AFTER_SECONDS))
    chosen: list[tuple[int, int, Excerpt]] = []
    for index, (sound, keys) in enumerate(zip(heard.sound, heard.keys, strict=True)):
        begun = np.flatnonzero(starts_of(keys[None])[0])
        # Action i leads into block i + 1.
        frames, names = heard.offsets[index] + (begun + 1) * stride, keys[begun]
        for turn, frame in enumerate(frames[names == key].tolist()):
            first, last = frame - before, frame + after
            if first < 0 or last * hop > len(sound):
                continue
            inside = (frames >= first) & (frames < last)
            presses = tuple(zip((frames[inside] - first).tolist(), names[inside].tolist(), strict=True))
            place = f"{heard.titles[index]}, {frame * hop / run.codec.sample_rate:.2f} s"
            chosen.append((turn, index, Excerpt(place, sound[first * hop : last * hop], presses)))
    return tuple(excerpt for _, _, excerpt in sorted(chosen, key=lambda item: item[:2])[:EXCERPTS])


def _played(effects: Effects, key: int) -> tuple[Excerpt, ...]:
    """A key in the first contexts; under NOOP with key 0."""
    return tuple(
        Excerpt(f"context {context + 1}", effects.sound[key, context], ((effects.prompt_frames, key),))
        for context in range(min(EXCERPTS, len(effects.tracks)))
    )
