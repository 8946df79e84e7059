"""Sessions: files that are read back as they were, whatever was played, and refused if a bit of them is another."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.live.session import Instrument, Sampling, Session, model_digest, require_instrument

INSTRUMENT = Instrument("tiny", "m" * 64, "c" * 64, "a" * 64, 24000, 320, 2, 256, 2, 3)
SAMPLINGS = st.builds(
    Sampling,
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 256),
    strength=st.floats(0, 3),
)


NUMBERS = st.integers() | st.floats()
NONSENSE = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=5)
    | st.lists(NUMBERS | st.lists(st.integers(-1, 99), max_size=3), max_size=3)
    | st.just([{}])
)


@st.composite
def sessions(draw):
    """A session that was played, rewound and played on."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stride = draw(st.sampled_from([1, 2, 4]))
    instrument = dataclasses.replace(INSTRUMENT, action_stride=stride)
    prompt = rng.integers(0, 256, (stride * draw(st.integers(1, 4)), 2))
    session = Session(instrument, draw(SAMPLINGS), prompt, np.full(len(prompt), NO_ACTION))
    for _ in range(draw(st.integers(0, 4))):
        for _ in range(draw(st.integers(0, 6))):
            action = int(rng.integers(0, 4))
            for _ in range(stride):
                session.append(rng.integers(0, 256, 2), action)
        what = draw(st.sampled_from(["rewind", "change", "forget"]))
        if what == "rewind":
            session.rewind(draw(st.integers(session.begin, session.end)))
        elif what == "change":
            session.change(draw(SAMPLINGS))
        else:
            blocks = draw(st.integers(session.first_frame // stride, session.end // stride - 1))
            session.forget(blocks * stride, stride)
    return session


def state(session):
    entries = [(frame, s) for frame, s in session.settings if frame < session.end]
    return session.instrument, session.first_frame, session.prompt_frames, entries


@given(sessions())
def test_a_session_is_read_back_as_it_was(session):
    made_with = {"engine": "jax", "slot": 1}
    read, made = Session.from_bytes(session.to_bytes(made_with))
    assert made == made_with
    assert state(read) == state(session)
    np.testing.assert_array_equal(read.codes, session.codes)
    np.testing.assert_array_equal(read.actions, session.actions)
    assert read.to_bytes(made) == session.to_bytes(made_with)
    assert [read.sampling(f) for f in range(read.first_frame, read.end)] == [
        session.sampling(f) for f in range(session.first_frame, session.end)
    ]


@given(sessions())
def test_a_copy_stays_as_it_is(session):
    copy, before = session.copy(), session.to_bytes({})
    session.append(np.array([1, 2]), 3)
    session.rewind(session.begin)
    assert copy.to_bytes({}) == before


def refused(content: bytes) -> bool:
    """Whether a session file is refused, with nothing but a sentence."""
    try:
        Session.from_bytes(content)
    except UserError as error:
        return "\n" not in str(error) and len(str(error)) < 300
    return False


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_what_is_no_session_is_refused(content):
    assert refused(content)


@settings(max_examples=300)
@given(sessions(), st.data())
def test_damage_is_refused_or_harmless(session, data):
    content = bytearray(session.to_bytes({"engine": "jax"}))
    line = content.index(b"\n")
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    if place > line:
        assert refused(bytes(content))
    elif not refused(bytes(content)):
        # A number or a name of the header became another one; the codes are still what was played.
        read, _ = Session.from_bytes(bytes(content))
        np.testing.assert_array_equal(read.codes.reshape(-1), session.codes.reshape(-1))
    assert refused(bytes(content[: data.draw(st.integers(0, len(content) - 1))]))


@settings(max_examples=200)
@given(sessions(), st.data())
def test_a_header_of_nonsense_is_refused_or_harmless(session, data):
    line, _, codes = session.to_bytes({}).partition(b"\n")
    header = json.loads(line)
    field = data.draw(st.sampled_from(sorted(header)))
    header[field] = data.draw(NONSENSE)
    content = json.dumps(header).encode() + b"\n" + codes
    if not refused(content):
        read, made = Session.from_bytes(content)
        assert len(read.codes) == len(read.actions)
        assert read.codes.max() < read.instrument.codebook_size
        assert read.to_bytes(made)


def test_a_session_of_another_codec_or_action_space_is_named():
    session = Session(INSTRUMENT, Sampling(), np.zeros((2, 2)), np.zeros(2))
    require_instrument(session, INSTRUMENT, to_continue=True)
    with pytest.raises(UserError, match="the codec cccccccccccc, but this model has dddddddddddd: open it with"):
        require_instrument(session, dataclasses.replace(INSTRUMENT, codec="d" * 64), to_continue=False)
    other = dataclasses.replace(INSTRUMENT, action_space="d" * 64)
    require_instrument(session, other, to_continue=False)
    with pytest.raises(UserError, match="the action space aaaaaaaaaaaa"):
        require_instrument(session, other, to_continue=True)


def test_the_toys_sessions_take_some_3_kbit_a_second():
    session = Session(dataclasses.replace(INSTRUMENT, action_stride=1), Sampling(), np.zeros((1, 2)), np.zeros(1))
    rng = np.random.default_rng(0)
    for _ in range(60 * 75):
        session.append(rng.integers(0, 256, 2), int(rng.integers(1, 4)) if rng.random() < 4 / 75 else 0)
    assert 8 * len(session.to_bytes({})) / 60 < 3500


def test_the_models_digest_is_of_names_and_numbers():
    params = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}
    same = model_digest({"b": params["b"].copy(), "a": params["a"]})
    assert model_digest(params) == same
    assert model_digest({"a": params["a"], "c": params["b"]}) != same
    assert model_digest({**params, "a": params["a"] + 1e-30}) != same
