"""The report is one whole page whatever the run holds, and the samples beside it are those of the last evaluation."""

import dataclasses
import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CODEC, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import DRUM_NAMES
from melodjinn_jax.data.audio import load_audio, write_wav
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation import samples
from melodjinn_jax.evaluation.onsets import Onset
from melodjinn_jax.evaluation.report import write_report
from melodjinn_jax.evaluation.report.markup import percent
from melodjinn_jax.evaluation.samples import plan_groove, write_samples
from melodjinn_jax.training.manifest import Manifest, write_manifest
from melodjinn_jax.training.workdir import WorkDir

HOP, RATE, FRAMES = CODEC.hop_length, CODEC.sample_rate, 40
VOID = {"meta", "input"}
HOSTILE = "<script>alert('1')</script>\"&amp; $title ${x}"
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


# A work directory -----------------------------------------------------------------------------------------------------


def make_results(drums: list[str], **changes) -> dict:
    """An eval.json in which every number is another one."""
    count = len(drums)
    scores = {
        "generation_onset_f1": 0.9711,
        "generation_logmel_correlation": 0.9122,
        "control_accuracy": 0.9833,
        "control_extra_onsets": 0.0144,
        "all_keys_accuracy": 0.9655,
        "noop_clean_fraction": 0.9966,
    }
    confusion = np.arange(100, 100 + (count + 1) ** 2).reshape(count + 1, count + 1)
    results = {
        "step": 812,
        "phase": "frozen",
        "freeze_step": 301,
        "freeze_reason": "stable",
        "freeze_agreement": 0.9123,
        "split": "test",
        "strength": 1.5,
        "drums": drums,
        "parameters": {"lam": 202551, "dynamics": 182380},
        "num_actions": count + 4,
        "num_keys": count,
        "drum_of_key": [*range(1, count), 0] if count else [],
        "confusion": confusion.tolist(),
        "cross_entropy_true_actions": 0.6587,
        "cross_entropy_shuffled_actions": 1.3586,
        "cross_entropy_no_actions": 0.9385,
        **scores,
        "keys": {str(key): {"drum": key % count, "accuracy": 0.8, "presses": 61} for key in range(1, count + 1)},
        "sampled": {
            "temperature": 0.51,
            **{name: value / 2 for name, value in scores.items()},
            "keys": {str(key): {"drum": None, "accuracy": 0.7, "presses": 60} for key in range(1, count + 1)},
        },
        "generation_real_time_factor": 133.25,
        "success": True,
    }
    return results | changes


def make_metrics() -> list[dict]:
    """The lines of a run that went through all phases."""
    look = {"agreement": 0.0, "entropy": 0.4, "error": 0.02, "codes": 3, "keys": 2, "stable": False}
    discover = [{"phase": "discover", "reconstruction": 2 / step, "kl": 10 / step} for step in (10, 20)]
    quantise = [
        {"phase": "quantise", "reconstruction": 0.1, "commitment": 0.3, "code_usage": [0.9, 0.08, 0.02, 0.0]},
        {"phase": "quantise", "reconstruction": 0.1, "commitment": 0.2, "code_usage": [0.9, 0.1, 0.0, 0.0]},
    ]
    lines = [
        *discover,
        {"phase": "discover", "look": look},
        {"phase": "quantise", "reason": None},
        *quantise,
        {"phase": "quantise", "look": look | {"agreement": 0.97}},
        {"phase": "frozen", "reason": "stable"},
        {"phase": "frozen", "cross_entropy": 1.5, "frames_per_second": 12000},
        {"phase": "frozen", "cross_entropy": 1.1, "frames_per_second": 15000},
    ]
    steps = (10, 20, 20, 20, 30, 40, 40, 40, 50, 60)
    return [{"step": step, **line} for step, line in zip(steps, lines, strict=True)]


