/** HTTP by hand, for what fetch would not send: no Host, odd paths, half a body, garbage. */
import { connect } from "node:net";

export interface RawAnswer {
  /** 0: the connection ended without an answer. */
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/**
 * Sends the text and resolves when the server closes (ask for it with `Connection: close`) or, with `until`, as
 * soon as that stands in the answer: then the sender goes away with its request unfinished.
 */
export function sendRaw(port: number, request: string | Uint8Array, until?: string): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    let text = "";
    let answered = false;
    const socket = connect(port, "127.0.0.1", () => socket.write(request));
    socket.setEncoding("latin1");
    socket.on("data", (chunk: string) => {
      text += chunk;
      if (until !== undefined && text.includes(until)) socket.destroy();
    });
    socket.on("close", () => {
      answered = true;
      resolve(parse(text));
    });
    // A server that has said everything may reset what is still being sent.
    socket.on("error", (error) => {
      if (!answered && text === "") reject(error);
    });
  });
}

function parse(text: string): RawAnswer {
  const end = text.indexOf("\r\n\r\n");
  const [statusLine = "", ...lines] = text.slice(0, end === -1 ? undefined : end).split("\r\n");
  const headers = lines.map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
  });
  return {
    status: Number(/^HTTP\/1\.[01] (\d{3})/.exec(statusLine)?.[1] ?? 0),
    headers: Object.fromEntries(headers),
    body: end === -1 ? "" : text.slice(end + 4),
  };
}
