/**
 * The bytes of a stream event: `text/event-stream` as the WHATWG HTML standard (section 9.2) has it, one JSON
 * document on one data line. JSON escapes every line break, so a frame can never be split by its content.
 */
import type { StreamEvent } from "./events.ts";

/** The token frame is written out by hand: it is made once per token, everything else once per task. */
export function encodeToken(seq: number, text: string, index: number): string {
  return `id: ${seq}\nevent: token\ndata: {"t":${JSON.stringify(text)},"i":${index}}\n\n`;
}

export function encodeEvent(seq: number, event: StreamEvent): string {
  if (event.type === "token") return encodeToken(seq, event.t, event.i);
  return `id: ${seq}\nevent: ${event.type}\ndata: ${JSON.stringify(event.data)}\n\n`;
}

/** The event that `encodeEvent` made this frame of; null: it is none. Its data is taken as it is. */
export function decodeFrame(frame: string): StreamEvent | null {
  const found = /^id: \d+\nevent: (\w+)\ndata: (.*)\n\n$/su.exec(frame);
  const [, type, text = ""] = found ?? [];
  try {
    const data = JSON.parse(text);
    if (type === "token") return { type, t: data.t, i: data.i };
    return type === "started" || type === "metrics" || type === "end" || type === "error"
      ? { type, data }
      : null;
  } catch {
    return null;
  }
}

/** A comment: keeps proxies and clients from giving up on a quiet stream, carries no id. */
export const heartbeatFrame = ": hb\n\n";

/** Sent before a stream closes without its terminal event: the client comes back after so long, with Last-Event-ID. */
export const retryFrame = "retry: 1000\n\n";
