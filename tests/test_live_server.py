"""The live server: what a listener gets, and that no listener, however hostile or slow, disturbs another."""

import asyncio
import contextlib
import io
import json

import numpy as np
import pytest
import soundfile
from aiohttp import ClientSession
from live_client import Client, connected, mock_stage, running, with_client

from melodjinn_jax.live import protocol
from melodjinn_jax.live.listener import MAX_OUTBOX, STALL_SECONDS, Listener
from melodjinn_jax.live.mock import MockStreamer
from melodjinn_jax.live.server import Server
from melodjinn_jax.live.session import Session


def run(scene):
    asyncio.run(asyncio.wait_for(scene(), 60))


def test_the_welcome_tells_what_a_page_needs():
    async def scene(client: Client):
        welcome = client.texts[0]
        assert client.socket.protocol == protocol.SUBPROTOCOL
        assert welcome["type"] == "welcome"
        assert welcome["version"] == 1
        assert welcome["keys"] == [
            {"key": 0, "name": "nothing"},
            {"key": 1, "name": "low bell"},
            {"key": 2, "name": "middle bell"},
            {"key": 3, "name": "high bell"},
        ]
        assert welcome["frame"] == welcome["begin"] == 1
        assert welcome["settings"]["playing"] is False
        assert welcome["limits"]["listeners"] == 4

    with_client(scene)


def test_a_press_sounds_in_the_next_frame_made_and_nothing_sounds_without():
    async def scene(client: Client):
        await client.send("play")
        await client.frames(20)
        await client.send("press", key=2)
        await client.frames(40)
        pressed = [frame for frame, action in client.actions.items() if action]
        assert len(pressed) == 1
        assert client.actions[pressed[0]] == 2
        before = pressed[0] - client.audio[0].frame
        assert before <= 20 + client.texts[0]["settings"]["ahead"] + 1
        assert not client.pcm[:before].any()
        assert client.pcm[before].any()
        assert [audio.frame for audio in client.audio] == list(range(1, len(client.audio) + 1))

    with_client(scene)


def test_no_more_than_the_buffer_is_made_ahead_of_what_was_heard():
    async def scene(client: Client):
        await client.send("buffer", ahead=5)
        await client.send("play")
        await client.send("tempo", bpm=120)
        await client.until("tempo")
        await client.frames(1)
        await asyncio.sleep(0.2)
        await client.send("save")
        content = await client.file()
        session, _ = Session.from_bytes(content)
        heard = client.audio[0].frame
        assert session.end <= heard + 5
        assert len(client.audio) <= 6

    with_client(scene)


def test_presses_wait_for_the_beat_and_for_their_frame():
    async def scene(client: Client):
        await client.send("press", key=1, on_beat=True)
        assert (await client.until("error"))["code"] == "tempo"
        await client.send("tempo", bpm=150, beat=10)  # every 30 frames
        assert await client.until("tempo") == {"type": "tempo", "bpm": 150.0, "beat": 10.0}
        await client.send("press", key=1, on_beat=True)
        assert (await client.until("scheduled"))["frame"] == 10
        await client.send("press", key=3, at=50)
        assert (await client.until("scheduled"))["frame"] == 50
        await client.send("play")
        await client.frames(60)
        assert {frame: a for frame, a in client.actions.items() if a} == {10: 1, 50: 3}
        await client.send("press", key=2, on_beat=True)
        assert (await client.until("scheduled"))["frame"] % 30 == 10

    with_client(scene)


def test_a_session_is_saved_loaded_rewound_and_rendered():
    async def scene(client: Client):
        await client.send("play")
        await client.send("press", key=1, at=5)
        await client.send("press", key=2, at=25)
        await client.frames(40)
        first = list(client.audio)
        await client.send("wav", **{"from": 1})
        sound, rate = soundfile.read(io.BytesIO(await client.file()), dtype="int16")
        assert rate == 24000
        heard = np.concatenate([audio.pcm.reshape(-1) for audio in first])
        np.testing.assert_array_equal(sound[: len(heard)], heard)
        await client.send("save")
        saved = await client.file()
        await client.send("rewind", frame=20)
        take = await client.until("take")
        assert (take["take"], take["frame"], take["begin"]) == (1, 20, 1)
        client.audio.clear()
        await client.frames(3)
        again = [audio for audio in client.audio if audio.take == 1]
        assert again[0].frame == 20
        np.testing.assert_array_equal(again[0].pcm, first[19].pcm)
        await client.socket.send_bytes(bytes([protocol.SESSION]) + saved)
        session, _ = Session.from_bytes(saved)
        take = await client.until("take")
        assert (take["take"], take["frame"]) == (2, session.end)
        await client.send("restart", seed=9)
        take = await client.until("take")
        assert (take["take"], take["frame"], take["seed"]) == (3, 1, 9)

    with_client(scene)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"type": "press", "key": 9}', "message"),
        ('{"type": "rewind", "frame": 77}', "rewind"),
        ('{"type": "follow"}', "tempo"),
        ("nonsense", "message"),
        ('{"type": "press", "key": 1, "at": 3', "message"),
    ],
)
def test_a_bad_message_is_answered_and_the_stream_goes_on(text, code):
    async def scene(client: Client):
        await client.send("play")
        await client.socket.send_str(text)
        assert (await client.until("error"))["code"] == code
        await client.frames(5)

    with_client(scene)


