"""Which of the known one-shots sound when, whatever their phase; matching of onset lists; log-mel spectrograms.

The detector is convolutive non-negative matrix factorisation with fixed templates and the Kullback-Leibler
divergence (Smaragdis 2004, "Non-negative matrix factor deconvolution"). It knows the one-shots, so it is an
instrument for the drum worlds and no detector for real music.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_HOPS_PER_FRAME = 4
_WINDOW_HOPS = 6
_NUM_BANDS = 48
_MAX_TEMPLATE_FRAMES = 24
_PHASES = 16
_LEAD_HOPS = 2  # a window that ends just after an attack already hears it
_ITERATIONS = 40
_OVERRELAXATION = 1.8  # multiplicative updates converge for exponents below 2, and the faster the larger
_WHITENING = 0.7  # else bass, which adds up by phase and not by magnitude, outweighs the attacks above it
_SPARSITY = 0.02
_FLOOR = 1e-3
_SMOOTHING_HOPS = 3  # to each side: a hit between two hops shares its activation among neighbours
_MIN_DISTANCE_HOPS = 9
_MIN_GAIN = 0.2  # hits of half velocity are .2 or more even where tails cancel them; false ones stay below
_MIN_SHARE = 0.4  # of a hit at the same time: a sound that a codec renders imperfectly leaks into other templates
_CHUNK = 16


class Onset(NamedTuple):
    """One hit: its time in frames from the start of the clip, the index of its one-shot, its gain (1: as given)."""

    frame: float
    drum: int
    gain: float


@functools.cache
def mel_filters(sample_rate: int, fft_size: int, num_bands: int, lowest: float = 20.0) -> np.ndarray:
    """Triangular mel filters from `lowest` hertz to the Nyquist frequency, float32 [fft_size // 2 + 1, num_bands]."""
    frequencies = np.fft.rfftfreq(fft_size, 1 / sample_rate)[:, None]
    mels = np.linspace(2595 * np.log10(1 + lowest / 700), 2595 * np.log10(1 + sample_rate / 1400), num_bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def mel_power(waveform: jax.Array, sample_rate: int, window: int, hop: int, fft_size: int, num_bands: int) -> jax.Array:
    """Power [..., T, bands]; column t is centred on sample t * hop."""
    padded = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(window // 2, window // 2)])
    starts = np.arange(0, waveform.shape[-1], hop)
    segments = padded[..., starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    return jnp.abs(jnp.fft.rfft(segments, fft_size)) ** 2 @ mel_filters(sample_rate, fft_size, num_bands)


@functools.partial(jax.jit, static_argnames=("sample_rate", "hop_length"))
def log_mel(waveform: jax.Array, sample_rate: int = 24000, hop_length: int = 320) -> jax.Array:
    """Log-mel spectrogram float32 [..., samples / hop_length, 64] of a waveform [..., samples]."""
    return jnp.log(mel_power(waveform, sample_rate, 1024, hop_length, 1024, 64) + 1e-4)


class OnsetDetector:
    """Finds the hits of known one-shots in clips, by their spectrograms, so whatever happened to their phase.

    Args:
      one_shots: float32 [N, samples], the sounds to be found, each with its attack at its first sample.
      sample_rate: in hertz.
      hop_length: samples per frame, a multiple of 4.
    """

    def __init__(self, one_shots: np.ndarray, sample_rate: int, hop_length: int):
        self.num_drums = len(one_shots)
        self.hop_length = hop_length
        self._geometry = (sample_rate, hop_length // _HOPS_PER_FRAME)
        templates = self._make_templates(np.asarray(one_shots, np.float32))
        level = templates.mean(axis=(1, 2))
        self._weights = ((level.max() + 1e-9) / (level + 0.01 * level.max() + 1e-9)) ** _WHITENING
        self._templates = templates * self._weights[:, None, None]

    def __call__(self, waveforms: np.ndarray) -> list[list[Onset]]:
        """The onsets in each clip, in order of time.

        Hits in the second half of a clip's last frame are not heard, and in its first frame they are hard to tell from
        tails of hits before it: compare from frame 1 on. Tails alone give no onset; nor does a hit that is 0.4 times as
        strong as another within two frames, or less.

        Args:
          waveforms: float32 [B, F * H]; one compilation for each F, none for each B.
        """
        waveforms = np.asarray(waveforms, np.float32)
        found: list[list[Onset]] = []
        for start in range(0, len(waveforms), _CHUNK):
            chunk = waveforms[start : start + _CHUNK]
            padded = np.pad(chunk, ((0, _CHUNK - len(chunk)), (0, 0)))
            activations = np.asarray(_activations(padded, self._templates, self._weights, *self._geometry))
            found += [self._pick_peaks(clip) for clip in activations[: len(chunk)]]
        return found

    def _make_templates(self, one_shots: np.ndarray) -> np.ndarray:
        """float32 [bands, N, columns]: magnitudes of each one-shot, averaged over where it falls between two hops."""
        sample_rate, hop = self._geometry
        num_drums, length = one_shots.shape
        placed = np.zeros((num_drums, _PHASES, length + (2 * _LEAD_HOPS + 2) * hop), np.float32)
        for phase in range(_PHASES):
            start = _LEAD_HOPS * hop + int((phase + 0.5) * hop / _PHASES) - hop // 2
            placed[:, phase, start : start + length] = one_shots
        columns = min(_MAX_TEMPLATE_FRAMES * _HOPS_PER_FRAME, -(-placed.shape[-1] // hop))
        templates = np.asarray(_magnitudes(placed[..., : columns * hop], sample_rate, hop)).mean(axis=1)
        return templates.transpose(2, 0, 1)

    def _pick_peaks(self, activations: np.ndarray) -> list[Onset]:
        """Peaks of the smoothed activations [N, hops] of one clip; the strongest silence their neighbours."""
        onsets = []
        for drum, activation in enumerate(activations):
            gain = np.convolve(activation, np.ones(2 * _SMOOTHING_HOPS + 1), "same")
            while gain[peak := int(gain.argmax())] > _MIN_GAIN:
                near = np.arange(max(0, peak - _SMOOTHING_HOPS), min(len(gain), peak + _SMOOTHING_HOPS + 1))
                centre = activation[near] @ near / activation[near].sum()
                onsets.append(Onset(float(centre / _HOPS_PER_FRAME), drum, float(gain[peak])))
                gain[max(0, peak - _MIN_DISTANCE_HOPS) : peak + _MIN_DISTANCE_HOPS + 1] = 0
        reach = _MIN_DISTANCE_HOPS / _HOPS_PER_FRAME
        return sorted(
            onset
            for onset in onsets
            if all(onset.gain >= _MIN_SHARE * o.gain for o in onsets if abs(o.frame - onset.frame) < reach)
        )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _magnitudes(waveform: jax.Array, sample_rate: int, hop: int) -> jax.Array:
    window = _WINDOW_HOPS * hop
    fft_size = 1 << (2 * window - 1).bit_length() - 1
    return jnp.sqrt(mel_power(waveform, sample_rate, window, hop, fft_size, _NUM_BANDS))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _activations(
    waveform: jax.Array, templates: jax.Array, weights: jax.Array, sample_rate: int, hop: int
) -> jax.Array:
    """Gain of each one-shot starting at each hop, [B, N, hops], from waveforms [B, samples].

    Onsets before the clip are solved for as well, so that they and no false hits explain the tails it starts with;
    the columns whose windows reach beyond the clip, before it or after it, are not looked at. (Where a clip is cut
    off within a ringing kick, such a window holds a step, whose spectrum is that of an attack.)

    Time and clips share one axis, time first: a shift by `l` hops is then a shift by `l * B` of a flat array, and each
    iteration is two matrix products and two reshapes.
    """
    bands, num_drums, width = templates.shape
    B = waveform.shape[0]
    unseen = _WINDOW_HOPS // 2
    magnitudes = _magnitudes(waveform, sample_rate, hop)
    observed = magnitudes[:, unseen : magnitudes.shape[1] - unseen + 1]
    T = observed.shape[1]
    starts = T + width - 1  # onset index i is hop i - (width - 1) + unseen + _LEAD_HOPS
    target = (observed * weights).transpose(2, 1, 0).reshape(bands, T * B) + _FLOOR
    dictionary = templates.reshape(bands, num_drums * width)

    def unfold(gains: jax.Array) -> jax.Array:
        """[N, starts * B] -> [N * width, T * B]: the activation that plays column l of a template at time t."""
        row = jnp.pad(gains, ((0, 0), (0, B)))
        rows = jnp.broadcast_to(row[:, None], (num_drums, width, row.shape[1])).reshape(num_drums, -1)
        skewed = rows[:, : width * starts * B].reshape(num_drums, width, starts * B)
        return skewed[:, :, (width - 1) * B :].reshape(num_drums * width, T * B)

    def fold(columns: jax.Array) -> jax.Array:
        """The transpose of `unfold`."""
        padded = jnp.pad(columns.reshape(num_drums, width, T * B), ((0, 0), (0, 0), ((width - 1) * B, 0)))
        flat = jnp.pad(padded.reshape(num_drums, -1), ((0, 0), (0, width * B)))
        return flat.reshape(num_drums, width, (starts + 1) * B)[:, :, : starts * B].sum(axis=1)

    mass = dictionary.sum(axis=0)
    sparsity = _SPARSITY * templates.sum(axis=(0, 2))[:, None]
    scale = fold(jnp.broadcast_to(mass[:, None], (len(mass), T * B))) + sparsity

    def update(_, gains: jax.Array) -> jax.Array:
        ratio = target / (dictionary @ unfold(gains) + _FLOOR)
        return gains * (fold(dictionary.T @ ratio) / scale) ** _OVERRELAXATION

    gains = jax.lax.fori_loop(0, _ITERATIONS, update, jnp.full((num_drums, starts * B), 0.05))
    first = width - 1 - unseen - _LEAD_HOPS
    # Too short a template cannot start before the clip: then the first hops have no activation.
    timeline = jnp.pad(gains.reshape(num_drums, starts, B), ((0, 0), (max(0, -first), 0), (0, 0)))[:, max(0, first) :]
    return timeline.transpose(2, 0, 1)


@dataclass(frozen=True)
class Matching:
    """How two sets of onsets agree."""

    true_positives: int
    num_reference: int
    num_estimate: int
    timing_errors: tuple[float, ...]
    """Estimate minus reference of each matched pair, in frames."""

    @property
    def precision(self) -> float:
        return self.true_positives / self.num_estimate if self.num_estimate else 1.0

    @property
    def recall(self) -> float:
        return self.true_positives / self.num_reference if self.num_reference else 1.0

    @property
    def f1(self) -> float:
        """2 TP / (references + estimates); 1 where there is nothing to find and nothing was found."""
        total = self.num_reference + self.num_estimate
        return 2 * self.true_positives / total if total else 1.0


def match_onsets(
    reference: Sequence[Sequence[Onset]],
    estimate: Sequence[Sequence[Onset]],
    tolerance_frames: int = 1,
    start: float = 0.0,
    stop: float = float("inf"),
) -> Matching:
    """Match onsets one to one, clip by clip and drum by drum, as many as can be.

    Two onsets match if the frames they fall in differ by `tolerance_frames` at most. Only what falls into
    [start, stop) frames counts; a pair counts if one of the two does, so an onset moved across the edge of the scored
    range is no error. Swapping the arguments gives the same F1.
    """
    pairs: list[tuple[Onset, Onset]] = []
    missed = false = 0

    def scored(onset: Onset) -> bool:
        return start <= onset.frame < stop

    for reference_clip, estimate_clip in zip(reference, estimate, strict=True):
        by_drum: dict[int, tuple[list[Onset], list[Onset]]] = defaultdict(lambda: ([], []))
        for side, onset in itertools.chain(((0, o) for o in reference_clip), ((1, o) for o in estimate_clip)):
            by_drum[onset.drum][side].append(onset)
        for references, estimates in by_drum.values():
            matched, lone_references, lone_estimates = _match_sorted(references, estimates, tolerance_frames)
            pairs += [pair for pair in matched if scored(pair[0]) or scored(pair[1])]
            missed += sum(map(scored, lone_references))
            false += sum(map(scored, lone_estimates))
    errors = tuple(found.frame - true.frame for true, found in pairs)
    return Matching(len(pairs), len(pairs) + missed, len(pairs) + false, errors)


def _match_sorted(
    references: list[Onset], estimates: list[Onset], tolerance: int
) -> tuple[list[tuple[Onset, Onset]], list[Onset], list[Onset]]:
    """Pairs, lone references, lone estimates. On a line, pairing the earliest that match finds the most pairs."""
    references, estimates = sorted(references), sorted(estimates)
    pairs, lone_references, lone_estimates = [], [], []
    i = j = 0
    while i < len(references) and j < len(estimates):
        difference = _frame_of(estimates[j]) - _frame_of(references[i])
        if abs(difference) <= tolerance:
            pairs.append((references[i], estimates[j]))
            i, j = i + 1, j + 1
        elif difference > 0:
            lone_references.append(references[i])
            i += 1
        else:
            lone_estimates.append(estimates[j])
            j += 1
    return pairs, lone_references + references[i:], lone_estimates + estimates[j:]


def _frame_of(onset: Onset) -> int:
    return int(np.floor(onset.frame + 1e-6))
