"""What a run sounds like: the sections with players, waveforms and presses on one time axis."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from melodjinn_jax.evaluation.report.files import Clip, RunFiles
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, percent, tag
from melodjinn_jax.evaluation.report.plots import ATTACK, NEUTRAL, Mark, roll, waveform


def player(clip: Clip, title: str) -> Html:
    """The page's script turns it into a button; without the script the browser's own controls are there."""
    return tag("audio", controls="", preload="metadata", src=clip.uri, aria_label=title)


def track(title: str, note: str, clip: Clip | None, plots: Sequence[Html], lanes: Html = NOTHING) -> Html:
    """A row of a figure: what it is and how to hear it, the names of its lanes, the plots over time."""
    sound = player(clip, title) if clip else NOTHING
    return tag(
        "div",
        tag("div", sound, tag("div", tag("h3", title), tag("p", note)), class_="head"),
        tag("div", lanes, class_="lanes"),
        tag("div", *plots, class_="plot"),
        class_="track",
    )


def shaded(frames: float, prompt_frames: float) -> Html:
    """The part of a plot that was given and not generated."""
    return tag("div", tag("span", "prompt"), class_="prompt", style=f"width:{100 * prompt_frames / frames:.2f}%")


def time_axis(seconds: float) -> Html:
    """Times under the tracks of a figure."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, math.inf) if seconds / step <= 9)
    times = np.arange(0, seconds, step) if math.isfinite(step) else [0]
    labels = [tag("span", f"{time:g} s", style=f"left:{100 * time / seconds:.2f}%") for time in np.round(times, 3)]
    return tag(
        "div", tag("div", class_="head"), tag("div", class_="lanes"), tag("div", *labels, class_="axis"), class_="track"
    )


def lane_names(files: RunFiles, with_noop: bool) -> Html:
    """The names of the keys' lanes, and that of NOOP below them."""
    rows = [(str(key), files.key_name(key), files.key_color(key)) for key in range(1, files.num_keys + 1)]
    rows += [("0", "NOOP", NEUTRAL)] if with_noop else []
    return join([tag("div", tag("b", key), " ", name, class_=f"name {color}", title=name) for key, name, color in rows])


def _frames(files: RunFiles, clip: Clip) -> float:
    return len(clip.waveform) / files.example["hop_length"]


def _seconds(files: RunFiles, frame: float) -> str:
    return f"{frame * files.example['hop_length'] / files.example['sample_rate']:.2f} s"


def hit_marks(files: RunFiles, onsets: Iterable[Sequence[float]]) -> list[Mark]:
    return [
        Mark(frame, files.drum_color(int(drum)), f"{files.drum_name(int(drum))} at {_seconds(files, frame)}")
        for frame, drum, _ in onsets
    ]


def press_marks(files: RunFiles, presses: Iterable[Sequence[int]]) -> list[Mark]:
    return [
        Mark(frame, files.key_color(key), f"{files.key_title(key)}, at {_seconds(files, frame)}", key - 1)
        for frame, key in presses
    ]


def _names(marks: Sequence[Mark]) -> str:
    return ", ".join(mark.name for mark in marks) or "nothing"


def listen(files: RunFiles) -> Html:
    """The performance, and every key alone."""
    performance, presses = files.clips.get("performance"), files.example.get("key_presses", {})
    keys = [key for key in presses if f"key_{key}" in files.clips]
    if performance is None and not keys:
        return NOTHING
    lead = (
        "Every key that the model found by itself, pressed three times after the start of an unseen clip."
        if files.is_music
        else "Nobody told the model what a drum is. It listened, found its own keys, and plays them."
    )
    parts = [heading("Listen", lead)]
    if performance is not None:
        parts.append(_performance(files, performance))
    if keys:
        hint = f"Each key alone. The number keys 1 to {min(9, len(keys))} of the keyboard play them too."
        pads = [_pad(files, int(key), presses[key], files.clips[f"key_{key}"]) for key in keys]
        parts += [tag("p", hint, class_="hint"), tag("div", *pads, class_="pads")]
    return join(parts)


def _performance(files: RunFiles, clip: Clip) -> Html:
    marks = press_marks(files, files.example.get("performance_presses", []))
    note = f"{len(marks)} key presses, {clip.seconds:.1f} s, from silence"
    plots = _pressed(files, clip, marks, f"{len(marks)} key presses over time")
    row = track("A groove", note, clip, plots, lane_names(files, with_noop=False))
    return tag("div", row, time_axis(clip.seconds), class_="figure")


def _pressed(files: RunFiles, clip: Clip, marks: Sequence[Mark], label: str) -> list[Html]:
    """Presses, and the waveform that they made, in their colours."""
    frames = _frames(files, clip)
    sound = waveform(clip.waveform, _peak([clip]), marks, frames, f"waveform, {clip.seconds:.1f} seconds")
    return [roll(files.num_keys, marks, frames, label), sound]


