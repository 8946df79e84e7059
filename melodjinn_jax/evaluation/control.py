"""Does pressing a key do what it should? Press plans, and verdicts on what was heard after each press."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from melodjinn_jax.evaluation.onsets import Onset

MIN_PRESS_GAP, MAX_PRESS_GAP = 8, 18
# A press needs time to sound before the clip ends.
LAST_PRESS_MARGIN = 6


@dataclass(frozen=True)
class Press:
    """One key pressed in one generated clip, sounding from `frame` on."""

    clip: int
    frame: int
    key: int


def plan_presses(
    keys: list[int], clips: int, frames: int, first_frame: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Press]]:
    """Press keys at irregular moments, each key equally often in random order; without keys, press nothing.

    Returns:
      actions int [clips, frames - 1] and the presses in order of clip and frame.
    """
    actions = np.zeros((clips, frames - 1), np.int64)
    presses: list[Press] = []
    deck: list[int] = []
    for clip in range(clips if keys else 0):
        frame = first_frame + int(rng.integers(2, 6))
        while frame < frames - LAST_PRESS_MARGIN:
            if not deck:
                deck = [int(key) for key in rng.permutation(keys)]
            key = deck.pop()
            actions[clip, frame - 1] = key
            presses.append(Press(clip, frame, key))
            frame += int(rng.integers(MIN_PRESS_GAP, MAX_PRESS_GAP))
    return actions, presses


def heard_after_presses(presses: list[Press], onsets: list[list[Onset]], frames: int) -> list[list[Onset]]:
    """The onsets that answer to each press: from one frame before it until one frame before the next."""
    heard = []
    for index, press in enumerate(presses):
        following = presses[index + 1] if index + 1 < len(presses) else None
        stop = following.frame - 1 if following and following.clip == press.clip else frames
        heard.append([onset for onset in onsets[press.clip] if press.frame - 1 <= onset.frame < stop])
    return heard


def drum_played(press: Press, heard: list[Onset]) -> int | None:
    """The drum, if the press sounded exactly one, on time (within one frame); else None."""
    if len(heard) == 1 and abs(int(np.floor(heard[0].frame)) - press.frame) <= 1:
        return heard[0].drum
    return None


@dataclass(frozen=True)
class ControlScores:
    """What presses did."""

    accuracy: float
    """Share of presses after which the right drum sounded, on time, and nothing else."""
    extra_onsets: float
    """Onsets beyond the first heard per press."""
    by_key: dict[int, dict[str, float | int | None]]
    """For each key: the drum it plays most, the share of its presses that played just that, presses."""


def score_presses(
    presses: list[Press], onsets: list[list[Onset]], frames: int, drum_of_key: tuple[int | None, ...]
) -> ControlScores:
    """Verdicts on planned presses, given what the detector heard in the generated clips."""
    heard = heard_after_presses(presses, onsets, frames)
    played = [drum_played(press, sounds) for press, sounds in zip(presses, heard, strict=True)]
    right = [
        drum is not None and drum == drum_of_key[press.key - 1] for press, drum in zip(presses, played, strict=True)
    ]
    by_key: dict[int, dict[str, float | int | None]] = {}
    for key in sorted({press.key for press in presses}):
        drums = [drum for press, drum in zip(presses, played, strict=True) if press.key == key]
        clean = [drum for drum in drums if drum is not None]
        drum, count = Counter(clean).most_common(1)[0] if clean else (None, 0)
        by_key[key] = {
            "drum": drum,
            "accuracy": count / len(drums),
            "presses": len(drums),
        }
    return ControlScores(
        accuracy=float(np.mean(right)) if right else 0.0,
        extra_onsets=float(np.mean([max(0, len(sounds) - 1) for sounds in heard])) if heard else 0.0,
        by_key=by_key,
    )


def worst_key(scores: ControlScores) -> float:
    """Accuracy of the worst key; 0 if two keys play the same drum, for then one of them has no drum of its own."""
    drums = [entry["drum"] for entry in scores.by_key.values()]
    if not drums or len(set(drums)) < len(drums):
        return 0.0
    return min(float(entry["accuracy"] or 0.0) for entry in scores.by_key.values())
