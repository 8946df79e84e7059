"""The atlas: names say what was measured, a person's names are kept, and the page is one whole file with its sound."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meaning_run import make_run
from meaning_world import Deaf, Obedient

from melodjinn_jax import atlas as command
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.atlas import Excerpt, Heard, find_excerpts, make_atlas
from melodjinn_jax.evaluation.effects import BANDS, measure_effects
from melodjinn_jax.evaluation.key_names import SUBTLE, Proposal, keep_names, name_of, propose_names
from melodjinn_jax.evaluation.report.atlas import render_atlas
from melodjinn_jax.live.keys import FILE, label_keys, read_key_names
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.state import Phase

HOSTILE = "<script>alert('1')</script>\"& $title"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def made(run):
    return make_atlas(run, run.open_data(), run.config.evaluation)


def effect(attack=0.0, sustain=0.0, onsets=0.0, brightness=0.0, pitch=0.0, bands=None):
    pitches = np.zeros(12)
    pitches[9] = pitch
    return {
        "attack": attack,
        "sustain": sustain,
        "onsets": onsets,
        "brightness": brightness,
        "pitch": pitches,
        "bands": np.zeros(BANDS) if bands is None else bands,
    }


RAMP = np.linspace(0, 1, BANDS)


@pytest.mark.parametrize(
    ("measured", "name"),
    [
        (effect(), SUBTLE),
        (effect(12, 2, 10, bands=40 * (1 - RAMP) ** 2), "kick"),
        (effect(12, 2, 10, bands=np.where(np.arange(BANDS) < 1, 10, 40 * (1 - RAMP) ** 2)), "tom"),
        (effect(12, 2, 10, bands=40 * RAMP**2), "hat"),
        (effect(12, 2, 10, bands=np.full(BANDS, 30.0)), "snare"),
        (effect(12, 2, 10, bands=40 * np.exp(-((RAMP - 0.5) ** 2) / 0.02)), "clap"),
        (effect(2, 2), "louder"),
        (effect(0, 3), "build"),
        (effect(-3, -3), "softer"),
        (effect(-9, -20), "stop"),
        (effect(0.1, 0, brightness=0.5), "brighter"),
        (effect(0.1, 0, brightness=-0.5), "darker"),
        (effect(pitch=0.1), "note A"),
        (effect(onsets=3), "accent"),
    ],
)
def test_names_say_what_was_measured(measured, name):
    assert name_of(measured) == name


@given(st.lists(st.floats(-60, 60), min_size=4, max_size=4), st.floats(-1, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_every_effect_has_a_name(numbers, pitch, seed):
    bands = np.random.default_rng(seed).normal(0, 20, BANDS)
    assert name_of(effect(*numbers, pitch=pitch, bands=bands)).strip()


def effects_of(instrument):
    return measure_effects(instrument, instrument.clips(), 8, 0.5)


def test_keys_that_always_do_the_same_are_named_surely_and_apart():
    proposals = propose_names(effects_of(Obedient()))
    assert len({proposal.name for proposal in proposals}) == 3
    assert all(proposal.sure > 0.9 for proposal in proposals)
    # Not `kick` twice: the second of a name is numbered.
    effects = effects_of(Obedient())
    twice = dataclasses.replace(
        effects,
        **{name: getattr(effects, name)[[0, 0]] for name in ("attack", "sustain", "onsets", "brightness", "pitch")},
        spectrum=effects.spectrum[[0, 0]],
    )
    first, second = propose_names(twice)
    assert second.name == f"{first.name} 2"


def test_a_deaf_model_leaves_no_sure_hit():
    assert min(proposal.sure for proposal in propose_names(effects_of(Deaf()))) < 0.9


PROPOSED = [Proposal("kick", 1.0), Proposal("hat", 0.6), Proposal("build", 0.3)]


def test_edited_names_are_kept_and_missing_ones_are_added(tmp_path):
    assert keep_names(tmp_path, PROPOSED) == ["kick", "hat", "build"]
    (tmp_path / FILE).write_text('["my own \\u2665", "hat"]')
    assert keep_names(tmp_path, PROPOSED) == ["my own ♥", "hat", "build"]
    before = (tmp_path / FILE).stat().st_mtime_ns
    assert keep_names(tmp_path, PROPOSED[:1]) == ["my own ♥"]
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    assert json.loads((tmp_path / FILE).read_text()) == ["my own ♥", "hat", "build"]


def test_the_names_that_the_atlas_writes_are_those_that_a_player_sees(tmp_path):
    assert label_keys(tmp_path, 2) == ("nothing", "key 1", "key 2")
    keep_names(tmp_path, PROPOSED)
    assert label_keys(tmp_path, 3) == ("nothing", "kick", "hat", "build")
    assert label_keys(tmp_path, 4) == ("nothing", "kick", "hat", "build", "key 4")
    assert label_keys(tmp_path, 1) == ("nothing", "kick")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(content=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200)
def test_any_file_is_names_or_one_clear_sentence(content, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    (folder / FILE).write_bytes(content)
    complaint = ""
    try:
        names = read_key_names(folder)
    except UserError as error:
        complaint = str(error)
        names = []
    assert all(isinstance(name, str) and name.strip() for name in names)
    assert not complaint or (FILE in complaint and "\n" not in complaint)


def test_excerpts_hold_the_press_where_they_say(run):
    stride, hop = run.action_space.stride, run.codec.hop_length
    frames = 100 * stride
    keys = np.zeros(99, int)
    keys[[3, 40, 97]] = 2
    keys[41], keys[45] = 2, 1
    # A ramp tells where an excerpt was cut from.
    ramp = np.arange(frames * hop, dtype=np.float32)
    found = find_excerpts(run, 2, Heard([ramp], [keys], [0], ["song"], np.zeros(1, int)))
    # The others have too little sound around them, and to hold a key is no new press.
    assert [type(excerpt) for excerpt in found] == [Excerpt]
    (first, key), (second, other) = found[0].presses
    assert (key, other, second - first) == (2, 1, 5 * stride)
    assert found[0].sound[first * hop] == 41 * stride * hop
    assert found[0].title.startswith("song, ")


def test_the_page_is_one_file_with_every_key(made, run):
    assert len(made.cards) == 3
    page = render_atlas(HOSTILE, made, ["kick", HOSTILE, "hat"])
    assert "://" not in re.sub(r"data:audio[^\"]*", "", page)
    assert HOSTILE not in page
    assert set(re.findall(r'<section id="([\w-]+)"', page)) == {"key-1", "key-2", "key-3", "alone"}
    clips = [len(made.alone), *(len(card.found) + len(card.played) for card in made.cards)]
    assert page.count("<audio") == sum(clips) >= 12
    assert [re.findall(r'data-key="(\d)"', page)] == [["1", "2", "3"]]


def test_the_command_writes_page_and_names_and_keeps_what_was_edited(made, run, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_run", lambda path: run)
    monkeypatch.setattr(command, "make_atlas", lambda *_: made)
    monkeypatch.setattr(sys, "argv", ["program", "--workdir", "w"])
    assert command.main() == 0
    file = run.workdir.path / FILE
    names = json.loads(file.read_text())
    assert len(names) == 3
    file.write_text(json.dumps(["mine", *names[1:]]))
    assert command.main() == 0
    assert json.loads(file.read_text()) == ["mine", *names[1:]]
    page = (run.workdir.path / command.PAGE).read_text()
    assert "mine" in page
    assert f"sounds like: {names[0]}" in page
    capsys.readouterr()
    file.write_text("[")
    assert command.main() == 2
    said = capsys.readouterr().err
    assert FILE in said
    assert said.count("\n") == 1
    file.unlink()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"record": PhaseRecord(Phase.QUANTISE)}, "its actions may still change: train it until they are frozen"),
        ({"keyless": True}, "found no key beside NOOP"),
    ],
)
def test_what_has_no_atlas_is_named(run, changes, complaint):
    if changes.pop("keyless", False):
        changes = {"action_space": dataclasses.replace(run.action_space, key_of_code=(0,) * 8)}
    with pytest.raises(UserError, match=complaint):
        make_atlas(dataclasses.replace(run, **changes), run.open_data(), run.config.evaluation)
