// The engine behind a WebSocket: the messages of docs/protocol.md, in both directions.

const SUBPROTOCOL = "melodjinn.1";
const AUDIO = 1;
const SESSION = 2;
const WAV = 3;
const HEADER_BYTES = 12;
const PLAYED_EVERY_MS = 40;

export class ServerEngine {
  static async open({ base, token }, emit) {
    const query = token ? `?token=${encodeURIComponent(token)}` : "";
    await checkServer(new URL(`server.json${query}`, base));
    const address = new URL(`live${query}`, base);
    address.protocol = address.protocol.replace("http", "ws");
    const engine = new ServerEngine(new WebSocket(address, SUBPROTOCOL), emit);
    await engine.greeted;
    return engine;
  }

  constructor(socket, emit) {
    Object.assign(this, { socket, emit, lastPlayed: 0, take: 0 });
    socket.binaryType = "arraybuffer";
    this.greeted = new Promise((resolve, reject) => {
      socket.onclose = ({ code, reason }) => {
        reject(new Error(this.complaint ?? "The server does not answer: is it still running?"));
        emit({ type: "closed", message: this.complaint ?? reason ?? "", code });
      };
      socket.onmessage = ({ data }) => {
        const message = typeof data === "string" ? JSON.parse(data) : readBinary(data);
        if (message.type === "error") this.complaint = message.message;
        if (message.type === "welcome" || message.type === "take") this.take = message.take;
        // The packet holds 16 bits of the take's number.
        if (message.type === "audio") message.take += Math.floor(this.take / 65536) * 65536;
        emit(message);
        if (message.type === "welcome") resolve();
      };
    });
  }

  receive(message) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (message.type === "load") {
      const packet = new Uint8Array(1 + message.bytes.length);
      packet[0] = SESSION;
      packet.set(message.bytes, 1);
      this.socket.send(packet);
      return;
    }
    if (message.type === "played") {
      const now = performance.now();
      if (now - this.lastPlayed < PLAYED_EVERY_MS) return;
      this.lastPlayed = now;
    }
    this.socket.send(JSON.stringify(message));
  }
}

async function checkServer(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  if (response.status === 401) throw new Error((await response.json()).error);
  if (!response.ok)
    throw new Error("No server of Melodjinn stands behind this page: open the address that the play command printed.");
}

function readBinary(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint8(0);
  if (kind === SESSION) return { type: "session", bytes: new Uint8Array(buffer, 1) };
  if (kind === WAV) return { type: "wav", bytes: new Uint8Array(buffer, 1) };
  if (kind !== AUDIO) return { type: "unknown" };
  const frames = view.getUint16(2, true);
  const actions = Uint16Array.from({ length: frames }, (_, i) => view.getUint16(HEADER_BYTES + 2 * i, true));
  const samples = frames * view.getUint16(10, true);
  const start = HEADER_BYTES + 2 * frames;
  const sound = Float32Array.from({ length: samples }, (_, i) => view.getInt16(start + 2 * i, true) / 32768);
  return { type: "audio", frame: view.getUint32(4, true), take: view.getUint16(8, true), actions, sound };
}
