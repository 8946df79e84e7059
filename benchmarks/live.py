"""Live play: how fast frames come, and whether the server stands what clients do to it.

    python benchmarks/live.py --workdir runs/toy_drums      # the generator: speed of 1 stream and of 16 at once
    python benchmarks/live.py --fuzz 10000 --connections 100  # the protocol, on the mock's server

The first prints what one frame of all streams takes, sound included. Times are of the wall; on a machine that does
other work read the processor's time beside them. The second sends malformed and hostile messages over many connections,
with readers that stop reading and clients that vanish in every state, while one good listener plays. It exits non-zero
if the server died, if the listener missed a frame, or if the server's memory grew by more than `--tolerance` MiB in the
second half.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from melodjinn_jax.live import protocol
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.session import Sampling
from melodjinn_jax.live.stream import NextFrame, StreamingGenerator, dispatch_in_place
from melodjinn_jax.training.run import load_run, tune_process

WORDS = ("press", "release", "played", "rewind", "wav", "save", "settings", "tempo", "tap", "follow", "buffer", "play")
FIELDS = ("key", "frame", "take", "bpm", "temperature", "top_k", "strength", "ahead", "hold", "at", "from", "seed", "x")
VALUES = (0, 1, -1, 2**31, 10**30, 0.5, 1e308, "1", None, True, [], {}, [[1]], "\u0000", "é" * 50)


def time_streams(streamer: StreamingGenerator, codes: np.ndarray, frames: int) -> tuple[np.ndarray, float]:
    """Milliseconds of each frame of all streams, and of the processor's time for a frame; a key every 12 frames."""
    for slot in range(streamer.slots):
        streamer.start(slot, 0, codes[: streamer.start_frames])
    samplings = [Sampling(seed=slot) for slot in range(streamer.slots)]
    times, processor = [], time.process_time()
    for frame in range(frames):
        key = frame // 12 % streamer.instrument.num_keys + 1 if frame % 12 == 0 else 0
        began = time.perf_counter()
        streamer.step([NextFrame(frame, key, sampling) for sampling in samplings])
        times.append(1000 * (time.perf_counter() - began))
    return np.array(times), 1000 * (time.process_time() - processor) / frames


def measure_speed(workdir: str, slots: list[int], frames: int) -> None:
    dispatch_in_place()
    run = load_run(workdir)
    tune_process(run.config.runtime.compile_cache)
    codes = make_prompt(run, "").codes
    print("|streams|frame, median|p99|times real time, each|processor per frame|load|\n" + "|---" * 6 + "|")
    for count in slots:
        streamer = StreamingGenerator(run, count)
        times, processor = time_streams(streamer, codes, frames)
        budget = 1000 / streamer.instrument.frame_rate
        median, worst = np.median(times), np.percentile(times, 99)
        columns = [f"{median:.3f} ms", f"{worst:.3f} ms", f"{budget / median:.0f}", f"{processor:.3f} ms"]
        print(f"|{count}|{'|'.join(columns)}|{os.getloadavg()[0]:.1f}|", flush=True)


def hostile_message(rng: random.Random) -> str | bytes:
    """Anything but a good message, mostly."""
    kind = rng.randrange(5)
    if kind == 0:
        return bytes([rng.randrange(4)]) + rng.randbytes(rng.randrange(200))
    if kind == 1:
        return "".join(chr(rng.choice((34, 91, 123, 0x4E2D, 48, 44))) for _ in range(rng.randrange(300)))
    fields = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randrange(4))}
    text = json.dumps({"type": rng.choice(WORDS), **fields})
    return text[: rng.randrange(len(text) + 1)] if kind == 2 else text


