// A WAV file of 16 bits, mono.

export function packWav(sound, sampleRate) {
  const file = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const text = (offset, letters) =>
    [...letters].forEach((letter, i) => file.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  file.setUint32(4, 36 + 2 * sound.length, true);
  text(8, "WAVEfmt ");
  file.setUint32(16, 16, true);
  file.setUint16(20, 1, true); // PCM
  file.setUint16(22, 1, true); // mono
  file.setUint32(24, sampleRate, true);
  file.setUint32(28, 2 * sampleRate, true);
  file.setUint16(32, 2, true);
  file.setUint16(34, 16, true);
  text(36, "data");
  file.setUint32(40, 2 * sound.length, true);
  sound.forEach((value, i) =>
    file.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true),
  );
  return new Uint8Array(file.buffer);
}
