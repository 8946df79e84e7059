"""The atlas as one offline page: a section for each key, with its effects, its places in the data, and its sound."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import soundfile

from melodjinn_jax.data.audio import to_int16
from melodjinn_jax.evaluation.atlas import Atlas, Excerpt, KeyCard
from melodjinn_jax.evaluation.effects import TIMES
from melodjinn_jax.evaluation.report.files import Clip
from melodjinn_jax.evaluation.report.markup import Html, join, percent, tag
from melodjinn_jax.evaluation.report.meaning import interval, shown, with_interval
from melodjinn_jax.evaluation.report.page import render_page
from melodjinn_jax.evaluation.report.plots import NEUTRAL, NUM_COLORS, Mark, waveform
from melodjinn_jax.evaluation.report.sound import player

# Name, unit, and a change that fills at least half the scale, so that nothing does not look like much.
EFFECTS = {
    "attack": ("Level at once", "dB", 2.0),
    "sustain": ("Level later", "dB", 2.0),
    "onsets": ("Onset", "dB", 2.0),
    "brightness": ("Brightness", "octaves", 0.2),
    "pitch": ("Pitch class", "share", 0.05),
}
SURE = 0.9


def render_atlas(name: str, atlas: Atlas, names: Sequence[str]) -> str:
    """The whole page.

    Args:
      name: of the run.
      atlas: its keys.
      names: of keys 1.., as the person who plays them calls them.
    """
    scales = {
        effect: max([least, *(max(abs(c.effects[effect].low), abs(c.effects[effect].high)) for c in atlas.cards)])
        for effect, (_, _, least) in EFFECTS.items()
    }
    sections = {
        f"key-{card.key}": (f"{card.key} {title}", _card(atlas, card, title, scales))
        for card, title in zip(atlas.cards, names, strict=True)
    }
    alone = [_pad(atlas, excerpt, "", NEUTRAL) for excerpt in atlas.alone]
    lead = "The contexts of all presses on this page, continued with nothing pressed: what every key is compared with."
    sections["alone"] = (
        "Left alone",
        join([_heading("0", "Left alone", NEUTRAL), tag("p", lead, class_="hint"), tag("div", *alone, class_="pads")]),
    )
    footer = (
        "Names stand in key_names.json in the work directory and may be edited there. Intervals are 95 %, by bootstrap "
        "over tracks. Made by Melodjinn; this page needs no network."
    )
    return render_page(f"{name}: Melodjinn key atlas", _header(name, atlas), _tiles(atlas), sections, footer)


def _header(name: str, atlas: Atlas) -> Html:
    count = len(atlas.cards)
    facts = [
        f"{count} key{'s' if count > 1 else ''} beside NOOP",
        f"each pressed in {atlas.contexts} held-out contexts",
        f"looked for in {atlas.records} training records",
    ]
    lead = "What every key does, measured and to be heard. The number keys 1 to 9 play the first press of each."
    return join(
        [
            tag("p", "Melodjinn key atlas", class_="eyebrow"),
            tag("h1", name),
            tag("p", lead, class_="lead"),
            tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
        ]
    )


def _tiles(atlas: Atlas) -> Html:
    shown_tiles = [("decisions_per_second", "Decisions a second", "Keys begun in the data")]
    if "effect_identification" in atlas.measures:
        chance = percent(atlas.measures["effect_identification_chance"])
        shown_tiles.append(
            ("effect_identification", "Told apart", f"Single presses named by their effect; chance {chance}")
        )
    if "recovery" in atlas.measures:
        chance = shown(atlas.measures["recovery_chance"].value)
        shown_tiles.append(("recovery", "Recovered", f"Presses that the LAM hears as what they were; chance {chance}"))
    tiles = []
    for measure, title, note in shown_tiles:
        found = atlas.measures[measure].to_json()
        value = tag("p", shown(found["value"]), class_="value")
        span = tag("p", with_interval(found).partition(" ")[2], class_="note")
        tiles.append(tag("div", tag("h2", title), value, span, tag("p", note, class_="meaning"), class_="tile"))
    return join(tiles)


def color_of(key: int) -> str:
    return f"c{(key - 1) % NUM_COLORS}" if key else NEUTRAL


def _heading(number: str, title: str, color: str, *extra: Html) -> Html:
    return tag("div", tag("b", number), tag("h2", title), *extra, class_=f"key-title {color}")


def _card(atlas: Atlas, card: KeyCard, title: str, scales: dict[str, float]) -> Html:
    color = color_of(card.key)
    proposal = card.proposal
    said = f"sounds like: {proposal.name}, " if proposal.name != title else ""
    sure = tag("span", f"{said}{proposal.sure:.0%} sure", class_=f"sure {'good' if proposal.sure >= SURE else 'weak'}")
    facts = [
        f"{100 * card.share.value:.1f} % of the time [{100 * card.share.low:.1f}, {100 * card.share.high:.1f}]",
        f"{shown(card.per_minute.value)} times a minute [{shown(card.per_minute.low)}, {shown(card.per_minute.high)}]",
        f"lasts {1000 * card.held:.0f} ms",
    ]
    effects = tag("figure", tag("figcaption", tag("h3", "What it does")), *_effects(card, scales), class_="measures")
    note = "Mean change of the spectrum, low to high, over the first moments: filled is louder, hollow is softer."
    caption = tag("figcaption", tag("h3", "Where in the spectrum"), tag("p", note))
    picture = tag("figure", caption, spectrum_change(card.spectrum, f"change of the spectrum by {title}"))
    found = [_pad(atlas, excerpt, "", color) for excerpt in card.found]
    played = [_pad(atlas, excerpt, str(card.key) if not i else "", color) for i, excerpt in enumerate(card.played)]
    never = tag("p", "Not found with enough sound around it.", class_="hint")
    return join(
        [
            _heading(str(card.key), title, color, sure),
            tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
            tag("div", effects, picture, class_=f"meaning-groups {color}"),
            tag("p", "Pressed", class_="hint"),
            tag("div", *played, class_="pads"),
            tag("p", "In the data", class_="hint"),
            tag("div", *found, class_="pads") if found else never,
        ]
    )


def _effects(card: KeyCard, scales: dict[str, float]) -> list[Html]:
    rows = []
    for name, (title, unit, _) in EFFECTS.items():
        found, scale = card.effects[name].to_json(), scales[name]
        title = f"{title} {card.pitch_class}" if name == "pitch" else title
        plot = interval(found, 0.0, title, -scale, scale)
        text = tag("span", f"{with_interval(found)} {unit}")
        rows.append(tag("div", tag("div", tag("b", title), text, class_="what"), plot, class_="measure"))
    return rows


def spectrum_change(change: np.ndarray, label: str) -> Html:
    """Bands over time [W, BANDS] in decibels as a grid; the highest band on top, filled where it is more."""
    steps = min(len(change), 4 * TIMES)
    pooled = np.stack([part.mean(axis=0) for part in np.array_split(change, steps)])
    largest = max(1.0, float(np.abs(pooled).max()))
    bands = pooled.shape[1]
    cells = []
    for step, column in enumerate(pooled):
        for band, value in enumerate(column):
            share = abs(float(value)) / largest
            if share < 0.04:
                continue
            box = {"x": f"{step + 0.06:.2f}", "y": f"{bands - 1 - band + 0.06:.2f}", "width": 0.88, "height": 0.88}
            kind = "more" if value > 0 else "less"
            cells.append(tag("rect", class_=kind, style=f"opacity:{share:.2f}", **box))
    return tag(
        "svg",
        *cells,
        viewBox=f"0 0 {steps} {bands}",
        preserveAspectRatio="none",
        class_="change",
        role="img",
        aria_label=f"{label}, at most {largest:.1f} dB",
    )


def _pad(atlas: Atlas, excerpt: Excerpt, key: str, color: str) -> Html:
    """One excerpt to play; one with a key's number is played by it."""
    clip = _clip(excerpt.sound, atlas.sample_rate)
    frames = len(excerpt.sound) / atlas.hop_length
    marks = [
        Mark(frame, color_of(pressed), f"key {pressed}" if pressed else "NOOP") for frame, pressed in excerpt.presses
    ]
    peak = max(0.05, float(np.abs(excerpt.sound).max()))
    plot = waveform(excerpt.sound, peak, marks, frames, f"waveform of {excerpt.title}")
    number = {"data_key": key} if key else {}
    return tag(
        "div",
        tag("div", player(clip, excerpt.title), tag("h3", excerpt.title), class_="head"),
        tag("div", plot, class_="plot"),
        class_=f"pad track {color}",
        **number,
    )


def _clip(sound: np.ndarray, sample_rate: int) -> Clip:
    buffer = io.BytesIO()
    soundfile.write(buffer, to_int16(sound), sample_rate, subtype="PCM_16", format="WAV")
    return Clip(sound, sample_rate, "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode())
