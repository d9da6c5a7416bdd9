/**
 * A large model fetched from a server on loopback while it is interrupted again and again: in turn the process that
 * fetches is killed (`kill -9`) and every connection is reset. Prints how many bytes the server sent for each byte of the
 * file, and whether the digest is right. Run by hand: `npx bun scripts/bench/download.ts [GB] [interruptions] [MB/s]`
 * (2, 20 and 200; the figures of bytes do not depend on the speed while the reader keeps up).
 */
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAllowedHost } from "../../src/domain/fetch-policy.ts";
import { HttpModelSource } from "../../src/infra/models/http-model-source.ts";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";

const blockBytes = 1024 * 1024;

/** Any block of the file, made when it is asked for: no two are alike. */
const base = Buffer.alloc(blockBytes);
for (let at = 0, word = 1; at < blockBytes; at += 4) {
  word = (Math.imul(word, 1_664_525) + 1_013_904_223) >>> 0;
  base.writeUInt32LE(word, at);
}
function block(index: number): Buffer {
  const made = Buffer.from(base);
  made.writeUInt32LE(index, 8);
  if (index === 0) made.write("GGUF", 0, "latin1");
  return made;
}

if (process.argv[2] === "fetch") await fetchAsChild(process.argv[3] ?? "", process.argv[4] ?? "");
else await measure();

/** The process that is killed. */
async function fetchAsChild(url: string, path: string): Promise<void> {
  const entry = parseAllowedHost(new URL(url).host);
  if (entry === null) throw new Error(`no host in ${url}`);
  const [clock, entropy] = [new SystemClock(), new SystemEntropy()];
  const source = new HttpModelSource({ clock, entropy, allowed: [entry], headerProblem: () => null });
  const target = { url, path, digest: null, sizeBytes: null };
  const { digest } = await source.fetch(target, () => undefined, new AbortController().signal);
  process.stdout.write(`${digest}\n`);
  process.exit(0);
}

async function measure(): Promise<void> {
  const sizeBytes = Math.round(Number(process.argv[2] ?? 2) * 1e9);
  const interruptions = Number(process.argv[3] ?? 20);
  const bytesPerMs = Number(process.argv[4] ?? 200) * 1000;
  const digest = createHash("sha256");
  for (let at = 0; at < sizeBytes; at += blockBytes)
    digest.update(block(at / blockBytes).subarray(0, sizeBytes - at));
  const expected = digest.digest("hex");

  const server = await serve(sizeBytes, bytesPerMs);
  const folder = mkdtempSync(join(tmpdir(), "orchestratord-download-"));
  const path = join(folder, "model.gguf");
  const startedMs = performance.now();
  let [kills, resets, runs] = [0, 0, 0];
  let found = "";
  try {
    while (found === "") {
      runs += 1;
      const command = [process.execPath, import.meta.path, "fetch", server.url, path];
      const child = Bun.spawn(command, { stdout: "pipe", stderr: "inherit" });
      const said = new Response(child.stdout).text();
      let killed = false;
      server.onSent = (sent) => {
        if (killed || sent < ((kills + resets + 1) * sizeBytes) / (interruptions + 1)) return;
        if (kills + resets === interruptions) return;
        if (kills > resets) {
          resets += 1;
          server.resetAll();
        } else {
          kills += 1;
          killed = true;
          child.kill("SIGKILL");
        }
      };
      const code = await child.exited;
      found = (await said).trim();
      if (code !== 0 && !killed) throw new Error(`the fetch ended with ${code}`);
    }
    const seconds = (performance.now() - startedMs) / 1000;
    const left = readdirSync(folder).join(" ");
    const again = ((server.sent() - sizeBytes) / sizeBytes) * 100;
    process.stdout.write(
      [
        `size            ${sizeBytes} bytes, in ${seconds.toFixed(1)} s`,
        `interruptions   ${kills + resets} (${kills} kill -9, ${resets} resets of all connections; ${runs} runs, ${server.requests()} requests)`,
        `sent by server  ${server.sent()} bytes: ${again.toFixed(2)} % fetched again`,
        `digest          ${found === expected ? "ok" : `WRONG (${found}, expected ${expected})`}`,
        `left there      ${left}`,
        "",
      ].join("\n"),
    );
    if (found !== expected || again > 5 || left !== "model.gguf") process.exitCode = 1;
  } finally {
    server.stop();
    rmSync(folder, { recursive: true });
  }
}

interface Server {
  readonly url: string;
  onSent: (bytes: number) => void;
  sent(): number;
  requests(): number;
  resetAll(): void;
  stop(): void;
}

/** Serves ranges of the file, all connections together at a bounded speed; what a socket took counts as sent. */
async function serve(sizeBytes: number, bytesPerMs: number): Promise<Server> {
  const sockets = new Set<Socket>();
  let [gone, requests, allowance, lastMs] = [0, 0, 0, performance.now()];
  const waiting: (() => void)[] = [];
  // Bytes may flow as time does; who finds none waits for the next tick.
  const tick = setInterval(() => {
    const nowMs = performance.now();
    allowance = Math.min(allowance + (nowMs - lastMs) * bytesPerMs, 8 * blockBytes);
    lastMs = nowMs;
    result.onSent(result.sent());
    for (const go of waiting.splice(0)) go();
  }, 2);
  const flushed = (socket: Socket): number => socket.bytesWritten - socket.writableLength;

  const answer = async (socket: Socket, head: string): Promise<void> => {
    requests += 1;
    const range = /\r\nrange: bytes=(\d+)-(\d+)/i.exec(head);
    const [from, last] =
      range === null ? [0, sizeBytes - 1] : [Number(range[1]), Math.min(Number(range[2]), sizeBytes - 1)];
    socket.write(
      `HTTP/1.1 206 X\r\netag: "v1"\r\nconnection: close\r\ncontent-length: ${last + 1 - from}\r\ncontent-range: bytes ${from}-${last}/${sizeBytes}\r\n\r\n`,
    );
    for (let at = from; at <= last && !socket.destroyed; ) {
      const index = Math.floor(at / blockBytes);
      const piece = block(index).subarray(
        at - index * blockBytes,
        Math.min(blockBytes, last + 1 - index * blockBytes),
      );
      const part = piece.subarray(0, 64 * 1024);
      while (allowance < part.byteLength && !socket.destroyed)
        await new Promise<void>((go) => waiting.push(go));
      allowance -= part.byteLength;
      at += part.byteLength;
      if (!socket.write(part)) await new Promise<void>((go) => waiting.push(go));
    }
    socket.end();
  };
  const listener = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      sockets.delete(socket);
      gone += flushed(socket);
    });
    let head = "";
    socket.on("data", (chunk: Buffer) => {
      head += chunk.toString("latin1");
      if (!head.includes("\r\n\r\n")) return;
      void answer(socket, head);
      head = "";
    });
  });
  await new Promise<void>((ready) => listener.listen(0, "127.0.0.1", ready));
  const address = listener.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  const result: Server = {
    url: `http://127.0.0.1:${port}/model.gguf`,
    onSent: () => undefined,
    sent: () => [...sockets].reduce((sum, socket) => sum + flushed(socket), gone),
    requests: () => requests,
    resetAll: () => {
      for (const socket of sockets) socket.resetAndDestroy();
    },
    stop: () => {
      clearInterval(tick);
      for (const socket of sockets) socket.destroy();
      listener.close();
    },
  };
  return result;
}
