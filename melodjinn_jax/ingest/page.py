"""One offline page about a DATASET: what is in it, what is not, and a few chunks to hear beside their codes' sound."""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib.image
import numpy as np
import scipy.signal
import soundfile

from melodjinn_jax.evaluation.report.files import Clip
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, number, table, tag
from melodjinn_jax.evaluation.report.page import render_page
from melodjinn_jax.evaluation.report.plots import waveform
from melodjinn_jax.evaluation.report.sound import time_axis, track
from melodjinn_jax.ingest.contents import UNKNOWN, Chunk, Contents

_SECONDS = 8.0  # of a chunk; sound is most of the page's size
_LEFT_OUT = {
    "trimmed_seconds": "seconds of silence cut off recordings",
    "silent_records": "silent records left out",
    "repeated_frames": "frames in two records",
}  # of the summary
_MOST_BARS = 12
_MOST_ROWS = 24
_WINDOW = 2048
_ROWS = 96
_LOWEST_HZ = 40
_RANGE_DB = 75
_COLORS = "magma"


def render_contents(contents: Contents) -> str:
    """The whole page."""
    sections = {
        "listen": ("Listen", _listen(contents)),
        "splits": ("Splits", _splits(contents)),
        "artists": ("Artists", _hours("Artists", "Hours of each artist", contents.hours_by("artist"))),
        "licences": ("Licences", _hours("Licences", "Hours under each licence", contents.hours_by("licence"))),
        "rejected": ("Left out", _rejected(contents)),
        "copies": ("Copies", _copies(contents)),
        "format": ("Format", _format(contents)),
    }
    title = f"{contents.dataset.path.name}: Melodjinn DATASET"
    footer = "Made by Melodjinn from the files of the DATASET. This page needs no network."
    return render_page(title, _header(contents), _tiles(contents), sections, footer)


def _header(contents: Contents) -> Html:
    summary, info = contents.summary, contents.dataset.info
    facts = [f"{info.records[split]:,} {split} records" for split in info.records]
    if summary:
        facts.append(f"source: {summary['source']}")
    facts.append(f"codec: {contents.codec.kind}")
    missing = [split for split in ("train", "validation", "test") if split not in info.records]
    verdict, kind = "Ready to train on: every split has records.", "good"
    if missing:
        verdict, kind = f"Has no {' and no '.join(missing)} split: give more recordings, by more artists.", "weak"
    elif summary.get("artists_in_several_splits"):
        verdict = "Too few artists to hold any out: the held-out splits hold other tracks of the same artists."
        kind = "weak"
    return join(
        [
            tag("p", "Melodjinn DATASET", class_="eyebrow"),
            tag("h1", contents.dataset.path.name),
            tag("p", verdict, class_=f"verdict {kind}"),
            tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
        ]
    )


def _tiles(contents: Contents) -> Html:
    info = contents.dataset.info
    seconds = info.frames_per_record * info.hop_length / info.sample_rate
    shown = [("Hours", f"{contents.hours:.2f}", f"in records of {seconds:g} s")]
    if contents.tracks:
        artists = {row["artist"] for row in contents.tracks if row["artist"]}
        copies = len(contents.summary["same_recordings"])
        shown.append(("Recordings", f"{len(contents.tracks):,}", f"{copies:,} of them there more than once"))
        shown.append(("Artists", f"{len(artists):,}", "whose names are known"))
        shown.append(
            ("Left out", f"{len(contents.rejected):,}", f"of {contents.summary['planned']:,} that were planned")
        )
    rate = f"{info.num_codebooks} codebooks of {info.codebook_size:,}"
    shown.append(("Code rate", f"{contents.bits_per_second / 1000:.2f} kbps", rate))
    size = sum(entry["bytes"] for entry in info.files.values()) / 1e6
    shown.append(("Size", f"{size:,.0f} MB", f"in {len(info.files):,} files"))
    tiles = [
        tag("div", tag("h2", name), tag("p", value, class_="value"), tag("p", note, class_="note"), class_="tile good")
        for name, value, note in shown
    ]
    return join(tiles)


def _listen(contents: Contents) -> Html:
    if not contents.chunks:
        return NOTHING
    lead = (
        "The start of a few records, and the same from its codes alone: the best that a model of codes can sound like."
    )
    figures = [_figure(chunk, contents) for chunk in contents.chunks]
    return join([heading("Listen", lead), *figures])


