"""Action transfer: it is as long as its source, scored fairly, and what it cannot use it names in one sentence."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from meaning_run import STRIDE, make_run
from meaning_world import HOP, RATE, Deaf, Obedient
from music_world import track

from melodjinn_jax import transfer as command
from melodjinn_jax.data.audio import load_audio, to_float32, write_wav
from melodjinn_jax.evaluation import transfer
from melodjinn_jax.evaluation.actions import parse_actions
from melodjinn_jax.evaluation.transfer import Recordings, recovered, score
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.state import Phase


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def sounds(tmp_path):
    """Two recordings: 24 kHz mono, and 44.1 kHz stereo in FLAC."""
    write_wav(tmp_path / "a.wav", to_float32(track(0, 61)).reshape(-1))
    other = np.random.default_rng(0).normal(0, 0.1, (44100, 2))
    soundfile.write(tmp_path / "b.flac", other, 44100)
    return tmp_path


def main(monkeypatch, run, *arguments) -> int:
    monkeypatch.setattr(command, "load_run", lambda path: run)
    monkeypatch.setattr(sys, "argv", ["program", "--workdir", "w", *map(str, arguments)])
    return command.main()


@pytest.mark.parametrize("prompt", ["", "b.flac"])
def test_a_transfer_is_as_long_as_its_source_and_scored_beside_it(monkeypatch, capsys, run, sounds, prompt):
    given = ["--prompt", sounds / prompt] if prompt else []
    assert main(monkeypatch, run, "--actions-from", sounds / "a.wav", *given, "--out", sounds / "c.wav") == 0
    assert len(load_audio(sounds / "c.wav")) == 61 // STRIDE * STRIDE * HOP
    scores = json.loads((sounds / "c.json").read_text())
    assert json.loads(capsys.readouterr().out) == scores
    assert len(parse_actions(scores["actions"], 3)) == 61 // STRIDE - 1
    assert ("spectrum_to_prompt_db" in scores) == bool(prompt)
    for name in ("onsets", "envelope", "keys"):
        assert -1 <= scores[name]["value"] <= 1
        assert scores[name]["shuffled_low"] <= scores[name]["shuffled"] <= scores[name]["shuffled_high"]


@pytest.mark.parametrize(
    ("changes", "flags", "complaint"),
    [
        ({}, {"--actions-from": "short.wav"}, "short.wav is 0.07 s long, and the latent action model hears 0.24 s"),
        ({}, {"--actions-from": "silent.wav"}, "silent.wav is silent"),
        ({}, {"--prompt": "silent.wav"}, "--prompt"),
        ({}, {"--prompt": "short.wav"}, "--prompt"),
        ({}, {"--actions-from": "text.wav"}, "text.wav cannot be read as audio"),
        ({}, {"--actions-from": "nowhere.wav"}, "nowhere.wav is not a file"),
        ({}, {"--out": "c.json"}, "give the name of a WAV file"),
        ({}, {"--out": "no/c.wav"}, "cannot be written"),
        ({}, {"--temperature": "-1"}, "--temperature is -1"),
        ({}, {"--seed": "-1"}, "--seed is -1"),
        ({"record": PhaseRecord(Phase.QUANTISE)}, {}, "its actions may still change: train it until they are frozen"),
        ({"state": {}}, {}, "has no LAM: give the run that has it"),
    ],
)
def test_what_cannot_be_transferred_is_named_in_one_sentence(
    monkeypatch, capsys, run, sounds, changes, flags, complaint
):
    write_wav(sounds / "short.wav", np.ones(5 * HOP) / 9)
    write_wav(sounds / "silent.wav", np.zeros(RATE))
    (sounds / "text.wav").write_text("no sound")
    flags = {"--actions-from": "a.wav", "--out": "c.wav"} | flags
    arguments = [part for flag, value in flags.items() for part in (flag, sounds / value if "." in value else value)]
    assert main(monkeypatch, dataclasses.replace(run, **changes), *arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("kind", "gain"), [(Obedient, 1), (Deaf, 0)])
def test_only_what_follows_the_actions_beats_shuffled_ones(monkeypatch, run, kind, gain):
    instrument = kind()

    def play(run, recordings, keys, temperature, seed):
        codes = np.zeros((len(keys), keys.shape[1] + 1, 1), int)
        return instrument.play(codes, 1, keys, temperature, seed)

    monkeypatch.setattr(transfer, "transfer", play)
    monkeypatch.setattr(transfer, "encode_track", lambda run, p: instrument.listen(to_float32(p).reshape(1, -1))[0])
    one = dataclasses.replace(run.action_space, stride=1)
    run = dataclasses.replace(run, action_space=one)
    events = instrument.draw(np.random.default_rng(3), 1, 400)
    recordings = Recordings(instrument.sound(events)[0], events[0, 1:], np.zeros((1, 1), int), np.zeros(0, int))
    played = play(run, recordings, recordings.keys[None], 0.5, 0)[0]
    scores = score(run, recordings, played, 0.5, 0)
    for name in ("onsets", "envelope", "keys"):
        assert scores[name]["gain"] == pytest.approx(gain, abs=0.15)
        if gain:
            assert scores[name]["rank"] == 1


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40))
@settings(max_examples=50)
def test_what_is_heard_on_time_or_a_block_late_is_recovered(keys):
    keys = np.array(keys)
    pressed = (keys > 0).any()
    same, none = recovered(keys, np.stack([keys, np.zeros_like(keys)]))
    assert (same == 1 and none == 0) if pressed else (np.isnan(same) and np.isnan(none))
    sparse = np.zeros(3 * len(keys), int)
    sparse[::3] = keys
    assert not pressed or recovered(sparse, np.roll(sparse, 1)[None])[0] == 1
