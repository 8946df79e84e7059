// The audio thread: plays frames as they come, waits for a full buffer before it starts, fades around every gap,
// counts underruns and grows the buffer after each.

const START_TARGET = 6;
const LEAST_TARGET = 4;
const MOST_TARGET = 60;
const GROWTH = 2;
const FADE_SAMPLES = 96;
const TAIL_DECAY = 0.96; // per sample, of the value that a gap left standing
const CALM_SECONDS = 10;
const REPORT_QUANTA = 2;
const QUANTUM = 128; // samples

class FramePlayer extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.hop = options.processorOptions.hop;
    this.queue = []; // of {frame, sound}
    this.offset = 0; // samples of the first that were played
    this.buffered = 0; // samples
    this.take = 0;
    this.heard = 0; // frame number of the next sample, with its fraction
    this.playing = false;
    this.flowing = false; // false while the buffer fills
    this.gain = 0;
    this.tail = this.last = 0;
    this.target = START_TARGET;
    this.floor = LEAST_TARGET;
    this.underruns = 0;
    this.spare = Infinity; // least level of this calm stretch, frames
    this.calm = 0; // seconds of it
    this.quanta = 0;
    this.port.onmessage = ({ data }) => {
      if (data.type === "engine") this.connect(data.port);
      else this.playing = data.type === "play";
    };
  }

  connect(port) {
    this.engine = port;
    port.onmessage = ({ data }) => {
      if (data.type === "take") this.begin(data.take, data.frame);
      else if (data.take === this.take) this.push(data.frame, data.sound);
    };
  }

  begin(take, frame) {
    this.take = take;
    this.heard = frame;
    this.queue = [];
    this.offset = this.buffered = 0;
    this.breakOff();
  }

  /** Stop at once; the value that stood fades, and what follows fades in. */
  breakOff() {
    this.flowing = false;
    this.gain = 0;
    this.tail = this.last;
  }

  push(frame, sound) {
    this.queue.push({ frame, sound });
    this.buffered += sound.length;
  }

  next() {
    const first = this.queue[0];
    const value = first.sound[this.offset++];
    this.heard = first.frame + this.offset / this.hop;
    this.buffered--;
    if (this.offset === first.sound.length) {
      this.queue.shift();
      this.offset = 0;
    }
    return value;
  }

  process(_, outputs) {
    const out = outputs[0][0];
    const level = this.buffered / this.hop;
    if (this.playing && !this.flowing && level >= this.target) {
      this.flowing = true;
      this.spare = Infinity;
      this.calm = 0;
    }
    for (let i = 0; i < out.length; i++) {
      const wanted = this.playing && this.flowing ? 1 : 0;
      this.gain += Math.max(-1, Math.min(1, (wanted - this.gain) * FADE_SAMPLES)) / FADE_SAMPLES;
      if (this.flowing && this.buffered === 0) this.starve();
      const sounds = this.flowing && this.gain > 0;
      this.tail *= TAIL_DECAY;
      this.last = (sounds ? this.next() * this.gain : 0) + this.tail;
      out[i] = this.last;
    }
    this.adapt(out.length);
    if (++this.quanta % REPORT_QUANTA === 0) this.report();
    return true;
  }

  starve() {
    this.underruns++;
    this.target = Math.min(MOST_TARGET, this.target + GROWTH);
    this.floor = this.target; // what was too little once is not tried again
    this.breakOff();
  }

  adapt(samples) {
    if (!this.flowing || !this.playing) return;
    this.spare = Math.min(this.spare, this.buffered / this.hop);
    this.calm += samples / sampleRate;
    if (this.calm < CALM_SECONDS) return;
    if (this.spare > this.target / 2 && this.target > this.floor) this.target--;
    this.spare = Infinity;
    this.calm = 0;
  }

  report() {
    const { take, heard, target, underruns } = this;
    // `at`: the sample of the audio clock that `heard` was reached at.
    const at = currentFrame + QUANTUM;
    const report = { type: "report", take, heard, at, target, underruns, buffered: this.buffered / this.hop };
    this.engine?.postMessage(report);
    this.port.postMessage(report);
  }
}

registerProcessor("frame-player", FramePlayer);
