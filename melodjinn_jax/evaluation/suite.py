"""The evaluation of a trained drum world: what `eval.json` holds and how each number is found."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from melodjinn_jax.codecs import Codec
from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.evaluation.control import Press, plan_presses, score_presses, worst_key
from melodjinn_jax.evaluation.effects import Clips
from melodjinn_jax.evaluation.instrument import TrainedInstrument
from melodjinn_jax.evaluation.labels import LabelScores, score_labels
from melodjinn_jax.evaluation.meaning import measure_meaning
from melodjinn_jax.evaluation.measures import FULL_SCALE, cross_entropies, logmel_correlation, real_time_factor
from melodjinn_jax.evaluation.onsets import Onset, OnsetDetector, match_onsets
from melodjinn_jax.live.generator import generate
from melodjinn_jax.models.dynamics import strengthen
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS
from melodjinn_jax.training.state import Models, State
from melodjinn_jax.training.step import encode_codes, encode_keys

# A hit this close to the end of a clip may be cut before it can be heard.
END_MARGIN = 3
SUCCESS_THRESHOLD = 0.95
SUCCESS_KEYS = ("generation_onset_f1", "control_accuracy", "all_keys_accuracy", "noop_clean_fraction")


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips with their ground truth."""

    waveform: np.ndarray
    """int16 [B, F, H]."""
    codes: np.ndarray
    """uint16 [B, F, Q]."""
    hits: list[list[Onset]]


@dataclass(frozen=True)
class Scenes:
    """Everything that is generated, as one batch: four scenes of clips, one after the other.

    follow: a held-out clip's prompt and its own actions; noop: the prompt, then nothing; control: silence, then
    drums pressed through their keys; keys: the prompt, then every key.
    """

    prompt: np.ndarray
    prompt_frames: np.ndarray
    actions: np.ndarray
    control: list[Press]
    keys: list[Press]
    clips: int
    """Clips in each of the first three scenes; the rest are the fourth's."""


