"""What a run sounds like: the clips of `samples/`, and beside them `example.json`, which says what happens in each."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from melodjinn_jax.codecs import Codec
from melodjinn_jax.config import DRUM_NAMES
from melodjinn_jax.data.audio import write_wav
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.live.generator import generate
from melodjinn_jax.training.run import Run

EXAMPLE = "example.json"
Presses = list[tuple[int, int]]
"""(frame, key) of each press."""

PERFORMANCE_SECONDS = 8.0
# Sixteenth notes at about 120 beats per minute.
STEP_SECONDS = 0.12
STEPS_PER_BAR = 16
# Steps of a bar, for the keys in order of importance: kick, snare, hat, clap, tom. No two fall together, for a person
# presses one key at a time.
GROOVE = ((0, 8, 11), (4, 12), (2, 6, 10, 14), (7,), (13, 15))
FILL_STEPS = (1, 3, 5, 9)
# One key alone: this many presses, this far apart, and as long for the last to fade.
KEY_PRESSES, KEY_GAP_SECONDS = 3, 0.4
# After a prompt there is music under the presses, so what they do takes longer to hear.
MUSIC_KEY_GAP_SECONDS = 1.0
# Silence before the first press.
SILENT_SECONDS = 0.1


def write_samples(run: Run, example: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the clips of one evaluated run, and drop those of an earlier evaluation.

    Args:
      run: the run.
      example: one held-out clip as `Evaluator.run` returns it: waveforms float32 [samples], onsets, actions.
      results: what `eval.json` holds.

    Raises:
      UserError: the folder cannot be written.
    """
    waveforms = {
        "truth": example["truth"],
        "generation": example["follow"],
        "noop": example["noop"],
        "control": example["control"],
    }
    drum_names = [None if drum is None else results["drums"][drum] for drum in results["drum_of_key"]]
    played, key_presses, performance = play_keys(run, drum_names)
    description = {
        **{name: example[name] for name in ("clip", "prompt_frames", "noop_prompt_frames", "actions")},
        **{name: _onsets(example[name]) for name in ("true_onsets", "follow_onsets", "noop_onsets")},
        "control_presses": [[int(frame), int(key)] for frame, key in example["control_presses"]],
        "key_presses": key_presses,
        "performance_presses": performance,
    }
    _write(run, waveforms | played, description)


def write_music_samples(run: Run, example: dict[str, Any], results: dict[str, Any]) -> None:
    """The same of music that nobody has labelled: a clip, what was made of it, and every key pressed after its prompt.

    Args:
      run: the run.
      example: one held-out clip as `evaluate_music` returns it.
      results: what `eval.json` holds.

    Raises:
      UserError: the folder cannot be written.
    """
    waveforms = {"truth": example["truth"], "generation": example["follow"], "noop": example["noop"]}
    temperature = results["sampled"]["temperature"]
    played, key_presses = press_keys(run, example["prompt"], example["actions"], temperature)
    description = {
        **{name: example[name] for name in ("clip", "prompt_frames", "actions")},
        "noop_prompt_frames": example["prompt_frames"],
        "key_presses": key_presses,
    }
    _write(run, waveforms | played, description)