def _pad(files: RunFiles, key: int, presses: Iterable[Sequence[int]], clip: Clip) -> Html:
    """A key alone: its name, its sound, how often a press of it does the same."""
    name, marks = files.key_name(key), press_marks(files, presses)
    label = f"waveform of key {key}, pressed {len(marks)} times"
    plot = waveform(clip.waveform, _peak([clip]), marks, _frames(files, clip), label)
    greedy, sampled = files.results.get("keys", {}), files.results.get("sampled", {}).get("keys", {})
    scores = [
        f"{percent(scores[str(key)].get('accuracy'))} {kind}"
        for kind, scores in (("greedy", greedy), ("sampled", sampled))
        if str(key) in scores
    ]
    return tag(
        "div",
        tag("div", player(clip, files.key_title(key)), tag("b", str(key)), tag("h3", name), class_="head"),
        tag("div", plot, class_="plot"),
        tag("p", ", ".join(scores)),
        class_=f"pad track {files.key_color(key)}",
        data_key=key,
    )


def _peak(clips: Iterable[Clip]) -> float:
    """The amplitude that fills the height of a plot; not so little that near silence would look loud."""
    return max([0.05, *(float(np.abs(clip.waveform).max()) for clip in clips)])


def one_clip(files: RunFiles) -> Html:
    """A held-out clip, its actions, and what the model makes of them."""
    example, clips = files.example, files.clips
    if not {"truth", "generation", "noop"} <= clips.keys():
        return NOTHING
    frames, scale = _frames(files, clips["truth"]), _peak(clips[name] for name in ("truth", "generation", "noop"))

    def row(title: str, note: str, name: str, onsets: str, prompt: Sequence[Html] = (), attack: float = ATTACK) -> Html:
        marks = hit_marks(files, example.get(onsets, []))
        plot = waveform(clips[name].waveform, scale, marks, frames, f"{title}: {_names(marks)}", attack)
        return track(title, note, clips[name], [*prompt, plot])

    prompt, noop_prompt = ([shaded(frames, example[name])] for name in ("prompt_frames", "noop_prompt_frames"))
    with_hits = "" if files.is_music else ", with its true hits"
    rows = [
        row("The recording", f"Unseen in training{with_hits}", "truth", "true_onsets", attack=0),
        _actions(files, frames),
        row("Actions played", "Generated from prompt and actions", "generation", "follow_onsets", prompt),
        row("Left alone", "The same prompt, then only NOOP", "noop", "noop_onsets", noop_prompt),
        time_axis(clips["truth"].seconds),
    ]
    colors = "" if files.is_music else "Colours are drums; "
    lead = f"One clip that training never saw, on one time axis. {colors}The shaded start is the prompt."
    slow = tag("label", tag("input", type="checkbox"), "Play at half speed", class_="slow")
    return join([heading("One clip, heard and played back", lead), tag("div", *rows, class_="figure"), slow])


def _actions(files: RunFiles, frames: float) -> Html:
    marks = _action_marks(files)
    label = f"actions: {_names([mark for mark in marks if mark.color != NEUTRAL])}"
    plot = roll(files.num_keys + 1, marks, frames, label)
    note = "The latent action of every moment" + ("" if files.is_music else ", NOOP between hits")
    return track("Actions heard", note, None, [plot], lane_names(files, with_noop=True))


def _action_marks(files: RunFiles) -> list[Mark]:
    """A dot in the middle of the block that each action leads into: action i explains block i + 1."""
    stride = files.example["action_stride"]
    marks = []
    for index, key in enumerate(files.example["actions"]):
        frame = (index + 1.5) * stride
        lane = key - 1 if key else files.num_keys
        name = files.key_name(key) or files.key_title(key)
        marks.append(Mark(frame, files.key_color(key), f"{name} at {_seconds(files, frame)}", lane))
    return marks


def control(files: RunFiles) -> Html:
    """A clip of the control test: irregular presses from silence."""
    clip = files.clips.get("control")
    if clip is None:
        return NOTHING
    marks = press_marks(files, files.example["control_presses"])
    prompt = shaded(_frames(files, clip), files.example["prompt_frames"])
    plots = [prompt, *_pressed(files, clip, marks, f"presses: {_names(marks)}")]
    row = track("Pressed from silence", "One clip of the control test", clip, plots, lane_names(files, with_noop=False))
    lead = "No recording here: silence, and keys pressed at irregular moments. A press should sound its drum at once."
    return join([heading("Press and hear", lead), tag("div", row, time_axis(clip.seconds), class_="figure")])