def _figure(chunk: Chunk, contents: Contents) -> Html:
    info = contents.dataset.info
    length = round(min(_SECONDS * info.sample_rate, len(chunk.waveform)))
    original, decoded = chunk.waveform[:length], chunk.decoded[:length]
    scale = max(0.05, float(np.abs(original).max()))
    rows = []
    for title, sound in (("Original", original), ("From its codes", decoded)):
        plots = [
            spectrogram(sound, info.sample_rate, f"spectrogram: {title}"),
            waveform(sound, scale, [], length, f"waveform: {title}"),
        ]
        rows.append(track(title, "", _clip(sound, info.sample_rate), plots))
    name = tag("b", ", ".join(str(chunk.provenance[key]) for key in ("title", "artist") if chunk.provenance.get(key)))
    second = chunk.provenance.get("start_frame", 0) * info.hop_length // info.sample_rate
    where = f", from {second // 60}:{second % 60:02d}" if "start_frame" in chunk.provenance else f"record {chunk.id}"
    label = tag("p", name, f"{where} \N{MIDDLE DOT} {chunk.split}", class_="hint")
    return join([label, tag("div", *rows, time_axis(length / info.sample_rate), class_="figure")])


def _clip(sound: np.ndarray, sample_rate: int) -> Clip:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return Clip(sound, sample_rate, "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode())


def spectrogram(sound: np.ndarray, sample_rate: int, label: str) -> Html:
    """Power over time on a logarithmic axis of frequency, as an image."""
    sound = np.pad(sound, (0, max(0, _WINDOW - len(sound))))
    hop = max(_WINDOW // 8, len(sound) // 1000)
    frequencies, _, transform = scipy.signal.stft(sound, sample_rate, nperseg=_WINDOW, noverlap=_WINDOW - hop)
    power = np.abs(transform) ** 2
    rows = np.geomspace(_LOWEST_HZ, sample_rate / 2, _ROWS)
    level = 10 * np.log10(np.stack([np.interp(rows, frequencies, column) for column in power.T], axis=1) + 1e-12)
    top = max(level.max(), -40.0)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, level, vmin=top - _RANGE_DB, vmax=top, cmap=_COLORS, origin="lower", format="png")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return tag("img", class_="spectrogram", src=uri, alt=label)


def _splits(contents: Contents) -> Html:
    rows = []
    for split, records in contents.dataset.info.records.items():
        of = contents.summary.get("splits", {}).get(split)
        known = [f"{of['hours']:.2f}", number(of["tracks"]), number(of["artists"])] if of else ["", "", ""]
        rows.append([split, number(records), *known])
    lead = "An artist is in one split only, and so is a recording that is there twice."
    return join([heading("Splits", lead), table(["split", "records", "hours", "tracks", "artists"], rows, "numbers")])


def _hours(title: str, caption: str, hours: Mapping[str, float]) -> Html:
    if not hours or list(hours) == [UNKNOWN]:
        return NOTHING
    shown = dict(list(hours.items())[:_MOST_BARS])
    note = f"and {len(hours) - _MOST_BARS} more" if len(hours) > _MOST_BARS else ""
    bars = _bars({name: (value, f"{value:.2f} h") for name, value in shown.items()}, note)
    return join([heading(title, caption), bars])


def _bars(values: Mapping[str, tuple[float, str]], note: str = "") -> Html:
    longest = max(value for value, _ in values.values()) or 1.0
    bars = [
        tag("div", tag("span", name, title=name), tag("i", style=f"--width:{value / longest:.3f}"), tag("b", text))
        for name, (value, text) in values.items()
    ]
    return tag("figure", *bars, tag("p", note, class_="hint") if note else NOTHING, class_="bars many-bars")


def _rejected(contents: Contents) -> Html:
    if not contents.rejected:
        return NOTHING
    kinds = {kind: (float(count), f"{count:,}") for kind, count in contents.rejected_by_kind().items()}
    rank = {kind: count for kind, (count, _) in kinds.items()}
    rarest_first = sorted(contents.rejected, key=lambda row: rank[row["reason"].partition(":")[0]])
    shown = [[row["path"], row["reason"]] for row in rarest_first[:_MOST_ROWS]]
    more = len(contents.rejected) - len(shown)
    note = tag("p", f"and {more:,} more in rejected.jsonl", class_="hint") if more else NOTHING
    lead = "Every planned track is in the DATASET or here, with the reason."
    return join([heading("Left out", lead), _bars(kinds), table(["file", "reason"], shown, "settings"), note])


def _copies(contents: Contents) -> Html:
    groups: Sequence[Sequence[str]] = contents.summary.get("same_recordings", [])
    if not groups:
        return NOTHING
    rows = [[group[0], ", ".join(group[1:])] for group in groups[:_MOST_ROWS]]
    lead = "Found by their fingerprints: nearly the same sound in other files. Each group is within one split."
    return join([heading("Copies", lead), table(["recording", "is also"], rows, "settings")])


def _format(contents: Contents) -> Html:
    info, summary = contents.dataset.info, contents.summary
    rows = [
        ["sample rate", f"{info.sample_rate:,} Hz"],
        ["frame", f"{info.hop_length} samples, {info.sample_rate / info.hop_length:g} a second"],
        ["record", f"{info.frames_per_record:,} frames"],
        ["codec", f"{contents.codec.kind}, digest {info.codec_digest}"],
    ]
    rows += [[label, number(summary[key])] for key, label in _LEFT_OUT.items() if key in summary]
    return join([heading("Format"), table(["what", "value"], rows, "settings")])
