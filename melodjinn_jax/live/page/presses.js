// What is pressed, as one action for every block: NOOP unless a key is down (docs/protocol.md, "Pressing").

const MOST_WAITING = 8;

export const NOOP = 0;

export class Presses {
  constructor(stride, holds) {
    this.stride = stride;
    this.holds = holds;
    this.clear();
  }

  clear() {
    this.waiting = []; // keys, one block each
    this.held = []; // {key, given, released}, the newest last
    this.scheduled = []; // {frame, key, hold}
  }

  press({ key, hold = this.holds }) {
    if (hold) this.held = [...this.held.filter((one) => one.key !== key), { key, given: false, released: false }];
    else if (this.waiting.length < MOST_WAITING) this.waiting.push(key);
  }

  /** Put a press into the block of `frame`, or the next one if that is made already. Returns its first frame. */
  schedule({ key, hold = this.holds, frame }, next) {
    const block = Math.max(frame - (frame % this.stride), Math.ceil(next / this.stride) * this.stride);
    this.scheduled.push({ frame: block, key, hold });
    return block;
  }

  release(key) {
    for (const one of this.held) if (one.key === key) one.released = true;
    this.held = this.held.filter((one) => !(one.released && one.given));
  }

  /** The action of the block that begins at `frame`. Call once for each block. */
  action(frame) {
    const due = this.scheduled.filter((one) => one.frame <= frame);
    this.scheduled = this.scheduled.filter((one) => one.frame > frame);
    due.forEach((one) => this.press(one));
    if (this.waiting.length) return this.waiting.shift();
    const newest = this.held.at(-1);
    if (!newest) return NOOP;
    newest.given = true;
    this.held = this.held.filter((one) => !(one.released && one.given));
    return newest.key;
  }
}
