// The engine without a server: the model runs in this worker. It takes and gives the messages of docs/protocol.md, the
// audio as {type: "audio", take, frame, actions, sound}.

import { WAV_FRAMES, sessionFile, soundFile } from "./files.js";
import { History, MOST_FRAMES } from "./history.js";
import { Model, fetchManifest, hasSimd } from "./model.js";
import { Presses } from "./presses.js";
import { unpackSession } from "./session.js";
import { Tempo } from "./tempo.js";

const DECODER_PAST = 64; // frames decoded unheard before a stream goes on from the middle of a history
const HEALTH_FRAMES = 75;
const FOLLOWED_SECONDS = 60;
const LIMITS = { temperature: [0, 2], strength: [0, 3], bpm: [30, 300], ahead: [1, 150] };

class EngineError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class BrowserEngine {
  static async open({ base }, emit) {
    if (!hasSimd())
      throw new Error("This browser has no WebAssembly SIMD, which the model needs: use a newer browser.");
    if (!globalThis.crypto?.subtle)
      throw new Error("This page needs a secure address: open it by https, or from localhost.");
    const manifest = await fetchManifest(base);
    const model = await Model.load(base, manifest, (share) => emit({ type: "progress", share }));
    const engine = new BrowserEngine(manifest, model, emit);
    await engine.restart({});
    emit(engine.welcome());
    return engine;
  }

  constructor(manifest, model, emit) {
    Object.assign(this, { manifest, model, emit });
    this.framesPerSecond = manifest.sample_rate / manifest.hop_length;
    this.limits = {
      ...LIMITS,
      top_k: [0, manifest.codebook_size],
      wav_frames: WAV_FRAMES,
      session_frames: MOST_FRAMES,
    };
    this.settings = { ...manifest.settings, top_k: 0, ahead: 6, playing: false };
    this.presses = new Presses(manifest.action_stride, manifest.hold);
    this.tempo = new Tempo(this.framesPerSecond, ...LIMITS.bpm);
    this.seed = 0;
    this.take = -1;
    this.changes = Promise.resolve();
    this.pumping = null;
    this.times = [];
  }

  welcome() {
    const { name, sample_rate, hop_length, action_stride, num_codebooks, codebook_size, keys, hold, digests } =
      this.manifest;
    return {
      type: "welcome",
      version: 1,
      name,
      sample_rate,
      hop_length,
      action_stride,
      num_codebooks,
      codebook_size,
      keys,
      hold,
      digests,
      take: this.take,
      frame: this.history.end,
      seed: this.seed,
      begin: this.history.oldest,
      settings: this.settings,
      limits: this.limits,
    };
  }

  /** Take one message; what is wrong with it is answered by an `error`. */
  async receive(message) {
    const handler = HANDLERS[message.type];
    try {
      await handler(this, message);
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
      this.emit({ type: "error", code: error.code, message: error.message });
    }
  }

  // Streams. While one is made ready no frames are made.

  async restart({ seed = this.seed }) {
    await this.begin(seed, async () => {
      this.history = new History(this.manifest, 0);
      this.model.reset();
      const { codes, actions } = this.manifest.prompt;
      for (const [i, frame] of codes.entries()) {
        await this.model.frame(actions[i], { given: frame });
        this.history.add(frame, actions[i], this.sampling());
      }
      this.history.promptFrames = codes.length;
    });
  }

  async rewind({ frame, seed = this.seed }) {
    await this.begin(seed, async () => {
      const { oldest, end } = this.history;
      if (!Number.isInteger(frame) || frame < oldest || frame > end) {
        throw new EngineError(
          "rewind",
          `There is no way back to frame ${frame}: the past goes from ${oldest} to ${end}.`,
        );
      }
      this.history.cut(Math.max(oldest, frame - (frame % this.manifest.action_stride)));
      await this.prime();
    });
  }

  async load({ bytes }) {
    let session;
    try {
      session = unpackSession(bytes, this.manifest);
    } catch (error) {
      throw new EngineError("session", error.message);
    }
    await this.begin(session.header.settings.at(-1).seed, async () => {
      this.history = History.from(session);
      const { temperature, top_k, strength } = session.header.settings.at(-1);
      Object.assign(this.settings, { temperature, top_k, strength });
      await this.prime();
    });
    this.emit({ type: "settings", ...this.settings });
  }

  /** Begin a new take once those asked for before it stand. */
  begin(seed, prepare) {
    const done = this.changes.then(() => this.change(seed, prepare));
    this.changes = done.catch(() => {});
    return done;
  }

  async change(seed, prepare) {
    this.preparing = true;
    await this.pumping;
    try {
      await prepare();
      await this.primeDecoder();
    } finally {
      this.preparing = false;
    }
    this.seed = seed >>> 0;
    this.presses.clear();
    this.tempo.forget();
    this.action = 0;
    this.take++;
    this.heard = this.history.end;
    this.emit({ type: "take", take: this.take, frame: this.history.end, seed: this.seed, begin: this.history.oldest });
    this.pump();
  }

