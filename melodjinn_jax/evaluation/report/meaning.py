"""What the actions mean: the measures that need no labels, each with its interval."""

from dataclasses import dataclass
from typing import Any

from melodjinn_jax.evaluation.report.files import RunFiles
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, tag


@dataclass(frozen=True)
class Row:
    """How a measure is shown."""

    name: str
    title: str
    meaning: str
    on_scale: bool = True
    """Whether it lies on the scale from 0 to 1, and is drawn there."""
    chance: str = ""
    """The measure that holds its chance level; empty: 0."""


GROUPS: dict[str, tuple[Row, ...]] = {
    "Do actions tell the future?": (
        Row("cross_entropy_gain_over_none", "Over no actions", "nats per token that the true actions save", False),
        Row("cross_entropy_gain_over_shuffled", "Over shuffled", "the same against shuffled ones: flatters", False),
    ),
    "Do they control the sound?": (
        Row("control_onsets", "Onsets", "correlation with the music, own actions less shuffled"),
        Row("control_envelope", "Loudness", "the same of the level"),
        Row("control_spectrum", "Spectrum", "the same of 64 mel bands, each about its mean"),
        Row("control_brightness", "Brightness", "the same of the centre of the spectrum"),
        Row("control_onset_f1", "Onsets found", "F1 of onsets within 50 ms, own actions less shuffled"),
        Row("control_chroma", "Pitch classes", "cosine of the chroma, own actions less shuffled"),
        Row("control_log_mel", "Spectral distance", "decibels nearer to the music than under shuffled actions", False),
        Row("free_running_distance_ratio", "Free running", "log-mel distance over that of teacher forcing", False),
    ),
    "Does a key do one thing?": (
        Row("recovery", "Recovery", "pressed keys that the LAM hears again, keys weighing the same", True,
            "recovery_chance"),
        Row("effect_identification", "Told apart", "single presses whose key is told by their effect", True,
            "effect_identification_chance"),
        Row("effect_consistency", "Consistency", "share of the keys' differing effects that is the same everywhere"),
        Row("effect_f_ratio", "F-ratio", "the same as a ratio of variances; 1: keys do nothing of their own", False),
    ),
    "How much is there to do?": (
        Row("decisions_per_second", "Decisions", "keys begun, a second", False),
        Row("bits_per_second", "Bits", "a second, if every action were drawn anew: an upper bound", False),
        Row("bits_per_second_after_last", "Bits, the last known", "a second, given the action before: a closer bound",
            False),
        Row("leakage", "Leakage", "of what stands behind a cut, handed over by the action: near 1 is a compressor"),
    ),
    "Does it last?": (
        Row("long_level_difference_db", "Level", "decibels, 10 s on end less the held-out music", False),
        Row("long_silence_difference", "Silence", "share of silent frames, less that of the held-out music", False),
        Row("long_drift_db", "Drift", "decibels, last quarter less first", False),
    ),
}  # fmt: skip


def meaning(files: RunFiles) -> Html:
    """Every measure of `meaning` in groups."""
    measures = files.results.get("meaning")
    if not measures:
        return NOTHING
    tracks, clips = measures.get("tracks"), measures.get("clips")
    lead = (
        f"Measured without labels on {clips} held-out clips of {tracks} tracks. Lines are 95 % intervals "
        "(bootstrap over tracks), the mark on the scale is chance."
    )
    figures = []
    for title, rows in GROUPS.items():
        shown = [_row(row, measures) for row in rows if row.name in measures]
        if shown:
            figures.append(tag("figure", tag("figcaption", tag("h3", title)), *shown, class_="measures"))
    return join([heading("What the actions mean", lead), tag("div", *figures, class_="meaning-groups")])


def _row(row: Row, measures: dict[str, Any]) -> Html:
    found = measures[row.name]
    chance = measures.get(row.chance, 0.0)
    level = chance["value"] if isinstance(chance, dict) else chance
    note = row.meaning if not row.chance else f"{row.meaning}; chance {shown(level)}"
    plot = interval(found, level, row.title) if row.on_scale else NOTHING
    return tag(
        "div",
        tag("div", tag("b", row.title), tag("span", with_interval(found)), class_="what"),
        plot,
        tag("p", note),
        class_="measure",
    )


def shown(value: float | None) -> str:
    """A number short enough for a table; n/a where it is not defined."""
    if value is None:
        return "n/a"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0, for there is no use in -0.00


def with_interval(found: dict[str, float | None]) -> str:
    """`value [low, high]`."""
    if found["value"] is None:
        return "not defined"
    return f"{shown(found['value'])} [{shown(found['low'])}, {shown(found['high'])}]"


def interval(found: dict[str, float | None], mark: float | None, label: str, low: float = 0, high: float = 1) -> Html:
    """A value with its interval on a scale from `low` to `high`, and a mark on it; what lies outside is cut off."""
    value, least, most = found["value"], found["low"], found["high"]
    if value is None or least is None or most is None:
        return NOTHING

    def at(number: float) -> str:
        return f"{100 * min(max((number - low) / (high - low), 0), 1):.2f}%"

    width = f"calc({at(most)} - {at(least)})"
    parts = [tag("i", class_="mark", style=f"left:{at(mark)}")] if mark is not None else []
    parts += [tag("i", class_="span", style=f"left:{at(least)};width:{width}")]
    parts += [tag("i", class_="value-dot", style=f"left:{at(value)}")]
    return tag("div", *parts, class_="interval", role="img", aria_label=f"{label}: {with_interval(found)}")
