// The session file (docs/protocol.md): one line of JSON, then the codes.

const FORMAT = "melodjinn-session";
const VERSION = 1;
const MAX_HEADER_BYTES = 16 << 20;
const MAX_FRAMES = 540000;

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

export function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** The file of {header fields, codes: Uint16Array}, as bytes. */
export function packSession(header, codes) {
  const body = new Uint8Array(codes.length * 2);
  const view = new DataView(body.buffer);
  codes.forEach((code, i) => view.setUint16(2 * i, code, true));
  const fields = { format: FORMAT, version: VERSION, ...header, codes_crc32: crc32(body) };
  const line = new TextEncoder().encode(`${JSON.stringify(fields)}\n`);
  const file = new Uint8Array(line.length + body.length);
  file.set(line);
  file.set(body, line.length);
  return file;
}

/** {header, codes} of a file that this model can go on from. Throws an Error with one sentence otherwise. */
export function unpackSession(bytes, manifest) {
  const damaged = new Error("This session file is damaged: save or copy it again.");
  const end = bytes.subarray(0, MAX_HEADER_BYTES).indexOf(10);
  if (end < 0) throw new Error("This is no session file of Melodjinn.");
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, end)));
  } catch {
    throw new Error("This is no session file of Melodjinn.");
  }
  if (header?.format !== FORMAT) throw new Error("This is no session file of Melodjinn.");
  if (header.version !== VERSION)
    throw new Error(
      `This session file is of version ${header.version}, the page knows ${VERSION}: open it with a newer page.`,
    );
  if (header.codec !== manifest.digests.codec)
    throw new Error("This session was played with another codec: open it with the model that it was made with.");
  if (header.action_space !== manifest.digests.action_space)
    throw new Error("This session's keys are those of another model: open it with the model that it was made with.");
  const body = bytes.subarray(end + 1);
  if (!soundHeader(header, manifest) || body.length !== 2 * header.frames * manifest.num_codebooks) throw damaged;
  if (crc32(body) !== header.codes_crc32) throw damaged;
  const view = new DataView(body.buffer, body.byteOffset);
  const codes = Uint16Array.from({ length: body.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  if (codes.some((code) => code >= manifest.codebook_size)) throw damaged;
  return { header, codes };
}

function soundHeader(header, manifest) {
  const { first_frame: first, frames, prompt_frames: prompt, settings, actions } = header;
  const whole = (n, low, high) => Number.isInteger(n) && n >= low && n <= high;
  const { action_stride: stride, keys } = manifest;
  const ascends = (list, frameOf) =>
    Array.isArray(list) &&
    list.length > 0 &&
    frameOf(list[0]) === first &&
    list.every(
      (item, i) => whole(frameOf(item), first, first + frames - 1) && (i === 0 || frameOf(item) > frameOf(list[i - 1])),
    );
  return (
    whole(first, 0, 2 ** 31 - 1) &&
    whole(frames, stride, MAX_FRAMES) &&
    whole(prompt, stride, frames) &&
    [first, frames, prompt].every((n) => n % stride === 0) &&
    header.num_codebooks === manifest.num_codebooks &&
    header.action_stride === stride &&
    ascends(settings, (item) => item?.frame) &&
    settings.every((s) => [s.seed, s.temperature, s.top_k, s.strength].every(Number.isFinite)) &&
    ascends(actions, (item) => item?.[0]) &&
    actions.every(([, action]) => whole(action, 0, keys.length - 1) || action === 65535)
  );
}