async def attack(session: aiohttp.ClientSession, url: str, messages: int, rng: random.Random) -> int:
    """One connection that sends up to so many messages, then vanishes, stops reading, or closes; returns how many."""
    sent = 0
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, asyncio.TimeoutError):
        socket = await session.ws_connect(f"{url}/live", timeout=aiohttp.ClientWSTimeout(ws_close=2))
        if rng.random() < 0.5:
            await socket.send_str('{"type": "play"}')
        for _ in range(messages):
            message = hostile_message(rng)
            send = socket.send_str if isinstance(message, str) else socket.send_bytes
            await asyncio.wait_for(send(message), 5)  # type: ignore[operator]
            sent += 1
            if rng.random() < 0.05:
                await asyncio.sleep(0.01)
        ending = rng.randrange(3)
        if ending == 0:
            await socket.close()
        else:
            if ending == 1:  # reads no more, for a while
                await asyncio.sleep(rng.random())
            connection = socket._response.connection
            if connection is not None and connection.transport is not None:  # else it is closed already
                connection.transport.abort()
    return sent


async def attack_below(url: str, rng: random.Random) -> None:
    """A connection that does not get as far as the protocol."""
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    start = b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    whole = start + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    writer.write(rng.choice((rng.randbytes(100), start, whole + rng.randbytes(200), whole)))
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        await asyncio.sleep(0.2 * rng.random())
    writer.transport.abort()


async def listen(session: aiohttp.ClientSession, url: str, heard: list[int], done: asyncio.Event) -> None:
    """A good listener: notes the number of every frame."""
    async with session.ws_connect(f"{url}/live") as socket:
        await socket.send_str('{"type": "play"}')
        while not done.is_set():
            message = await socket.receive(timeout=60)
            if message.type is aiohttp.WSMsgType.BINARY:
                audio = protocol.unpack_audio(message.data)
                heard.append(audio.frame)
                # At about the speed of sound.
                await asyncio.sleep(1 / 75)
                await socket.send_str(json.dumps({"type": "played", "take": audio.take, "frame": audio.frame}))
            elif message.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionError(f"the good listener was closed ({socket.close_code})")


def memory_of(process: int) -> float:
    """MiB that a process has in memory."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def siege(url: str, server: int, total: int, connections: int) -> dict[str, Any]:
    """All the attacks, in waves of so many connections, with a good listener beside them."""
    rng, heard, done, sent = random.Random(0), [], asyncio.Event(), 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        listener = asyncio.create_task(listen(session, url, heard, done))
        await asyncio.sleep(1)
        each = max(1, total // (10 * connections))
        before = None
        while sent < total and not listener.done():
            wave = [attack(session, url, each, rng) for _ in range(connections)]
            below = [attack_below(url, rng) for _ in range(connections // 10)]
            sent += sum(await asyncio.gather(*wave))
            await asyncio.gather(*below)
            if before is None and 2 * sent >= total:  # by then the server has had all that it needs
                await asyncio.sleep(1)
                before = memory_of(server)
        await asyncio.sleep(3)
        after = memory_of(server)
        done.set()
        await listener
    gaps = sum(b - a != 1 for a, b in itertools.pairwise(heard))
    return {"messages": sent, "before": before, "after": after, "heard": len(heard), "gaps": gaps}


def measure_siege(total: int, connections: int, tolerance: float) -> int:
    command = [sys.executable, "-m", "melodjinn_jax.play", "--mock", "--no-browser", "--port", "0", "--listeners", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[2].rstrip("/")
            found = asyncio.run(siege(url, server.pid, total, connections))
            alive = server.poll() is None
        finally:
            server.terminate()
    growth = found["after"] - found["before"]
    end = "lives" if alive else "died"
    print(f"{found['messages']} messages over waves of {connections} connections; the server {end}")
    print(f"good listener: {found['heard']} frames, {found['gaps']} missed")
    print(f"memory: {found['before']:.1f} MiB after half of the messages, {found['after']:.1f} MiB after all")
    return int(not alive or found["gaps"] > 0 or found["heard"] < 75 or growth > tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", help="a trained run, to time its generator")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--fuzz", type=int, default=0, help="messages to send to the mock's server")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--tolerance", type=float, default=8.0)
    arguments = parser.parse_args()
    if arguments.workdir:
        measure_speed(arguments.workdir, arguments.streams, arguments.frames)
    return measure_siege(arguments.fuzz, arguments.connections, arguments.tolerance) if arguments.fuzz else 0


if __name__ == "__main__":
    sys.exit(main())