def make_samples(folder: Path, num_keys: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    keys = range(1, num_keys + 1)
    for name in ("truth", "generation", "noop", "control", "performance", *(f"key_{key}" for key in keys)):
        write_wav(folder / f"{name}.wav", 0.3 * rng.standard_normal(FRAMES * HOP))
    presses = [[4 + 8 * turn, 1 + turn % num_keys] for turn in range(4)] if num_keys else []
    onsets = [[frame + 0.3, key - 1, 1.0] for frame, key in presses]
    actions = np.zeros(FRAMES - 1, int)
    actions[[frame - 1 for frame, _ in presses]] = [key for _, key in presses]
    example = {
        "sample_rate": RATE,
        "hop_length": HOP,
        "action_stride": 1,
        "clip": 3,
        "prompt_frames": 8,
        "noop_prompt_frames": 12,
        "actions": actions.tolist(),
        "true_onsets": onsets,
        "follow_onsets": onsets,
        "noop_onsets": onsets[:1],
        "control_presses": presses,
        "key_presses": {str(key): [[4, key], [20, key]] for key in keys},
        "performance_presses": presses,
    }
    (folder / samples.EXAMPLE).write_text(json.dumps(example))


def make_workdir(path: Path, drums=DRUM_NAMES[:3], metrics=None, sounds=True, config=None, **results) -> WorkDir:
    """A work directory as training and evaluation leave it, without their arrays."""
    path.mkdir(exist_ok=True)
    workdir = WorkDir(path)
    workdir.config.write_text(json.dumps(dataclasses.asdict(config or tiny_config())))
    workdir.evaluation.write_text(json.dumps(make_results(list(drums), **results)))
    lines = make_metrics() if metrics is None else metrics
    workdir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if sounds:
        make_samples(workdir.samples, len(drums))
    checkpoint = workdir.checkpoints / "60"
    checkpoint.mkdir(parents=True)
    metadata = {"versions": {"jax": "0.10.2"}, "action_space": {"key_of_code": [0, 1, 2, 0]}}
    write_manifest(checkpoint, Manifest(60, metadata, {}, (), {}))
    return workdir


class Page(HTMLParser):
    """A page, checked to be well formed while it is read."""

    def __init__(self, workdir: WorkDir):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.source = workdir.report.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def sections(self) -> set[str | None]:
        return {attributes["id"] for tag, attributes in self.elements if tag == "section"}


def report(workdir: WorkDir) -> Page:
    write_report(workdir)
    return Page(workdir)


# The page -------------------------------------------------------------------------------------------------------------


def test_is_one_file_that_needs_nothing_else(tmp_path):
    page = report(make_workdir(tmp_path))
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert (attributes.get("src") or "data:audio/wav;base64,").startswith("data:audio/wav;base64,")
        assert (attributes.get("href") or f"#{next(iter(ids))}").removeprefix("#") in ids
    assert sum(tag == "audio" for tag, _ in page.elements) == 8


def test_every_plot_and_player_has_a_name(tmp_path):
    for tag, attributes in report(make_workdir(tmp_path)).elements:
        if tag in ("audio", "svg"):
            assert attributes["aria-label"]


def test_is_a_function_of_the_files(tmp_path):
    workdir = make_workdir(tmp_path)
    assert report(workdir).source == report(workdir).source


@given(names=st.lists(TEXT, min_size=1, max_size=4), name=TEXT)
@settings(max_examples=15, deadline=None)
def test_escapes_every_name(tmp_path_factory, names, name):
    names = [*names, HOSTILE]
    config = tiny_config(name=name + HOSTILE)
    plain = report(make_workdir(tmp_path_factory.mktemp("plain"), [f"drum{i}" for i in range(len(names))]))
    page = report(make_workdir(tmp_path_factory.mktemp("hostile"), names, config=config, freeze_reason=HOSTILE))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert name + HOSTILE in page.text
    for drum in names:
        assert drum in page.text


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def test_shows_every_result_even_one_that_it_does_not_know(tmp_path):
    workdir = make_workdir(tmp_path, a_new_measure=0.2468)
    text = report(workdir).text
    assert "a_new_measure" in text
    results = json.loads(workdir.evaluation.read_text())
    del results["drum_of_key"]  # shown as the names of their drums
    for value in leaves(results):
        if isinstance(value, str):
            assert value in text
        elif isinstance(value, float):
            assert f"{value:.4f}" in text or f"{value:,.1f}" in text
        elif isinstance(value, int) and not isinstance(value, bool):
            assert f"{value:,}" in text


@pytest.mark.parametrize("count", [1, 16])
def test_any_number_of_drums(tmp_path, count):
    page = report(make_workdir(tmp_path, [f"one-shot {i}" for i in range(count)]))
    assert sum((attributes.get("class") or "").startswith("pad ") for _, attributes in page.elements) == count


def test_says_what_failed(tmp_path):
    weak = report(make_workdir(tmp_path / "weak", success=False, control_accuracy=0.9499)).text
    assert "Not there yet" in weak
    assert "94.9%" in weak
    assert "95%" not in weak.replace("The bar is 95%", "").replace("at 95% or more", "")
    assert "It works" in report(make_workdir(tmp_path / "good")).text
    assert "2 keys for 3 drums" in report(make_workdir(tmp_path / "few", success=False, num_keys=2)).text


@given(st.floats(0, 1))
def test_percent_never_rounds_up_to_the_bar(value):
    assert (float(percent(value).rstrip("%")) >= 95) == (value >= 0.95 - 1e-8)


def test_without_optional_files(tmp_path):
    workdir = make_workdir(tmp_path, metrics=[], sounds=False)
    workdir.metrics.unlink()
    (workdir.checkpoints / "60" / "manifest.json").write_text("damaged")
    assert report(workdir).sections == {"confusion", "numbers", "settings", "commands"}
    workdir.evaluation.write_text("{}")
    assert report(workdir).sections == {"numbers", "settings", "commands"}


def test_a_run_that_found_no_key(tmp_path):
    keyless = {"num_keys": 0, "drum_of_key": [], "confusion": [[50], [3]], "keys": {}, "success": False}
    workdir = make_workdir(tmp_path, ["kick"], sounds=False, **keyless)
    make_samples(workdir.samples, 0)
    (workdir.samples / "performance.wav").unlink()
    page = report(workdir)
    assert "listen" not in page.sections
    assert "clip" in page.sections


def test_a_run_that_was_never_frozen(tmp_path):
    metrics = [line for line in make_metrics() if line["phase"] == "discover"]
    page = report(make_workdir(tmp_path, metrics=metrics, freeze_step=None, freeze_reason=None, phase="discover"))
    assert "not frozen" in page.text
    assert "Cross entropy" not in page.text


numbers = st.floats(width=32).map(
    lambda x: x if math.isfinite(x) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(x)]
)
lines = st.fixed_dictionaries(
    {"phase": st.sampled_from(["discover", "quantise", "frozen"])},
    optional={
        "reconstruction": numbers,
        "kl": numbers,
        "cross_entropy": numbers,
        "frames_per_second": st.integers(0, 10**9),
        "code_usage": st.lists(st.floats(0, 1), min_size=4, max_size=4),
    },
)


