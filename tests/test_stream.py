"""The streaming generator: equal to whole-clip generation and decoding, and deaf to what its neighbours do."""

import numpy as np
import pytest
from encodec_weights import published_weights
from live_runs import random_run

from melodjinn_jax.codecs import EncodecCodec
from melodjinn_jax.codecs.encodec.weights import fold
from melodjinn_jax.data.audio import to_int16
from melodjinn_jax.live.generator import generate
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.live.session import Sampling
from melodjinn_jax.live.stream import NextFrame, StreamingGenerator

SLOTS = 3
FRAMES = 40
SAMPLING = Sampling(seed=5, temperature=0.8)


@pytest.fixture(scope="module")
def run():
    return random_run()


@pytest.fixture(scope="module")
def streamer(run):
    return StreamingGenerator(run, SLOTS)


def script(rng, run, sampling, frames=FRAMES):
    """A stream's frames to be, the first given; actions by block."""
    stride = run.action_space.stride
    keys = rng.integers(0, 4, frames // stride)
    actions = np.repeat(np.concatenate([[NO_ACTION], keys[1:]]), stride)
    prompt = rng.integers(0, 16, (stride, 2))
    return [NextFrame(f, int(actions[f]), sampling, prompt[f] if f < stride else None, f > 0) for f in range(frames)]


def play(streamer, scripts, pauses=None):
    """Play a script in each slot that has one, each pausing at random if `pauses` is a generator: codes and sound."""
    slots, scripts = streamer.slots, [frames or [] for frames in scripts]
    at, codes, sound = [0] * slots, [[] for _ in range(slots)], [[] for _ in range(slots)]
    for slot, frames in enumerate(scripts):
        if frames:
            streamer.start(slot, frames[0].frame, np.asarray([frames[0].given]))
    while any(at[slot] < len(frames) for slot, frames in enumerate(scripts)):
        goes = [at[s] < len(f) and (pauses is None or pauses.random() < 0.5) for s, f in enumerate(scripts)]
        made, pcm = streamer.step([f[at[s]] if goes[s] else None for s, f in enumerate(scripts)])
        for slot in np.flatnonzero(goes):
            codes[slot].append(made[slot])
            sound[slot].append(pcm[slot])
            at[slot] += 1
    return [np.array(c) for c in codes], [np.array(s).reshape(-1) for s in sound]


def whole_clip(run, frames):
    """The same stream by `generate`: codes [F, Q]."""
    stride, sampling = run.action_space.stride, frames[0].sampling
    given = np.zeros((1, len(frames), 2), np.int32)
    given[0, :stride] = [frame.given for frame in frames[:stride]]
    keys = np.array([[frame.action for frame in frames[stride::stride]]])
    options = {"seed": sampling.seed, "temperature": sampling.temperature, "top_k": sampling.top_k}
    return generate(run.models, run.state["dynamics"], given, stride, keys, **options)[0]


@pytest.mark.parametrize(("stride", "layout"), [(1, "flat"), (4, "depth")])
def test_streams_equal_whole_clips_whoever_plays_beside_them(stride, layout):
    run, rng = random_run(stride, layout), np.random.default_rng(0)
    streamer = StreamingGenerator(run, SLOTS)
    samplings = (Sampling(1, 0.0), Sampling(2**32 - 1, 1.0), Sampling(3, 0.7, top_k=2))
    scripts = [script(rng, run, sampling) for sampling in samplings]
    codes, sound = play(streamer, scripts, pauses=rng)
    for slot, frames in enumerate(scripts):
        np.testing.assert_array_equal(codes[slot], whole_clip(run, frames))
        hop = run.codec.hop_length
        whole = to_int16(streamer.render(codes[slot]))[hop:]
        assert np.abs(whole.astype(int) - sound[slot][hop:]).max() <= 1
        assert whole.any()


def test_a_stream_of_encodec_sounds_as_the_whole_clip_does():
    codec = EncodecCodec(fold(published_weights(), "drawn"), 1.5)
    run, rng, hop = random_run(codec=codec), np.random.default_rng(0), codec.hop_length
    streamer = StreamingGenerator(run, 1)
    start = streamer.start_frames
    given = rng.integers(0, codec.codebook_size, (start, codec.num_codebooks))
    streamer.start(0, 0, given)
    codes, sound = [], []
    for frame in range(start + 20):
        is_given = frame < start
        made, pcm = streamer.step([NextFrame(frame, 1, SAMPLING, given[frame] if is_given else None, not is_given)])
        codes.append(made[0])
        sound += [] if is_given else [pcm[0]]
    whole = to_int16(streamer.render(np.array(codes)))[start * hop :]
    assert np.abs(whole.astype(int) - np.concatenate(sound)).max() <= 1
    assert len(np.unique(np.array(codes)[start:])) > 1
    assert whole.any()


def test_a_stream_is_bit_for_bit_the_same_in_any_company(run, streamer, rng):
    frames = script(rng, run, SAMPLING)
    for slot in range(SLOTS):
        results = []
        for company in range(2):
            others = [script(np.random.default_rng(company), run, Sampling(company, 1.0, company)) for _ in range(3)]
            others[slot] = frames
            codes, sound = play(streamer, others if company else [None] * slot + [frames] + [None] * (2 - slot))
            results.append((codes[slot], sound[slot]))
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])


def test_a_primed_stream_goes_on_as_if_it_had_played_it_all(run, streamer, rng):
    frames = script(rng, run, SAMPLING, frames=60)
    (codes, _, _), (sound, _, _) = play(streamer, [frames, None, None])
    moment, primed = 45, streamer.priming_frames
    assert primed < moment
    again = [
        NextFrame(f.frame, f.action, f.sampling, codes[f.frame] if f.frame < moment else None, i > 0)
        for i, f in enumerate(frames[moment - primed :])
    ]
    (more, _, _), (more_sound, _, _) = play(streamer, [again, None, None])
    np.testing.assert_array_equal(more, codes[moment - primed :])
    hop = run.codec.hop_length
    np.testing.assert_array_equal(more_sound[-(60 - moment) * hop :], sound[moment * hop :])


def test_strength_0_is_the_null_action_and_1_the_action_itself(run, streamer, rng):
    def heard(strength, action):
        sampling = Sampling(7, 0.5, strength=strength)
        frames = [NextFrame(0, NO_ACTION, sampling, np.array([1, 2]))]
        frames += [NextFrame(f, action, sampling) for f in range(1, FRAMES)]
        return play(streamer, [frames, None, None])[0][0]

    free = heard(1.0, NO_ACTION)
    np.testing.assert_array_equal(heard(0.0, 2), free)
    np.testing.assert_array_equal(heard(3.0, NO_ACTION), free)
    assert (heard(1.0, 2) != free).any()
    assert (heard(2.0, 2) != heard(1.0, 2)).any()


def test_it_is_compiled_once_for_streams_with_and_once_without_top_k(streamer, run, rng):
    before = streamer._advance._cache_size()
    assert before == 2
    play(streamer, [script(rng, run, Sampling(top_k=k)) for k in (0, 3, 9)])
    assert streamer._advance._cache_size() == before


def test_one_slot_alone_plays_too(run, rng):
    alone = StreamingGenerator(run, 1)
    frames = script(rng, run, SAMPLING)
    np.testing.assert_array_equal(play(alone, [frames])[0][0], whole_clip(run, frames))