class Evaluator:
    """Measures one model on held-out clips of the drum world."""

    def __init__(self, models: Models, state: State, codec: Codec, detector: OnsetDetector, config: EvaluationConfig):
        self.models, self.state, self.codec, self.detector, self.config = models, state, codec, detector, config
        self.num_drums = detector.num_drums
        self.num_keys = int(np.max(state["key_of_code"]))
        self._played = strengthen(state["dynamics"], models.num_codes, config.strength)
        # On the frame grid an action has no excuse to come late; elsewhere a hit may start as its frame ends.
        self.tolerance = 1 if models.config.data.offsets else 0

    def run(self, held_out: HeldOut) -> tuple[dict[str, Any], dict[str, Any]]:
        """All measures, and the example that the report shows (waveforms, actions and onsets of one clip)."""
        keys = np.asarray(jax.jit(encode_keys, static_argnums=0)(self.models, self._networks(), held_out.waveform))
        codes = np.asarray(jax.jit(encode_codes, static_argnums=0)(self.models, self._networks(), held_out.waveform))
        events = [[(int(hit.frame), hit.drum) for hit in hits] for hits in held_out.hits]
        labels = score_labels(keys, events, self.num_drums, self.num_keys, self.tolerance)
        scenes = self._plan(held_out, keys, labels)
        measures: dict[str, Any] = {
            "num_actions": len(np.unique(codes)),
            "num_keys": self.num_keys,
            "onset_accuracy": labels.onset_accuracy,
            "noop_precision": labels.noop_precision,
            "noop_recall": labels.noop_recall,
            "action_nmi": labels.action_nmi,
            "drum_of_key": labels.drum_of_key,
            "confusion": labels.confusion.tolist(),
            **self._instruments(held_out),
            **cross_entropies(self.models, self.state, held_out.codes, keys),
        }
        greedy, example = self._generate_and_score(held_out, scenes, labels, 0.0)
        sampled, _ = self._generate_and_score(held_out, scenes, labels, self.config.temperature)
        measures |= greedy
        measures["sampled"] = {"temperature": self.config.temperature, **sampled}
        measures["meaning"] = self._meaning(held_out, keys)
        measures["generation_real_time_factor"] = real_time_factor(self.models, self.state, self.codec)
        measures["success"] = self._succeeded(measures)
        return measures, {**example, "actions": keys[example["clip"]].tolist()}

    def _meaning(self, held_out: HeldOut, keys: np.ndarray) -> dict[str, Any]:
        """What can be measured without ground truth; every clip is a world of its own, and so a track."""
        B = len(keys)
        sound = held_out.waveform.reshape(B, -1) / FULL_SCALE
        clips = Clips(sound, held_out.codes.astype(np.int32), keys, np.arange(B))
        instrument = TrainedInstrument(self.models, self.state, self.codec, self.num_keys, self.config.strength)
        config = self.config
        return measure_meaning(instrument, clips, config.prompt_frames, config.temperature, config.takes)[0]

    def _networks(self) -> State:
        return {name: self.state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS)}

    def _succeeded(self, measures: dict[str, Any]) -> bool:
        reached = all(
            scores[name] >= SUCCESS_THRESHOLD for scores in (measures, measures["sampled"]) for name in SUCCESS_KEYS
        )
        on_grid = self.tolerance > 0 or min(measures["onset_accuracy"], measures["noop_recall"]) > 0.98
        return bool(reached and on_grid and measures["num_keys"] == self.num_drums)

    def _instruments(self, held_out: HeldOut) -> dict[str, float]:
        """The detector itself, on the truth and through the codec."""
        B, F, _ = held_out.codes.shape
        truth = held_out.waveform.reshape(B, -1) / FULL_SCALE
        decoded = self.codec.decode(held_out.codes.astype(np.int32))
        return {
            "detector_onset_f1": self._f1(held_out.hits, self.detector(truth), 1, F - END_MARGIN),
            "codec_onset_f1": self._f1(held_out.hits, self.detector(decoded), 1, F - END_MARGIN),
        }

    def _f1(self, reference: list[list[Onset]], estimate: list[list[Onset]], start: float, stop: float) -> float:
        return match_onsets(reference, estimate, start=start, stop=stop).f1

    def _plan(self, held_out: HeldOut, keys: np.ndarray, labels: LabelScores) -> Scenes:
        config, (B, F, Q) = self.config, held_out.codes.shape
        rng = np.random.default_rng(0)
        key_of_drum = {drum: key + 1 for key, drum in enumerate(labels.drum_of_key) if drum is not None}
        pressed = sorted(key_of_drum.values())
        control_actions, control = plan_presses(pressed, B, F, config.prompt_frames, rng)
        # Some three presses fit in a clip; the all-keys test wants its number for each key.
        key_clips = max(B, -(-config.presses_per_key * self.num_keys // 3))
        key_actions, key_presses = plan_presses(
            list(range(1, self.num_keys + 1)), key_clips, F, config.prompt_frames, rng
        )
        looped = self.models.config.data.rhythm == "loop"
        noop_prompt = config.loop_prompt_frames if looped else config.prompt_frames
        noop_actions = np.where(np.arange(F - 1) < noop_prompt - 1, keys, 0)
        rows = np.arange(key_clips) % B
        key_actions[:, : config.prompt_frames - 1] = keys[rows, : config.prompt_frames - 1]
        silence = np.asarray(self.codec.encode(np.zeros((1, F * self.codec.hop_length), np.float32)))
        prompt = [held_out.codes, held_out.codes, np.broadcast_to(silence, (B, F, Q)), held_out.codes[rows]]
        lengths = [config.prompt_frames, noop_prompt, config.prompt_frames, config.prompt_frames]
        return Scenes(
            prompt=np.concatenate(prompt),
            prompt_frames=np.repeat(lengths, [B, B, B, key_clips]),
            actions=np.concatenate([keys, noop_actions, control_actions, key_actions]),
            control=control,
            keys=key_presses,
            clips=B,
        )

    def _generate_and_score(
        self, held_out: HeldOut, scenes: Scenes, labels: LabelScores, temperature: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        codes = generate(
            self.models,
            self._played,
            scenes.prompt,
            scenes.prompt_frames,
            scenes.actions,
            temperature=temperature,
        )
        waveforms = np.asarray(self.codec.decode(codes))
        onsets = self.detector(waveforms)
        B, F, start = scenes.clips, codes.shape[1], self.config.prompt_frames
        generated = slice(start * self.codec.hop_length, None)
        truth = held_out.waveform.reshape(B, -1) / FULL_SCALE
        follow, noop, control, keys = onsets[:B], onsets[B : 2 * B], onsets[2 * B : 3 * B], onsets[3 * B :]
        noop_start = int(scenes.prompt_frames[B])
        pressed = score_presses(scenes.control, control, F, labels.drum_of_key)
        every_key = score_presses(scenes.keys, keys, F, labels.drum_of_key)
        phantom = [[onset for onset in clip if onset.frame > noop_start + 1] for clip in noop]
        measures = {
            "generation_onset_f1": self._f1(held_out.hits, follow, start + 1, F - END_MARGIN),
            "generation_logmel_correlation": logmel_correlation(truth[:, generated], waveforms[:B, generated]),
            "control_accuracy": pressed.accuracy,
            "control_extra_onsets": pressed.extra_onsets,
            "all_keys_accuracy": worst_key(every_key),
            "keys": every_key.by_key,
            "noop_clean_fraction": float(np.mean([not clip for clip in phantom])),
        }
        clip = int(np.argmax([len(hits) for hits in held_out.hits]))
        example = {
            "clip": clip,
            "prompt_frames": start,
            "noop_prompt_frames": noop_start,
            "truth": truth[clip],
            "follow": waveforms[clip],
            "noop": waveforms[B + clip],
            "control": waveforms[2 * B],
            "true_onsets": held_out.hits[clip],
            "follow_onsets": follow[clip],
            "noop_onsets": noop[clip],
            "control_presses": [(press.frame, press.key) for press in scenes.control if press.clip == 0],
        }
        return measures, example