def press_keys(
    run: Run, prompt: np.ndarray, actions: Sequence[int], temperature: float
) -> tuple[dict[str, np.ndarray], dict[str, Presses]]:
    """Press every key alone, several times, after a prompt.

    Args:
      run: the run.
      prompt: int [F, Q].
      actions: of the clip that the prompt begins.
      temperature: of the sampling.

    Returns:
      waveforms float32 [samples] by name (`key_1`, ...), the prompt included, and each key's presses by its number.
    """
    num_keys, stride, codec = run.action_space.num_keys, run.action_space.stride, run.codec
    if not num_keys:
        return {}, {}
    start, gap = len(prompt), _blocks(MUSIC_KEY_GAP_SECONDS * codec.sample_rate / codec.hop_length, stride)
    frames = start + (KEY_PRESSES + 1) * gap
    presses = {
        key: [(start + (press + 1) * gap, key) for press in range(KEY_PRESSES)] for key in range(1, num_keys + 1)
    }
    keys = np.zeros((num_keys, frames // stride - 1), np.int64)
    keys[:, : start // stride - 1] = actions[: start // stride - 1]
    for key, own in presses.items():
        keys[key - 1, [frame // stride - 1 for frame, _ in own]] = key
    given = np.zeros((num_keys, frames, codec.num_codebooks), np.int32)
    given[:, :start] = prompt
    codes = generate(run.models, run.played_dynamics, given, start, keys, temperature=temperature)
    sound = np.asarray(codec.decode(codes))
    return {f"key_{key}": sound[key - 1] for key in presses}, {str(key): own for key, own in presses.items()}


def _write(run: Run, waveforms: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Write clips and what happens in them, in place of those of an earlier evaluation."""
    folder, rate = run.workdir.samples, run.codec.sample_rate
    _clear(run)
    for name, waveform in waveforms.items():
        write_wav(folder / f"{name}.wav", waveform, rate)
    of_all = {"sample_rate": rate, "hop_length": run.codec.hop_length, "action_stride": run.action_space.stride}
    write_atomically(folder / EXAMPLE, (json.dumps(of_all | description) + "\n").encode())


def play_keys(run: Run, drum_names: Sequence[str | None]) -> tuple[dict[str, np.ndarray], dict[str, Presses], Presses]:
    """Press every key alone, and all of them as a groove, from silence.

    Args:
      run: the run.
      drum_names: for keys 1.., the drum that each plays, if it is known.

    Returns:
      waveforms float32 [samples] by name (`key_1`, ..., `performance`), the presses of each key alone by its number,
      and the presses of the performance.
    """
    num_keys, stride, codec = len(drum_names), run.action_space.stride, run.codec
    if not num_keys:
        return {}, {}, []
    frame_rate = codec.sample_rate / codec.hop_length
    start = _blocks(SILENT_SECONDS * frame_rate, stride)
    gap = _blocks(KEY_GAP_SECONDS * frame_rate, stride)
    key_frames = start + KEY_PRESSES * gap
    alone = {key: [(start + press * gap, key) for press in range(KEY_PRESSES)] for key in range(1, num_keys + 1)}
    groove, frames = plan_groove(drum_names, start, frame_rate, stride)
    # One batch, though single keys need fewer frames: the codec would have to be compiled for a second length.
    frames = max(frames, key_frames)
    presses = [*alone.values(), groove]
    actions = np.zeros((len(presses), frames // stride - 1), np.int64)
    for row, row_presses in enumerate(presses):
        for frame, key in row_presses:
            actions[row, frame // stride - 1] = key
    prompt = np.broadcast_to(_silence(codec, frames), (len(presses), frames, codec.num_codebooks))
    waveforms = np.asarray(codec.decode(generate(run.models, run.played_dynamics, prompt, start, actions)))
    clips = {f"key_{key}": waveforms[key - 1, : key_frames * codec.hop_length] for key in alone}
    return {**clips, "performance": waveforms[-1]}, {str(key): value for key, value in alone.items()}, groove


def plan_groove(drum_names: Sequence[str | None], start: int, frame_rate: float, stride: int) -> tuple[Presses, int]:
    """A rhythm over all keys: the kick on the beat, the snare on 2 and 4, hats between, other keys where there is room.

    Args:
      drum_names: for keys 1.., the drum that each plays, if it is known; the others take the parts that are left.
      start: frame of the first beat.
      frame_rate: frames per second.
      stride: frames per action.

    Returns:
      the presses in order of time, one per block of `stride` frames at most, and the frames of the whole.
    """
    step = _blocks(STEP_SECONDS * frame_rate, stride)
    order = sorted(range(1, len(drum_names) + 1), key=lambda key: (_part(drum_names[key - 1]), key))
    parts, extra = order[: len(GROOVE)], order[len(GROOVE) :]
    # Every key has its turn, however long that takes.
    bars = max(
        1, round(PERFORMANCE_SECONDS * frame_rate / (step * STEPS_PER_BAR)), math.ceil(len(extra) / len(FILL_STEPS))
    )
    bar_beats = [(at, key) for key, steps in zip(parts, GROOVE, strict=False) for at in steps]
    beats = [(bar * STEPS_PER_BAR + at, key) for bar in range(bars) for at, key in bar_beats]
    if extra:
        free = [bar * STEPS_PER_BAR + at for bar in range(bars) for at in FILL_STEPS]
        beats += [(at, extra[turn % len(extra)]) for turn, at in enumerate(free)]
    presses = [(start + at * step, key) for at, key in sorted(beats)]
    # A beat more, so that the last hit can be heard to its end.
    return presses, start + (bars * STEPS_PER_BAR + STEPS_PER_BAR // 4) * step


def _part(drum_name: str | None) -> int:
    """Which part of the groove a drum plays best, by its name."""
    name = (drum_name or "").lower()
    return next((part for part, drum in enumerate(DRUM_NAMES) if drum in name), len(DRUM_NAMES))


def _blocks(frames: float, stride: int) -> int:
    """The nearest number of frames that makes whole blocks, at least one."""
    return max(1, round(frames / stride)) * stride


def _silence(codec: Codec, frames: int) -> np.ndarray:
    """The codes of silence, [1, F, Q]."""
    return np.asarray(codec.encode(np.zeros((1, frames * codec.hop_length), np.float32)))


def _onsets(onsets: Sequence[tuple[float, int, float]]) -> list[list[float]]:
    return [[round(float(frame), 3), int(drum), round(float(gain), 3)] for frame, drum, gain in onsets]


def _clear(run: Run) -> None:
    """Make the folder, and remove what an earlier evaluation wrote there, which may have had more keys."""
    folder = run.workdir.samples
    try:
        folder.mkdir(exist_ok=True)
        for file in [*folder.glob("key_*.wav"), folder / "performance.wav", folder / EXAMPLE]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
