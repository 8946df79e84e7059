// The exported graphs in ONNX Runtime Web: files fetched and verified, one frame at a time, with the rings kept here.

const SIMD_PROBE = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
];
const DYNAMICS = "model/dynamics.onnx";
const DECODER = "model/decoder.onnx";
const RUNTIME = "runtime/ort.wasm.bundle.min.mjs";
const RUNTIME_BINARY = "runtime/ort-wasm-simd-threaded.wasm";

export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD_PROBE));
}

/** The site's manifest. Throws an Error with one sentence if it is missing or of another version. */
export async function fetchManifest(base) {
  const bytes = await fetchBytes(new URL("model/manifest.json", base), "model/manifest.json");
  try {
    const manifest = JSON.parse(new TextDecoder().decode(bytes));
    if (manifest.format === "melodjinn-site" && manifest.version === 1) return manifest;
  } catch {
    // said below
  }
  throw new Error("The file model/manifest.json is damaged or of another version: export the site again.");
}

async function fetchBytes(url, name, onChunk = () => {}) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`The file ${name} cannot be fetched: check the connection and load the page again.`);
  }
  if (!response.ok) throw new Error(`The file ${name} is missing from this site: export the site again, or upload it.`);
  const chunks = [];
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    onChunk(value.length);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function fetchVerified(base, name, { sha256 }, onChunk) {
  const bytes = await fetchBytes(new URL(name, base), name, onChunk);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== sha256)
    throw new Error(`The file ${name} was altered or cut short: export the site again, or upload it again.`);
  return bytes;
}

/** Random numbers of one frame from the seed and the frame's number alone: Gumbel distributed, times `temperature`. */
export function gumbelNoise(into, seed, frame, temperature) {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(frame + 1, 0xc2b2ae35);
  for (let i = 0; i < into.length; i++) {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    const uniform = (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 2 ** 32;
    into[i] = -Math.log(-Math.log(uniform)) * temperature;
  }
}

export class Model {
  /** Fetch, verify and start the model. `onProgress` is told the share of bytes that have come. */
  static async load(base, manifest, onProgress) {
    const total = Object.values(manifest.files).reduce((sum, file) => sum + file.bytes, 0);
    let come = 0;
    const onChunk = (length) => onProgress((come += length) / total);
    const names = Object.keys(manifest.files);
    const contents = await Promise.all(names.map((name) => fetchVerified(base, name, manifest.files[name], onChunk)));
    const files = Object.fromEntries(names.map((name, i) => [name, contents[i]]));
    const ort = await import(new URL(RUNTIME, base));
    ort.env.wasm.numThreads = 1; // more need special headers, and do not pay for one stream
    ort.env.wasm.wasmBinary = files[RUNTIME_BINARY].buffer;
    const start = (name) => ort.InferenceSession.create(files[name], { executionProviders: ["wasm"] });
    const dynamics = await start(DYNAMICS);
    return new Model(ort, manifest, dynamics, await start(DECODER));
  }

  constructor(ort, manifest, dynamics, decoder) {
    Object.assign(this, { ort, manifest, dynamics, decoder });
    const { num_codebooks: Q, codebook_size: K } = manifest;
    this.noise = new Float32Array(Q * K);
    this.tensors = { noise: new ort.Tensor("float32", this.noise, [Q, K]) };
    this.rings = []; // {name, data, slots}: [heads, slots, width] each
    for (const { name, shape } of dynamics.inputMetadata) {
      if (!/^(keys|values)\./.test(name)) continue;
      const data = new Float32Array(shape[0] * shape[1] * shape[2]);
      this.rings.push({ name, data, slots: shape[1] });
      this.tensors[name] = new ort.Tensor("float32", data, shape);
    }
    this.frameOutputs = ["codes", ...this.rings.map(({ name }) => `new_${name}`)];
    this.busy = Promise.resolve();
    this.reset();
  }

  /** Begin a stream before `frame`; `previous` are the codes of the frame before it, if there is one. */
  reset(frame = 0, previous = null) {
    const { num_codebooks: Q, codebook_size: begin } = this.manifest;
    for (const { data } of this.rings) data.fill(0);
    this.position = frame;
    this.previous = previous ? Int32Array.from(previous) : new Int32Array(Q).fill(begin);
  }

  /** Wait for the jobs before this one: the runtime takes one at a time. */
  exclusive(job) {
    const done = this.busy.then(job);
    this.busy = done.catch(() => {});
    return done;
  }

  /**
   * Codes (Int32Array) of the next frame under an action.
   * How: {seed, frame, temperature, topK, strength}, or {given: codes} to take these instead of sampling.
   */
  frame(action, how) {
    return this.exclusive(() => this.runFrame(action, how));
  }

  async runFrame(action, { given, seed, frame, temperature = 0, topK = 0, strength = 1 }) {
    const { ort, manifest } = this;
    const { num_codebooks: Q, codebook_size: K } = manifest;
    const index = action === 65535 ? manifest.dynamics.null_action : action;
    if (given) this.noise.fill(0);
    else gumbelNoise(this.noise, seed, frame, temperature);
    const feeds = {
      ...this.tensors,
      previous: new ort.Tensor("int32", this.previous),
      position: new ort.Tensor("int32", Int32Array.of(this.position), []),
      action: new ort.Tensor("int32", Int32Array.of(index)),
      strength: new ort.Tensor("float32", Float32Array.of(strength), []),
      top_k: new ort.Tensor("int64", BigInt64Array.of(BigInt(topK || K))),
      given: new ort.Tensor("int32", given ? Int32Array.from(given) : new Int32Array(Q).fill(-1)),
    };
    const results = await this.dynamics.run(feeds, this.frameOutputs);
    for (const ring of this.rings) this.remember(ring, results[`new_${ring.name}`]);
    this.position++;
    this.previous = results.codes.data.slice();
    return this.previous;
  }

  /** Write the entries that a frame adds [heads, entries, width] into a ring. */
  remember({ data, slots }, { data: added, dims: [heads, entries, width] }) {
    for (let head = 0; head < heads; head++) {
      for (let entry = 0; entry < entries; entry++) {
        const slot = (this.position * entries + entry) % slots;
        const from = (head * entries + entry) * width;
        data.set(added.subarray(from, from + width), (head * slots + slot) * width);
      }
    }
  }

  newDecoder() {
    return new Decoder(this);
  }
}

/** One stream of sound, with its past. */
class Decoder {
  constructor(model) {
    this.model = model;
    const { ort, decoder } = model;
    this.past = {};
    for (const { name, shape } of decoder.inputMetadata) {
      if (!name.startsWith("past.")) continue;
      const length = shape.reduce((product, n) => product * n, 1);
      this.past[name] = new ort.Tensor("float32", new Float32Array(length), shape);
    }
  }

  /** The sound (Float32Array) of the next frames' codes, frame by frame. */
  decode(codes) {
    return this.model.exclusive(async () => {
      const { ort, decoder, manifest } = this.model;
      const Q = manifest.num_codebooks;
      const input = new ort.Tensor("int32", Int32Array.from(codes), [codes.length / Q, Q]);
      const results = await decoder.run({ codes: input, ...this.past });
      for (const name of Object.keys(this.past)) {
        const { data, dims } = results[`new_${name}`];
        this.past[name] = new ort.Tensor("float32", data.slice(), dims);
      }
      return results.sound.data.slice();
    });
  }
}
