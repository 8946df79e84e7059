// The way from the engine's worker to the loudspeaker.

const RESUME_PATIENCE_MS = 1500;

export class Audio {
  /** Call from a click: browsers let a page sound only then. Throws an Error with one sentence if it cannot. */
  static async open({ sampleRate, hop, onReport }) {
    if (!globalThis.AudioWorkletNode) {
      const why = isSecureContext
        ? "This browser cannot play live audio: use a newer browser."
        : "This page needs a secure address to sound: open it by https, or from localhost.";
      throw new Error(why);
    }
    let context;
    try {
      context = new AudioContext({ sampleRate, latencyHint: "interactive" });
    } catch {
      throw new Error("No audio device can be opened: plug one in, then click Play again.");
    }
    const running = await Promise.race([
      context.resume().then(
        () => true,
        () => false,
      ),
      new Promise((resolve) => setTimeout(resolve, RESUME_PATIENCE_MS, false)),
    ]);
    if (!running) {
      context.close();
      throw new Error(
        "The browser keeps this page silent: allow sound for it in the address bar, then click Play again.",
      );
    }
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    const options = { numberOfInputs: 0, outputChannelCount: [1], processorOptions: { hop } };
    return new Audio(context, new AudioWorkletNode(context, "frame-player", options), onReport);
  }

  constructor(context, node, onReport) {
    Object.assign(this, { context, node });
    node.connect(context.destination);
    node.port.onmessage = ({ data }) => onReport(data);
  }

  /** The engine's end of a channel straight to the audio thread. */
  enginePort() {
    const { port1, port2 } = new MessageChannel();
    this.node.port.postMessage({ type: "engine", port: port1 }, [port1]);
    return port2;
  }

  play() {
    this.context.resume();
    this.node.port.postMessage({ type: "play" });
  }

  pause() {
    this.node.port.postMessage({ type: "pause" });
  }

  /** Seconds from the audio thread to the ear, as far as the browser knows. */
  get outputLatency() {
    return (this.context.baseLatency || 0) + (this.context.outputLatency || 0);
  }
}