def test_a_session_of_another_model_is_refused_in_one_sentence():
    async def scene(client: Client):
        await client.send("save")
        saved = await client.file()
        for old, new, says in ((b'"codec": "mock"', b'"codec": "tape"', "codec"), (b"melodjinn", b"x", "no session")):
            await client.socket.send_bytes(bytes([protocol.SESSION]) + saved.replace(old, new, 1))
            error = await client.until("error")
            assert error["code"] == "session"
            assert says in error["message"]
        other = saved.replace(b'"action_space": "mock"', b'"action_space": "else"')
        await client.socket.send_bytes(bytes([protocol.SESSION]) + other)
        assert "action space" in (await client.until("error"))["message"]

    with_client(scene)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (["nonsense"] * 20, 1008),
        (['{"type": "release_all"}'] * 150, 1008),
        (["x" * 5000], 1009),
        ([b"\x01" * 9] * 20, 1008),
    ],
)
def test_who_goes_too_far_is_closed_with_a_reason(content, code):
    async def scene(client: Client):
        for message in content:
            send = client.socket.send_str if isinstance(message, str) else client.socket.send_bytes
            await send(message)
        while await client.receive():
            pass
        assert client.socket.close_code == code
        assert client.texts[-1]["type"] == "error"

    with_client(scene)


def test_a_message_beyond_all_limits_closes_the_connection():
    async def scene():
        stage = mock_stage()
        async with running(Server(stage, token="")) as url, connected(url) as client:
            with contextlib.suppress(ConnectionError):  # if it is closed while the rest is still on its way
                await client.socket.send_bytes(bytes(stage.limits.session_bytes + 2))
                while await client.receive():
                    pass
            async with connected(url) as another:
                assert another.texts[0]["type"] == "welcome"

    run(scene)


def test_places_are_limited_and_free_again():
    async def scene():
        async with running(Server(mock_stage(slots=1), token="")) as url:
            async with connected(url) as first:
                async with connected(url) as second:
                    assert second.texts[0]["code"] == "full"
                    assert not await second.receive()
                    assert second.socket.close_code == 1013
                await first.send("play")
                await first.frames(3)
            for _ in range(100):
                async with connected(url) as third:
                    if third.texts[0]["type"] == "welcome":
                        return
                    await asyncio.sleep(0.05)
            raise AssertionError("the place was not given back")

    run(scene)


def test_with_a_token_only_those_who_have_it_play():
    async def scene():
        async with running(Server(mock_stage(), token="sesame")) as url, ClientSession() as session:
            for query, welcome in (
                ("", False),
                ("?token=wrong", False),
                ("?token=%ff", False),
                ("?token=sesame", True),
            ):
                async with connected(url, query) as client:
                    assert (client.texts[0]["type"] == "welcome") == welcome
                async with session.get(f"{url}/server.json{query}") as answer:
                    assert answer.status == (200 if welcome else 401)
                    assert set(await answer.json()) == {"protocol" if welcome else "error"}

    run(scene)


def test_pages_of_other_sites_and_names_that_were_made_to_point_here_are_refused():
    async def scene():
        async with running(Server(mock_stage(), token="")) as url, ClientSession() as session:
            async with session.get(f"{url}/live", headers={"Origin": "http://evil.example"}) as answer:
                assert answer.status == 403
            async with session.get(f"{url}/server.json", headers={"Host": "evil.example"}) as answer:
                assert answer.status == 401
            async with connected(url, headers={"Origin": url}) as client:
                assert client.texts[0]["type"] == "welcome"

    run(scene)