@given(st.lists(lines, max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_curve_can_be_drawn(tmp_path_factory, rows):
    metrics = [{"step": index, **row} for index, row in enumerate(rows)]
    page = report(make_workdir(tmp_path_factory.mktemp("curves"), sounds=False, metrics=metrics))
    drawings = [attributes.get("d") or "" for tag, attributes in page.elements if tag == "path"]
    assert not any("nan" in drawing or "inf" in drawing for drawing in drawings)


def test_refuses_a_run_without_results(tmp_path):
    workdir = make_workdir(tmp_path)
    for content in ("{", "[]"):
        workdir.evaluation.write_text(content)
        with pytest.raises(UserError, match=r"eval\.json is damaged"):
            write_report(workdir)
    workdir.evaluation.unlink()
    with pytest.raises(UserError, match=r"eval\.json is missing"):
        write_report(workdir)


# The samples ----------------------------------------------------------------------------------------------------------


@given(
    names=st.lists(st.none() | st.sampled_from([*DRUM_NAMES, "Snare 01", "cowbell"]), min_size=1, max_size=16),
    stride=st.sampled_from([1, 4, 16, 64]),
)
def test_groove_presses_every_key_one_at_a_time(names, stride):
    presses, frames = plan_groove(names, start=stride, frame_rate=75.0, stride=stride)
    at = [frame for frame, _ in presses]
    assert at == sorted(set(at))
    assert all(frame % stride == 0 for frame in [*at, frames])
    assert at[0] > 0
    assert at[-1] < frames
    assert {key for _, key in presses} == set(range(1, len(names) + 1))


def test_groove_knows_its_drums():
    presses, _ = plan_groove(["hat", "snare", "kick"], start=8, frame_rate=75.0, stride=1)
    kinds = {(frame - 8) // 9 % 16: key for frame, key in presses}
    assert kinds[0] == kinds[8] == 3
    assert kinds[4] == kinds[12] == 2
    assert kinds[2] == kinds[14] == 1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose codec turns silence into code 0 and any other code into a click; `generate` clicks on each press."""

    def generate(models, params, prompt, prompt_frames, actions):
        codes = np.array(prompt)
        codes[:, 1:, 0] = actions
        assert not actions[:, : prompt_frames - 1].any()
        return codes

    codec = SimpleNamespace(
        sample_rate=RATE,
        hop_length=HOP,
        num_codebooks=2,
        encode=lambda waveform: np.zeros((len(waveform), waveform.shape[1] // HOP, 2), np.int32),
        decode=lambda codes: np.repeat(codes[:, :, 0], HOP, axis=1).astype(np.float32) / 8,
    )
    monkeypatch.setattr(samples, "generate", generate)
    workdir = WorkDir(tmp_path)
    return SimpleNamespace(
        workdir=workdir, codec=codec, models=None, played_dynamics=None, action_space=SimpleNamespace(stride=1)
    )


def make_example() -> dict:
    waveform = np.linspace(-0.5, 0.5, FRAMES * HOP, dtype=np.float32)
    onsets = [Onset(np.float64(3.25), np.int64(1), np.float32(1.0))]
    return {
        **dict.fromkeys(("truth", "follow", "noop", "control"), waveform),
        **dict.fromkeys(("true_onsets", "follow_onsets", "noop_onsets"), onsets),
        "clip": 2,
        "prompt_frames": 8,
        "noop_prompt_frames": 8,
        "actions": [0] * (FRAMES - 1),
        "control_presses": [(np.int64(9), 1)],
    }


def test_samples_sound_as_their_description_says(run):
    write_samples(run, make_example(), {"drums": ["kick", "hat"], "drum_of_key": [1, 0, None]})
    described = json.loads((run.workdir.samples / samples.EXAMPLE).read_text())
    assert described["true_onsets"] == [[3.25, 1, 1.0]]
    for name, presses in [
        *((f"key_{key}", presses) for key, presses in described["key_presses"].items()),
        ("performance", described["performance_presses"]),
    ]:
        frames = load_audio(run.workdir.samples / f"{name}.wav", RATE).reshape(-1, HOP)
        heard = np.round(frames[:, HOP // 2] * 8).astype(int)
        assert [[int(frame), int(heard[frame])] for frame in np.flatnonzero(heard)] == presses
        assert presses
    assert 7 < len(frames) * HOP / RATE < 10


def test_samples_of_an_earlier_evaluation_are_gone(run):
    results = {"drums": ["kick", "hat"], "drum_of_key": [0, 1]}
    write_samples(run, make_example(), results)
    (run.workdir.samples / "my own.wav").write_bytes(b"x")
    write_samples(run, make_example(), results | {"drum_of_key": [0]})
    names = {file.name for file in run.workdir.samples.iterdir()}
    assert "key_1.wav" in names
    assert "key_2.wav" not in names
    assert "my own.wav" in names
    write_samples(run, make_example(), results | {"drum_of_key": []})
    names = {file.name for file in run.workdir.samples.iterdir()}
    assert names == {"truth.wav", "generation.wav", "noop.wav", "control.wav", samples.EXAMPLE, "my own.wav"}
