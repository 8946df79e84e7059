"""What the tests of the pipeline share: a codec without training, and recordings to feed it."""

from pathlib import Path

import numpy as np
import soundfile

from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE


class EnergyCodec:
    """Stands for a codec: the codes of a frame are its own level and that of the frame before, carried as state."""

    sample_rate, hop_length, num_codebooks, codebook_size, digest = SAMPLE_RATE, HOP_LENGTH, 2, 256, "energy"
    kind, chunk_frames, start_frames = "energy", 4, 1

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        level = np.abs(waveform.reshape(len(waveform), -1, HOP_LENGTH)).max(axis=-1)
        before = np.pad(level, ((0, 0), (1, 0)))[:, :-1]
        return np.stack([level * 255, before * 255], axis=-1).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.repeat(codes[..., 0] / np.float32(255), HOP_LENGTH, axis=1)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "codec.json").write_text("{}")

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, HOP_LENGTH), np.float32)

    def encode_chunk(self, state: np.ndarray, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = self.encode(np.concatenate([state, waveform], axis=1))[:, 1:]
        return waveform[:, -HOP_LENGTH:], codes


def use_energy_codec(patch) -> None:
    """Let the pipeline make the stub instead of fitting a codec."""
    from melodjinn_jax.ingest import run

    patch(run, "make_codec", lambda *arguments: EnergyCodec())
    patch(run, "load_codec", lambda folder: EnergyCodec())


def tune(seed: int, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Tones at random, four a second, over a little noise: another tune for every seed."""
    rng = np.random.default_rng(seed)
    pitches = rng.uniform(150, 2000, (int(4 * seconds) + 1, 3))
    time = np.arange(int(seconds * rate)) / rate
    now = pitches[(4 * time).astype(int)]
    sound = np.sin(2 * np.pi * now * time[:, None]).sum(axis=1) * np.exp(-3 * (time % 0.25))
    return (0.2 * sound + 0.002 * rng.normal(size=len(time))).astype(np.float32)


def write_collection(folder: Path, artists: int = 5, tracks: int = 2) -> None:
    """`artists` folders of `tracks` short tunes each, in several formats."""
    formats = (("wav", 24000), ("flac", 44100), ("ogg", 32000), ("mp3", 48000))
    for artist in range(artists):
        (folder / f"artist {artist}").mkdir(parents=True)
        for track in range(tracks):
            number = artist * tracks + track
            suffix, rate = formats[number % len(formats)]
            sound = tune(number, 4 + 0.37 * number, rate)
            soundfile.write(folder / f"artist {artist}" / f"{track}.{suffix}", sound, rate)
