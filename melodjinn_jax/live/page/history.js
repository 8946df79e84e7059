// What was played: codes, actions and settings by frame number, the oldest half forgotten when it is full.

export const MOST_FRAMES = 540000;
const NO_ACTION = 65535;

export class History {
  constructor({ num_codebooks: numCodebooks, action_stride: stride }, first) {
    Object.assign(this, { numCodebooks, stride });
    this.begin = this.end = first;
    this.promptFrames = 0;
    this.codes = new Uint16Array(1024 * numCodebooks);
    this.actions = new Uint16Array(1024);
    this.settings = []; // {frame, seed, temperature, top_k, strength}, each from its frame on
  }

  get length() {
    return this.end - this.begin;
  }

  /** The oldest frame that one may go back to. */
  get oldest() {
    return this.begin + this.promptFrames;
  }

  add(codes, action, settings) {
    if (this.length >= MOST_FRAMES && this.end % this.stride === 0) this.forget();
    if (this.length === this.actions.length) {
      this.codes = grown(this.codes);
      this.actions = grown(this.actions);
    }
    this.codes.set(codes, this.length * this.numCodebooks);
    this.actions[this.length] = action;
    if (!sameSettings(this.settings.at(-1), settings)) this.settings.push({ frame: this.end, ...settings });
    this.end++;
  }

  /** Codes of the frames from `from` to `to`, frame by frame. */
  codesOf(from, to) {
    const Q = this.numCodebooks;
    return this.codes.subarray((from - this.begin) * Q, (to - this.begin) * Q);
  }

  actionOf(frame) {
    return this.actions[frame - this.begin];
  }

  /** Frames of the last `frames` at which a key began. */
  onsets(frames) {
    const found = [];
    for (let i = Math.max(0, this.length - frames); i < this.length; i++) {
      const action = this.actions[i];
      if (action > 0 && action < NO_ACTION && action !== this.actions[i - 1]) found.push(this.begin + i);
    }
    return found;
  }

  settingsOf(frame) {
    return this.settings.findLast((one) => one.frame <= frame);
  }

  /** Forget everything from `frame` on. */
  cut(frame) {
    this.end = frame;
    this.settings = this.settings.filter((one) => one.frame < frame);
  }

  /** Drop the older half; the block that is then the oldest counts as given, for what led to it is gone. */
  forget() {
    const half = Math.floor(this.length / 2);
    const start = this.begin + half + (-(this.begin + half) % this.stride) + this.stride;
    const frames = start - this.begin;
    this.codes.copyWithin(0, frames * this.numCodebooks);
    this.actions.copyWithin(0, frames);
    this.begin = start;
    this.promptFrames = this.stride;
    const held = { ...this.settingsOf(start), frame: start };
    this.settings = [held, ...this.settings.filter((one) => one.frame > start)];
  }

  /** Actions before `end`, as [frame, action] where they change. */
  actionChanges(end) {
    const changes = [];
    for (let i = 0; i < end - this.begin; i++) {
      if (i === 0 || this.actions[i] !== this.actions[i - 1]) changes.push([this.begin + i, this.actions[i]]);
    }
    return changes;
  }

  static from({ header, codes }) {
    const history = new History(header, header.first_frame);
    const changes = [...header.actions, [Infinity, 0]];
    const settings = [...header.settings, { frame: Infinity }];
    for (let i = 0, change = 0, setting = 0; i < header.frames; i++) {
      const frame = header.first_frame + i;
      while (changes[change + 1][0] <= frame) change++;
      while (settings[setting + 1].frame <= frame) setting++;
      const { frame: _, ...held } = settings[setting];
      history.add(codes.subarray(i * header.num_codebooks, (i + 1) * header.num_codebooks), changes[change][1], held);
    }
    history.promptFrames = header.prompt_frames;
    return history;
  }
}

function grown(array) {
  const larger = new Uint16Array(2 * array.length);
  larger.set(array);
  return larger;
}

function sameSettings(one, other) {
  return !!one && ["seed", "temperature", "top_k", "strength"].every((name) => one[name] === other[name]);
}
