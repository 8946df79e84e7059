"""The wire protocol: every good message is understood, every other one refused in one sentence; packets survive."""

import dataclasses
import json
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.live import protocol
from melodjinn_jax.live.protocol import Audio, Limits, Load, ProtocolError, pack_audio, parse_binary, parse_text

LIMITS = Limits(keys=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS = list(typing.get_args(protocol.Message))
KINDS.remove(Load)


def wire_name(kind: type) -> str:
    return next(name for name, known in protocol._TYPES.items() if known is kind)


@st.composite
def good_messages(draw):
    """A message and its text."""
    kind = draw(st.sampled_from(KINDS))
    values = {}
    for field, hint in typing.get_type_hints(kind).items():
        optional = type(None) in typing.get_args(hint)
        if optional and draw(st.booleans()):
            continue
        if bool in (hint, *typing.get_args(hint)):
            values[field] = draw(st.booleans())
            continue
        low, high = LIMITS.range_of(field)
        is_real = float in (hint, *typing.get_args(hint))
        values[field] = draw(st.floats(low, high) if is_real else st.integers(int(low), int(high)))
    wire = {"from" if name == "from_frame" else name: value for name, value in values.items()}
    return kind(**values), json.dumps({"type": wire_name(kind), **wire})


def refuses(parse, content):
    """Whether it is refused, which is never with anything but one sentence."""
    refusal = None
    try:
        parse(content, LIMITS)
    except ProtocolError as error:
        refusal = error
    if refusal is None:
        return False
    assert refusal.code in ("message", "size")
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 300
    return True


@given(good_messages())
def test_good_messages_are_understood(message_and_text):
    message, text = message_and_text
    assert parse_text(text, LIMITS) == message


@settings(max_examples=300)
@given(st.text() | JSON.map(json.dumps) | st.dictionaries(st.text(max_size=8), JSON).map(json.dumps))
def test_what_is_no_message_is_refused(text):
    assert refuses(parse_text, text)


@settings(max_examples=300)
@given(good_messages(), st.data())
def test_a_field_of_another_kind_is_refused_or_good(message_and_text, data):
    fields = json.loads(message_and_text[1])
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(JSON)
    if not refuses(parse_text, json.dumps(fields)):
        message = parse_text(json.dumps(fields), LIMITS)
        for value in dataclasses.asdict(message).values():
            assert value is None or type(value) in (bool, int, float)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"type": "press", "key": 4}', "key of press must lie between 0 and 3"),
        ('{"type": "press", "key": true}', "key of press must be a whole number"),
        ('{"type": "press", "key": 1, "hold": 1}', "hold of press must be true or false"),
        ('{"type": "press"}', "press needs the field key"),
        ('{"type": "play", "loud": 1}', "play has no field 'loud'"),
        ('{"type": "settings", "temperature": NaN}', "a text message must be one JSON object"),
        ('{"type": "settings", "temperature": 1e999}', "temperature of settings must lie between 0 and 2"),
        ("[" * 4000, "a text message must be one JSON object"),
        ('{"type": "play"' + " " * 4096 + "}", "a text message may have 4096 bytes at most"),
        ('{"type": "\ud800"}', "type must be one of"),
    ],
)
def test_the_sentence_says_what_is_wrong(text, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        parse_text(text, LIMITS)


@given(st.binary(max_size=64))
def test_binary_messages_are_sessions_or_refused(content):
    if content[:1] == b"\x02":
        assert parse_binary(content, LIMITS) == Load(content[1:])
    else:
        assert refuses(parse_binary, content)


def test_a_session_beyond_the_limit_is_refused():
    with pytest.raises(ProtocolError) as refused:
        parse_binary(b"\x02" + bytes(9), Limits(session_bytes=8))
    assert refused.value.code == "size"


@given(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_audio_packets_are_read_back_equal(take, frame, frames, seed):
    rng = np.random.default_rng(seed)
    audio = Audio(
        take,
        frame,
        rng.integers(0, 65536, frames).astype(np.uint16),
        rng.integers(-32768, 32768, (frames, 8)).astype(np.int16),
    )
    read = protocol.unpack_audio(pack_audio(audio))
    assert (read.take, read.frame) == (take, frame)
    np.testing.assert_array_equal(read.actions, audio.actions)
    np.testing.assert_array_equal(read.pcm, audio.pcm)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_no_damaged_packet_is_read(content, cut):
    packet = pack_audio(Audio(0, 0, np.zeros(1, np.uint16), np.zeros((1, 8), np.int16)))
    for damaged in (content, packet[:cut]):
        if damaged != packet:
            with pytest.raises(ValueError, match="packet"):
                protocol.unpack_audio(damaged)
