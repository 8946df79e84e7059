"""How well discovered actions agree with the true hits: matching, accuracy, information."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

Events = list[list[tuple[int, int]]]
"""For each clip, (frame, drum) of every hit."""


@dataclass(frozen=True)
class LabelScores:
    """Agreement of actions with true hits."""

    confusion: np.ndarray
    """int [drums + 1, keys + 1]: rows are the truth, row 0 and column 0 NOOP."""
    drum_of_key: tuple[int | None, ...]
    """For keys 1..: the drum each stands for, one-to-one; None for a key left over."""
    onset_accuracy: float
    noop_precision: float
    noop_recall: float
    action_nmi: float


def score_labels(keys: np.ndarray, events: Events, num_drums: int, num_keys: int, tolerance: int) -> LabelScores:
    """Compare actions with true hits on held-out clips.

    Args:
      keys: int [B, F - 1], stride 1; key i leads into frame i + 1.
      events: the true hits of each clip; those outside frames 1..F-1 are left out.
      num_drums: drums in the world.
      num_keys: keys beside NOOP.
      tolerance: frames by which an action may miss its hit.
    """
    confusion = confuse(keys, events, num_drums, num_keys, tolerance)
    drum_of_key = assign_keys(confusion)
    hits, noop = confusion[1:], confusion[0]
    right = sum(confusion[drum + 1, key + 1] for key, drum in enumerate(drum_of_key) if drum is not None)
    missed = hits[:, 0].sum()
    return LabelScores(
        confusion=confusion,
        drum_of_key=drum_of_key,
        onset_accuracy=float(right / max(1, hits.sum())),
        noop_precision=float(noop[0] / max(1, noop[0] + missed)),
        noop_recall=float(noop[0] / max(1, noop.sum())),
        action_nmi=normalized_mutual_information(confusion),
    )


def confuse(keys: np.ndarray, events: Events, num_drums: int, num_keys: int, tolerance: int) -> np.ndarray:
    """Confusion counts int [num_drums + 1, num_keys + 1] with each action credited to one hit at most.

    A hit takes the action on its own frame, else the one after, else the one before; frames without a hit whose
    action no hit took are row 0.
    """
    frames = keys.shape[1] + 1
    confusion = np.zeros((num_drums + 1, num_keys + 1), np.int64)
    shifts = [0] + [sign * distance for distance in range(1, tolerance + 1) for sign in (1, -1)]
    for clip, clip_events in zip(keys, events, strict=True):
        by_frame = np.concatenate([[0], clip])
        taken = np.zeros(frames, bool)
        hit_frames = [(frame, drum) for frame, drum in clip_events if 1 <= frame < frames]
        for frame, drum in hit_frames:
            near = [frame + shift for shift in shifts if 1 <= frame + shift < frames]
            found = next((f for f in near if by_frame[f] and not taken[f]), None)
            if found is not None:
                taken[found] = True
            confusion[drum + 1, by_frame[found] if found is not None else 0] += 1
        is_hit = np.zeros(frames, bool)
        is_hit[[frame for frame, _ in hit_frames]] = True
        rest = by_frame[1:][~taken[1:] & ~(is_hit[1:] & (by_frame[1:] == 0))]
        confusion[0] += np.bincount(rest, minlength=num_keys + 1)
    return confusion


def assign_keys(confusion: np.ndarray) -> tuple[int | None, ...]:
    """The one-to-one assignment of keys to drums with the most hits, rows normalised so that rare drums count."""
    shares = confusion[1:, 1:] / np.maximum(1, confusion[1:].sum(axis=1, keepdims=True))
    drums, keys = linear_sum_assignment(-shares)
    drum_of_key: list[int | None] = [None] * shares.shape[1]
    for drum, key in zip(drums, keys, strict=True):
        if shares[drum, key] > 0:
            drum_of_key[key] = int(drum)
    return tuple(drum_of_key)


def normalized_mutual_information(confusion: np.ndarray) -> float:
    """Mutual information of the two labellings over the root of their entropies; 0 when one is constant."""
    joint = confusion / max(1, confusion.sum())
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p: np.ndarray) -> float:
        return float(-np.sum(p[p > 0] * np.log(p[p > 0])))

    if min(np.count_nonzero(rows), np.count_nonzero(columns)) < 2:
        return 0.0
    information = entropy(rows) + entropy(columns) - entropy(joint.ravel())
    return information / float(np.sqrt(entropy(rows) * entropy(columns)))
