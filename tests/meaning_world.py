"""Made-up instruments of which everything is known: one that obeys, one that is deaf, and a compressor."""

import numpy as np

from melodjinn_jax.evaluation.effects import Clips

RATE, HOP, FRAMES = 24000, 320, 40
LOUDNESS = 0.2


class Obedient:
    """Each key has a sound of its own, which comes when it is pressed and never else. A code is the key of its frame.

    Sounds are sine waves of whole periods in a frame that fade to a third from frame to frame, so that a frame tells
    whether a key was pressed in it.
    """

    stride, sample_rate, hop_length, has_lam = 1, RATE, HOP, True
    pitches = (4, 13, 60)
    tail = 5
    # Nats per token: what the action cannot know, what it can, and what a wrong one costs.
    unknown, told, wrong = 1.0, 0.2, 3.0

    def __init__(self):
        self.num_keys, self.null_action = len(self.pitches), len(self.pitches) + 1
        angles = 2 * np.pi * np.arange(HOP)[:, None] * np.array(self.pitches) / HOP
        self.waves = LOUDNESS * np.sin(angles).T

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> np.ndarray:
        """Events int [clips, frames], seven frames apart or more."""
        events = np.zeros((clips, frames), int)
        for row in events:
            at = int(rng.integers(2, 9))
            while at < frames:
                row[at] = rng.integers(1, self.num_keys + 1)
                at += int(rng.integers(7, 14))
        return events

    def sound(self, events: np.ndarray, seed: int = 0) -> np.ndarray:
        """Waveform float32 [B, F * H] over faint noise."""
        B, F = events.shape
        amplitude = np.zeros((B, F + self.tail, self.num_keys))
        for delay in range(self.tail):
            amplitude[:, delay : F + delay] += 0.3**delay * (events[..., None] == np.arange(1, self.num_keys + 1))
        noise = 3e-3 * np.random.default_rng(seed).standard_normal((B, F, HOP))
        return (amplitude[:, :F] @ self.waves + noise).reshape(B, -1).astype(np.float32)

    def clips(self, count: int = 24) -> Clips:
        events = self.draw(np.random.default_rng(7), count, FRAMES)
        return Clips(self.sound(events, 5), events[..., None], events[:, 1:], np.arange(count))

    def answer(self, codes, prompt_frames, keys, seed):
        """Events int [B, F] after a prompt."""
        return np.concatenate([codes[:, :prompt_frames, 0], keys[:, prompt_frames - 1 :]], axis=1)

    def losses(self, codes, keys):
        events = codes[:, 1:, 0]
        told = np.where(keys == events, self.unknown, self.wrong)
        told = np.where(keys == self.null_action, self.unknown + self.told, told)
        return np.concatenate([np.full((len(codes), 1), self.unknown), told], axis=1)

    def play(self, codes, prompt_frames, keys, temperature, seed=0):
        return self.sound(self.answer(codes, prompt_frames, keys, seed), seed + 1)

    def play_along(self, codes, keys, temperature):
        return self.sound(self.answer(codes, 1, keys, 3), 3)

    def decode(self, codes):
        return self.sound(codes[..., 0], 4)

    def listen(self, waveform):
        frames = waveform.reshape(len(waveform), -1, HOP)
        likeness = frames @ self.waves.T / np.sum(self.waves**2, axis=1)
        keys = np.where(likeness.max(axis=-1) > 0.6, likeness.argmax(axis=-1) + 1, 0)
        return keys[:, 1:]

    def listen_to(self, recording, codes):
        return self.listen(recording)


class Deaf(Obedient):
    """It plays on as it likes, whatever is pressed, and foretells as well without actions as with them."""

    def answer(self, codes, prompt_frames, keys, seed):
        events = self.draw(np.random.default_rng((seed, len(codes), 1)), *codes.shape[:2])
        events[:, :prompt_frames] = codes[:, :prompt_frames, 0]
        return events

    def losses(self, codes, keys):
        return 1.0 + codes[..., 0] / 10


class Compressor(Obedient):
    """An action for every possible frame of sound: it says which, and so all that there is to say."""

    pitches = tuple(range(1, 41))
    tail = 1
    unknown, told, wrong = 0.01, np.log(40.0), 10.0

    def draw(self, rng, clips, frames):
        return rng.integers(1, self.num_keys + 1, (clips, frames))
