"""Playing: what keys and beats do to the actions, and what a performance makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_client import mock_stage

from melodjinn_jax.live import protocol
from melodjinn_jax.live.mock import MockStreamer
from melodjinn_jax.live.performance import Performance, Prompt
from melodjinn_jax.live.playing import MAX_WAITING, Keyboard, Tempo
from melodjinn_jax.live.protocol import NO_ACTION, Limits, Press, ProtocolError
from melodjinn_jax.live.session import Sampling, Session

FRAME_RATE = 75.0
BPM = (30.0, 300.0)


@given(st.lists(st.integers(1, 3), max_size=MAX_WAITING))
def test_without_hold_every_press_acts_once_and_in_order(keys):
    keyboard = Keyboard(holds=False)
    for key in keys:
        keyboard.press(key)
        keyboard.release(key)
    assert [keyboard.next_action(frame) for frame in range(MAX_WAITING + 1)] == keys + [0] * (
        MAX_WAITING + 1 - len(keys)
    )


def test_a_held_key_acts_until_its_release_and_the_newest_counts():
    keyboard = Keyboard(holds=True)
    keyboard.press(1)
    assert [keyboard.next_action(f) for f in range(3)] == [1, 1, 1]
    keyboard.press(2)
    assert [keyboard.next_action(f) for f in range(3)] == [2, 2, 2]
    keyboard.release(2)
    assert keyboard.next_action(9) == 1
    keyboard.press(3)
    keyboard.release(3)
    assert [keyboard.next_action(f) for f in range(3)] == [3, 1, 1]
    keyboard.release_all()
    assert keyboard.next_action(20) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3)), max_size=20, unique_by=lambda press: press[0]))
def test_scheduled_presses_act_at_their_frames(presses):
    keyboard = Keyboard(holds=False)
    for frame, key in presses:
        assert keyboard.schedule(key, frame)
    actions = {frame: keyboard.next_action(frame) for frame in range(51)}
    assert {frame: a for frame, a in actions.items() if a} == dict(presses)


def test_what_waits_is_bounded():
    keyboard = Keyboard(holds=False)
    for _ in range(1000):
        keyboard.press(1)
    assert sum(keyboard.next_action(f) for f in range(1000)) == MAX_WAITING
    assert not all(keyboard.schedule(1, frame) for frame in range(1000))


@given(st.floats(*BPM), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_next_beat_is_not_before_and_at_most_a_beat_after(bpm, beat, frame):
    tempo = Tempo(FRAME_RATE, BPM)
    tempo.set(bpm, beat)
    found = tempo.next_beat(frame)
    assert frame <= found <= frame + 60 * FRAME_RATE / bpm + 1
    beats = (found - beat) * bpm / (60 * FRAME_RATE)
    assert abs(beats - round(beats)) * 60 * FRAME_RATE / bpm <= 1


@given(st.floats(60, 200), st.integers(0, 10**6), st.integers(0, 2**32 - 1))
def test_taps_give_the_tempo_however_unsteady_the_hand(bpm, start, seed):
    rng, period = np.random.default_rng(seed), 60 * FRAME_RATE / bpm
    tempo = Tempo(FRAME_RATE, BPM)
    known = [tempo.tap(round(start + i * period + rng.uniform(-1, 1))) for i in range(8)]
    assert known == [False] + [True] * 7
    assert abs(tempo.bpm / bpm - 1) < 0.05
    # Beats go on where the taps did.
    ahead = start + 8 * period
    assert abs((ahead - tempo.beat) / tempo.period - round((ahead - tempo.beat) / tempo.period)) < 0.15


def test_taps_far_apart_begin_anew():
    tempo = Tempo(FRAME_RATE, BPM)
    assert [tempo.tap(frame) for frame in (0, 37, 1000, 1050)] == [False, True, True, True]
    assert tempo.bpm == pytest.approx(90)


@settings(max_examples=50)
@given(st.sampled_from([70.0, 96.0, 120.0, 150.0]), st.integers(0, 2**32 - 1))
def test_the_tempo_of_a_rhythm_is_found(bpm, seed):
    rng, period = np.random.default_rng(seed), 60 * FRAME_RATE / bpm
    halves = np.flatnonzero(rng.random(32) < np.where(np.arange(32) % 2, 0.4, 0.9))
    tempo = Tempo(FRAME_RATE, BPM)
    assert tempo.follow([round(17 + i * period / 2) for i in halves])
    # The beat itself, half or twice or a third part of it: hits on a grid belong to any of these.
    ratios = tempo.bpm / bpm * np.array([0.5, 1, 2, 4, 1.5, 3])
    assert np.abs(ratios - 1).min() < 0.02


def test_no_tempo_is_found_where_there_is_none():
    tempo, rng = Tempo(FRAME_RATE, BPM), np.random.default_rng(0)
    assert not tempo.follow([])
    assert not tempo.follow(np.cumsum(rng.integers(5, 300, 60)).tolist())
    assert tempo.period == 0


class Stage:
    """A performance and the streamer that plays it, without a server."""

    def __init__(self, **limits):
        self.streamer = MockStreamer(1)
        stage = mock_stage(streamer=self.streamer)
        self.performance = Performance(self.streamer, stage.prompt, Sampling(), Limits(keys=3, **limits), holds=False)

    def play(self, frames: int) -> list[protocol.Audio]:
        """Make and hear so many frames."""
        heard = []
        while len(heard) < frames:
            performance = self.performance
            if performance.pending is not None:
                self.streamer.start(0, performance.pending.first_frame, performance.pending.codes)
                performance.pending = None
            ticket = performance.next_frame()
            assert ticket is not None
            codes, pcm = self.streamer.step([ticket.frame])
            audio = performance.made(ticket, codes[0], pcm[0])
            if audio is not None:
                heard.append(audio)
                performance.heard(protocol.Played(audio.take, audio.frame + 1))
        return heard


@pytest.fixture
def stage():
    stage = Stage()
    stage.performance.playing = True
    return stage


def test_a_rewound_performance_plays_on_from_there_with_what_rang(stage):
    stage.performance.press(Press(1, at=10))
    first = stage.play(30)
    stage.performance.rewind(15, None)
    again = stage.play(10)
    assert [audio.frame for audio in again] == list(range(15, 25))
    for old, new in zip(first[14:], again, strict=False):
        np.testing.assert_array_equal(old.pcm, new.pcm)
    assert stage.performance.take == 1


def test_a_frame_of_a_take_that_is_over_is_dropped(stage):
    stage.play(5)
    ticket = stage.performance.next_frame()
    stage.performance.rewind(3, None)
    assert stage.performance.made(ticket, np.zeros(2), np.zeros(320)) is None
    assert stage.performance.end == 3
    assert [audio.frame for audio in stage.play(2)] == [3, 4]


def test_a_performance_that_is_not_heard_stops(stage):
    stage.performance.ahead = 4
    while (ticket := stage.performance.next_frame()) is not None:
        stage.performance.pending = None
        stage.performance.made(ticket, np.zeros(2), np.zeros(320, np.int16))
    assert stage.performance.end == 1 + 4
    stage.performance.heard(protocol.Played(take=7, frame=100))
    assert stage.performance.next_frame() is None
    stage.performance.heard(protocol.Played(take=0, frame=100))
    assert stage.performance.played == 5


def test_the_past_that_is_remembered_is_bounded():
    stage = Stage(session_frames=50)
    stage.performance.playing = True
    audio = stage.play(333)
    session = stage.performance.session
    assert len(session.codes) < 50
    assert session.end == audio[-1].frame + 1
    with pytest.raises(ProtocolError, match="can be rewound to, not 2"):
        stage.performance.rewind(2, None)
    read, _ = Session.from_bytes(session.to_bytes({}))
    assert (read.first_frame, read.end) == (session.first_frame, session.end)
    stage.performance.load(read)
    assert stage.play(1)[0].frame == session.end


def test_settings_are_remembered_from_the_frame_at_which_they_changed(stage):
    stage.play(5)
    stage.performance.change_settings(protocol.Settings(temperature=1.5, top_k=7))
    stage.play(5)
    session = stage.performance.session
    assert (session.sampling(5).temperature, session.sampling(6)) == (0.5, Sampling(0, 1.5, 7, 1.0))


def test_the_block_of_a_long_stride_keeps_its_action():
    streamer = MockStreamer(1)
    streamer.instrument = streamer.instrument.__class__(**{**vars(streamer.instrument), "action_stride": 4})
    prompt = Prompt(np.zeros((4, 2), np.int32), np.full(4, NO_ACTION))
    performance = Performance(streamer, prompt, Sampling(), Limits(keys=3, ahead=(1, 150)), holds=False)
    performance.playing, performance.ahead = True, 100
    actions = []
    for _ in range(29):
        ticket = performance.next_frame()
        performance.made(ticket, *(x[0] for x in streamer.step([ticket.frame])))
        if ticket.frame.frame >= 4:
            actions.append(ticket.frame.action)
        if ticket.frame.frame == 9:
            assert performance.press(Press(2, at=10)) == 12
    assert actions == [0] * 8 + [2] * 4 + [0] * (len(actions) - 12)
    performance.rewind(18, None)
    assert performance.end == 16