  /** Let the model see the end of the history: as far back as its layers reach together, or nearly. */
  async prime() {
    const { begin, end } = this.history;
    const from = Math.max(begin, end - this.manifest.dynamics.priming_frames);
    this.model.reset(from, from > begin ? this.history.codesOf(from - 1, from) : null);
    for (let frame = from; frame < this.history.end; frame++) {
      const { strength } = this.history.settingsOf(frame);
      await this.model.frame(this.history.actionOf(frame), { given: this.history.codesOf(frame, frame + 1), strength });
    }
  }

  async primeDecoder() {
    const from = Math.max(this.history.begin, this.history.end - DECODER_PAST);
    this.decoder = this.model.newDecoder();
    await this.decoder.decode(this.history.codesOf(from, this.history.end));
  }

  sampling() {
    const { temperature, top_k, strength } = this.settings;
    return { seed: this.seed, temperature, top_k, strength };
  }

  // Playing

  pump() {
    this.pumping ??= this.makeFrames().finally(() => {
      this.pumping = null;
    });
  }

  async makeFrames() {
    while (this.settings.playing && !this.preparing && this.history.end < this.heard + this.settings.ahead) {
      const began = performance.now();
      await this.makeFrame();
      this.measure(performance.now() - began);
      await immediate(); // presses that came meanwhile count for the next frame
    }
  }

  async makeFrame() {
    const { history, settings } = this;
    const frame = history.end;
    if (frame % this.manifest.action_stride === 0) this.action = this.presses.action(frame);
    const codes = await this.model.frame(this.action, {
      seed: this.seed,
      frame,
      temperature: settings.temperature,
      topK: settings.top_k,
      strength: settings.strength,
    });
    history.add(codes, this.action, this.sampling());
    const sound = await this.decoder.decode(codes);
    this.emit({ type: "audio", take: this.take, frame, actions: Uint16Array.of(this.action), sound });
  }

  measure(milliseconds) {
    this.times.push(milliseconds);
    if (this.times.length < HEALTH_FRAMES) return;
    const sorted = this.times.sort((a, b) => a - b);
    const mean = sorted.reduce((sum, time) => sum + time, 0) / sorted.length;
    this.emit({
      type: "health",
      frame_ms: mean,
      frame_ms_p99: sorted[Math.ceil(0.99 * sorted.length) - 1],
      real_time_factor: 1000 / this.framesPerSecond / mean,
      ahead: this.history.end - this.heard,
    });
    this.times = [];
  }

  press({ key, hold, on_beat: onBeat, at }) {
    if (!(key >= 0 && key < this.manifest.keys.length)) throw new EngineError("message", `There is no key ${key}.`);
    if (!onBeat && at === undefined) return this.presses.press({ key, hold });
    if (onBeat && this.tempo.bpm === null)
      throw new EngineError("tempo", "There is no tempo yet: tap it, or give it.");
    const wanted = onBeat ? this.tempo.nextBeat(this.history.end) : at;
    const frame = this.presses.schedule({ key, hold, frame: wanted }, this.history.end);
    this.emit({ type: "scheduled", key, frame });
  }

  emitTempo() {
    this.emit({ type: "tempo", bpm: this.tempo.bpm, beat: this.tempo.beat });
  }

  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      const [low, high] = this.limits[name] ?? [];
      if (!(value >= low && value <= high))
        throw new EngineError("message", `${name} must lie between ${low} and ${high}.`);
      this.settings[name] = value;
    }
    this.emit({ type: "settings", ...this.settings });
  }
}

/** The end of the queue of events: sooner than any timer. */
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();
function immediate() {
  return new Promise((resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(null);
  });
}

const HANDLERS = {
  play(engine) {
    engine.settings.playing = true;
    engine.set({});
    engine.pump();
  },
  pause(engine) {
    engine.settings.playing = false;
    engine.set({});
  },
  press: (engine, message) => engine.press(message),
  release: (engine, { key }) => engine.presses.release(key),
  release_all: (engine) => engine.presses.clear(),
  tempo(engine, { bpm, beat = Math.floor(engine.heard) }) {
    const [low, high] = LIMITS.bpm;
    if (!(bpm >= low && bpm <= high)) throw new EngineError("message", `bpm must lie between ${low} and ${high}.`);
    engine.tempo.set(bpm, beat);
    engine.emitTempo();
  },
  tap(engine, { frame }) {
    if (engine.tempo.tap(frame)) engine.emitTempo();
  },
  follow(engine) {
    const found = engine.tempo.follow(engine.history.onsets(FOLLOWED_SECONDS * engine.framesPerSecond));
    if (!found) throw new EngineError("tempo", "What was played has no steady tempo: tap it, or give one.");
    engine.emitTempo();
  },
  settings: (engine, { type: _, ...changes }) => engine.set(changes),
  buffer: (engine, { ahead }) => engine.set({ ahead }),
  played(engine, { take, frame }) {
    if (take !== engine.take) return;
    engine.heard = frame;
    engine.pump();
  },
  rewind: (engine, message) => engine.rewind(message),
  restart: (engine, message) => engine.restart(message),
  save({ manifest, history, emit }) {
    emit({ type: "session", bytes: sessionFile(manifest, history) });
  },
  async wav({ model, manifest, history, emit }, { from = 0 }) {
    emit({ type: "wav", bytes: await soundFile(model, manifest, history, from) });
  },
  load: (engine, message) => engine.load(message),
};