def test_the_page_is_served_and_nothing_beside_it(tmp_path):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>here</p>")
    (page / "play.js").write_text("1")
    (tmp_path / "secret").write_text("no")

    async def scene():
        async with running(Server(mock_stage(), "", page)) as url, ClientSession() as session:
            for path, status, kind in (
                ("/", 200, "text/html"),
                ("/play.js", 200, "text/javascript"),
                ("/none", 404, "text/plain"),
                ("/..%2fsecret", 404, "text/plain"),
                ("/%2e%2e/secret", 404, "text/plain"),
                ("/%00", 404, "text/plain"),
            ):
                async with session.get(url + path, allow_redirects=False) as answer:
                    assert (answer.status, answer.content_type) == (status, kind)
                    assert answer.headers["Referrer-Policy"] == "no-referrer"

    run(scene)


def test_a_reader_that_stops_and_clients_that_vanish_disturb_nobody():
    async def scene():
        async with running(Server(mock_stage(slots=6), token="")) as url, connected(url) as good:
            await good.send("play")
            async with ClientSession() as session:
                stuck = await session.ws_connect(f"{url}/live")
                for _ in range(3):
                    await stuck.send_str('{"type": "buffer", "ahead": 150}')
                    await stuck.send_str('{"type": "play"}')
                for last in ('{"type": "play"}', '{"type": "save"}', '{"type": "wav"}', "nonsense"):
                    gone = await session.ws_connect(f"{url}/live")
                    await gone.send_str(last)
                    gone._response.connection.transport.abort()
                await good.frames(100)
                assert not stuck.closed
            frames = [audio.frame for audio in good.audio]
            assert frames == list(range(1, len(frames) + 1))

    run(scene)


class Transport:
    """A connection with bytes that were not sent yet."""

    def __init__(self):
        self.unsent, self.aborted = 1000, False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("taken", "left"), [(0, True), (1, False)])
def test_who_takes_nothing_of_what_is_sent_is_left_and_who_is_only_slow_is_not(taken, left):
    transport = Transport()
    listener = Listener(None, transport, None, None)
    for _ in range(2 * STALL_SECONDS):
        listener._leave_if_stalled()  # nothing to send: a client may be silent for ever
    assert not transport.aborted
    listener._sending = True
    for _ in range(2 * STALL_SECONDS):
        transport.unsent -= taken
        listener._leave_if_stalled()
    assert transport.aborted == left


def test_what_waits_for_a_reader_is_bounded():
    transport = Transport()
    listener = Listener(None, transport, None, None)
    for _ in range(MAX_OUTBOX):
        listener._say("settings")
    assert not transport.aborted
    listener._say("settings")
    assert transport.aborted


class BrokenStreamer(MockStreamer):
    def step(self, frames):
        raise RuntimeError("the device is gone")


def test_a_model_that_fails_ends_the_connection_with_a_reason():
    async def scene(client: Client):
        await client.send("play")
        while await client.receive():
            pass
        assert client.socket.close_code == 1011
        assert client.texts[-1]["code"] == "server"

    with_client(scene, mock_stage(streamer=BrokenStreamer(2)))


def test_hostile_messages_change_nothing_for_another_listener(rng):
    """A few hundred here; `python benchmarks/live.py --fuzz 10000` sends as many as one likes."""
    words = ["press", "played", "rewind", "wav", "settings", "tempo", "take", "type", "key", "frame", "NaN", "{}", "[["]

    def hostile() -> str | bytes:
        if rng.random() < 0.3:
            return bytes([rng.integers(0, 4)]) + rng.bytes(rng.integers(0, 40))
        fields = {
            str(rng.choice(words)): rng.choice([0, -1, 1e18, 3, 0.5]).item() for _ in range(rng.integers(0, 4))
        } | {"type": str(rng.choice(words))}
        text = json.dumps(fields)
        return text[: rng.integers(0, len(text) + 1)] if rng.random() < 0.5 else text

    async def scene():
        async with running(Server(mock_stage(), token="")) as url, connected(url) as good:
            await good.send("play")
            for _ in range(15):
                async with connected(url) as bad:
                    for _ in range(30):
                        message = hostile()
                        if bad.socket.closed:
                            break
                        if isinstance(message, str):
                            await bad.socket.send_str(message)
                        else:
                            await bad.socket.send_bytes(message)
                await good.frames(5)
            frames = [audio.frame for audio in good.audio]
            assert frames == list(range(1, len(frames) + 1))
            assert not good.pcm.any()
            assert all(text["type"] in ("welcome", "settings", "health") for text in good.texts)

    run(scene)
