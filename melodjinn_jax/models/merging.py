"""From codes to keys, by what the codes do to the sound; no label is needed.

A codebook holds several codes for one and the same thing: a drum early or late in its frame, alone or over the tail of
another. Codes whose effect explains each other's occurrences become one key; codes that change nothing one could hear
become NOOP, key 0.
"""

from dataclasses import dataclass

import numpy as np

from melodjinn_jax.config import LatentActionConfig
from melodjinn_jax.models.features import magnitudes_of_mel, mel_of_magnitudes

# An action's effect is heard out for so many frames: a sound that begins at the end of a frame, or slowly, is by then
# as loud as one that began at once.
REACH_FRAMES = 3
# Codes this strong, as a share of the strongest, surely are events.
STRONG = 0.4
# A key's sound is measured where there was least before it: this share of its occurrences.
QUIETEST = 0.5
# A code that occurs less often than this over less than the median sound is not a sound of its own: it is another one
# half hidden.
MIN_QUIET = 0.1
# A weak code has a key if, where that key has not just sounded, it is this strong, as a share of the key's founder.
FRESH_SHARE = 0.5
# A code that is no event itself, and that one key follows at once in this share of its places, begins that key's sound.
ANNOUNCED = 0.8
# How loud a hit is does not make it another key.
GAINS = (0.5, 0.7, 1.0, 1.4)


@dataclass(frozen=True)
class Effects:
    """What every action of some clips does to the sound: `mel_features` around it."""

    before: np.ndarray
    """[B, n, C]: the frame before the action's block."""
    loudest: np.ndarray
    """[R, B, n, C]: the loudest of the action's block and the r blocks after it, r = 0 .. R - 1."""

    def after(self, events: np.ndarray) -> np.ndarray:
        """[B, n, C]: the loudest within reach. What is no event itself is heard out only until the next event.

        For what comes after that is not its doing: else silence before a hit would be as strong as the hit.
        """
        reach = np.zeros(events.shape, np.int64)
        for distance in range(1, len(self.loudest)):
            reach += events | ~_any_within(events, distance)
        return np.take_along_axis(self.loudest, reach[None, :, :, None], axis=0)[0]


