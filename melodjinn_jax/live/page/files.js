// What a history becomes when it leaves the page.

import { packSession } from "./session.js";
import { packWav } from "./wav.js";

export const WAV_FRAMES = 45000;
const DECODE_CHUNK = 64; // frames

/** The session file; a block that is not complete is left out. */
export function sessionFile(manifest, history) {
  const end = history.end - (history.end % manifest.action_stride);
  const { name, sample_rate, hop_length, num_codebooks, codebook_size, action_stride, keys, digests } = manifest;
  const header = {
    name,
    ...digests,
    sample_rate,
    hop_length,
    num_codebooks,
    codebook_size,
    action_stride,
    num_keys: keys.length - 1,
    first_frame: history.begin,
    frames: end - history.begin,
    prompt_frames: history.promptFrames,
    settings: history.settings.filter((one) => one.frame < end),
    actions: history.actionChanges(end),
    made_with: { engine: "onnx" },
  };
  return packSession(header, history.codesOf(history.begin, end));
}

/**
 * The sound from frame `from` on as a WAV file, decoded from the very beginning, so that the same session always gives
 * the same file.
 */
export async function soundFile(model, { sample_rate: rate, hop_length: hop, num_codebooks: Q }, history, from) {
  const { begin, end } = history;
  const codes = history.codesOf(begin, end).slice(); // the music goes on meanwhile
  const first = Math.max(begin, from, end - WAV_FRAMES);
  const sound = new Float32Array(Math.max(0, end - first) * hop);
  const decoder = model.newDecoder();
  for (let frame = begin; frame < end; frame += DECODE_CHUNK) {
    const chunk = await decoder.decode(codes.subarray((frame - begin) * Q, (frame - begin + DECODE_CHUNK) * Q));
    const unwanted = Math.min(chunk.length, Math.max(0, first - frame) * hop);
    sound.set(chunk.subarray(unwanted), Math.max(0, frame - first) * hop);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  return packWav(sound, rate);
}