def measure_effects(mel_BFC: np.ndarray, stride: int) -> Effects:
    """Effects of all actions, from the `mel_features` of clips of whole blocks."""
    starts = np.arange(stride, mel_BFC.shape[1], stride)
    blocks = -(-REACH_FRAMES // stride)
    padded = np.pad(mel_BFC, ((0, 0), (0, blocks * stride), (0, 0)), mode="edge")
    loudest = [np.max([padded[:, starts + i] for i in range(count * stride)], axis=0) for count in range(1, blocks + 1)]
    return Effects(mel_BFC[:, starts - 1], np.stack(loudest))


@dataclass(frozen=True)
class Change:
    """The sound before and after some occurrences, `mel_features` [m, C]."""

    before: np.ndarray
    after: np.ndarray

    @property
    def strength(self) -> float:
        """Norm of the mean rise."""
        return float(np.linalg.norm(np.maximum(0, self.after - self.before).mean(axis=0))) if len(self.after) else 0.0

    def sound(self) -> np.ndarray:
        """The magnitudes [C] that were added to what sounded before, measured where that was least."""
        before, after = magnitudes_of_mel(self.before), magnitudes_of_mel(self.after)
        level = before.sum(axis=-1)
        quiet = level <= np.quantile(level, QUIETEST)
        return np.sqrt(np.maximum(0, after[quiet] ** 2 - before[quiet] ** 2).mean(axis=0))

    def unexplained(self, sound: np.ndarray) -> float:
        """The share of the change that is left when `sound` [C] is added to what was there before, at its best gain."""
        before = magnitudes_of_mel(self.before)
        errors = [
            np.sum((mel_of_magnitudes(np.hypot(before, gain * sound)) - self.after) ** 2, axis=-1).mean()
            for gain in GAINS
        ]
        return float(min(errors) / max(np.sum((self.after - self.before) ** 2, axis=-1).mean(), 1e-9))


@dataclass(frozen=True)
class Key:
    """A key, by the code that founded it: the magnitudes [C] that it adds, and the norm of its mean rise."""

    sound: np.ndarray
    strength: float


class Merge:
    """Codes of some clips on their way to keys.

    Strong codes found the keys, or join the key whose sound explains what they do: place within the frame, loudness
    and tails that mask then make no difference. What is left over is not a sound of its own in three cases: it mostly
    follows a key at once; it only occurs over other sounds; or an event mostly follows it at once, which is then the
    one that counts, for a sound that begins at the very end of its block is too short to be told from others. Last, a
    strong code that is no event in its own block is, whatever it was so far, the key that follows it at once in nearly
    all its places: that key's sound begins there.
    """

    def __init__(self, codes: np.ndarray, effects: Effects, num_codes: int, noop_code: int, config: LatentActionConfig):
        self.codes, self.effects, self.config = codes, effects, config
        self.key_of_code = np.zeros(num_codes, np.int64)
        self.keys: list[Key] = []
        used = [code for code in range(num_codes) if code != noop_code and (codes == code).any()]
        at_once = np.array([self._change(codes == code, effects.loudest[0]).strength for code in used])
        self._is_event = np.isin(codes, [c for c, s in zip(used, at_once, strict=True) if s > STRONG * at_once.max()])
        self._after = effects.after(self._is_event)
        level = magnitudes_of_mel(effects.before).sum(axis=-1)
        self._is_quiet = level <= np.median(level)
        self._strengths = {code: self.change(codes == code).strength for code in used}
        self._by_strength = sorted(used, key=lambda code: -self._strengths[code])
        of_actions = np.array([self._strengths.get(code, 0.0) for code in range(num_codes)])[codes]
        events = of_actions[of_actions > STRONG * of_actions.max()]
        self._floor = config.noop_threshold * float(np.median(events)) if len(events) else 0.0

    def _change(self, chosen: np.ndarray, after: np.ndarray) -> Change:
        return Change(self.effects.before[chosen], after[chosen])

    def change(self, chosen: np.ndarray) -> Change:
        """What the chosen actions, bool [B, n], do."""
        return self._change(chosen, self._after)

    def run(self) -> np.ndarray:
        """int [num_codes]: the key of every code."""
        strong = [code for code in self._by_strength if self._strengths[code] > self._floor]
        heralds = [code for code in strong if self._is_herald(code)]
        for code in strong:
            if code not in heralds:
                self.key_of_code[code] = self._join(code) or self._stand_in(code) or self._found(code)
        for code in heralds:
            self.key_of_code[code] = self._join(code)
        for code in self._by_strength:
            if code not in strong:
                self.key_of_code[code] = self._late_start(code)
        announced = {code: self._announced(code) for code in strong if not self._is_event[self.codes == code].any()}
        for code, key in announced.items():
            self.key_of_code[code] = key or self.key_of_code[code]
        return np.unique(self.key_of_code, return_inverse=True)[1]  # a key may have lost the code that founded it

    def _is_herald(self, code: int) -> bool:
        """Whether another event mostly follows a code at once."""
        chosen = self.codes == code
        return bool(_any_within(self._is_event & ~chosen, 1)[chosen].mean() > 0.5)

    def _announced(self, code: int) -> int:
        """The key that nearly always follows a code at once; 0 without one."""
        following = self.key_of_code[self.codes[:, 1:][self.codes[:, :-1] == code]]
        counts = np.bincount(following, minlength=2)[1:]
        return 1 + int(np.argmax(counts)) if counts.max() >= ANNOUNCED * (self.codes == code).sum() else 0

    def _join(self, code: int) -> int:
        key, unexplained = self._best_key(self.change(self.codes == code))
        return key if unexplained < self.config.merge_error else 0

    def _stand_in(self, code: int) -> int:
        """The key that mostly sounds just before a code; or, if it only occurs over other sounds, the likeliest."""
        chosen = self.codes == code
        for key in range(1, len(self.keys) + 1):
            if _any_before(self.key_of_code[self.codes] == key, self.config.collapse_frames)[chosen].mean() > 0.5:
                return key
        return 0 if self._is_quiet[chosen].mean() >= MIN_QUIET else self._best_key(self.change(chosen))[0]

    def _found(self, code: int) -> int:
        self.keys.append(Key(self.change(self.codes == code).sound(), self._strengths[code]))
        return len(self.keys)

    def _late_start(self, code: int) -> int:
        """The key of a code too weak to found one, which may be that key's tail in most places, its start in others.

        It has the key if it is strong, and explained, where the key has not just sounded (repeats are collapsed
        anyway); else it is NOOP.
        """
        chosen = self.codes == code
        key, _ = self._best_key(self.change(chosen))
        same = chosen | (self.key_of_code[self.codes] == key)
        fresh = self.change(chosen & ~_any_before(same, self.config.collapse_frames))
        # As strong as a hit that starts in the middle of its frame, or it is not one.
        if not key or fresh.strength <= max(self._floor, FRESH_SHARE * self.keys[key - 1].strength):
            return 0
        key, unexplained = self._best_key(fresh)
        return key if unexplained < self.config.merge_error else 0

    def _best_key(self, change: Change) -> tuple[int, float]:
        """The key whose sound leaves least of a change unexplained, and how much; (0, inf) without keys."""
        errors = [change.unexplained(key.sound) for key in self.keys]
        return (1 + int(np.argmin(errors)), min(errors)) if errors else (0, np.inf)


def merge_codes(
    codes: np.ndarray, effects: Effects, num_codes: int, noop_code: int, config: LatentActionConfig
) -> np.ndarray:
    """Key of every code, from the effects of the codes on unlabelled clips; see `Merge`.

    Args:
      codes: int [B, N - 1] of the clips that `effects` was measured on.
      effects: of those clips.
      num_codes: codes of the codebook.
      noop_code: the code that is NOOP by definition.
      config: thresholds.

    Returns:
      int [num_codes]: 0 for NOOP, for codes too weak to hear and for unused ones; keys count from 1 by the strength
        of the codes that founded them.
    """
    if config.merge == "none":
        return _each_its_own(codes, num_codes)
    return Merge(codes, effects, num_codes, noop_code, config).run()


def _each_its_own(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """A key for every code in use, the commonest first: int [num_codes]. That one is NOOP."""
    counts = np.bincount(codes.ravel(), minlength=num_codes)
    key_of_code = np.zeros(num_codes, np.int64)
    for key, code in enumerate(np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]):
        key_of_code[code] = key
    return key_of_code


def _any_before(events: np.ndarray, count: int) -> np.ndarray:
    """Whether any of the `count` actions before is an event: bool [B, n] to the same."""
    padded = np.pad(events, ((0, 0), (max(1, count), 0)))
    return np.any([padded[:, i : i + events.shape[1]] for i in range(max(1, count))], axis=0)


def _any_within(events: np.ndarray, count: int) -> np.ndarray:
    """Whether any of the `count` actions after is an event: bool [B, n] to the same."""
    return _any_before(events[:, ::-1], count)[:, ::-1]
