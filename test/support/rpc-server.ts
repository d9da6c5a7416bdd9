/**
 * llama.cpp's rpc-server on a free port of this machine: a device for the real engine where there is no graphics card.
 * It computes on the processor. Whoever starts one calls `kill`.
 */
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { engineBin } from "./engine.ts";
import { waitFor } from "./wait.ts";

export interface StartedRpcServer {
  /** host:port */
  readonly address: string;
  /** SIGKILL; resolves once it is reaped. Idempotent. */
  kill(): Promise<void>;
}

/** It takes no port 0, so a free one is looked for; another program may take that meanwhile, so it is tried again. */
export async function startRpcServer(tries = 5): Promise<StartedRpcServer> {
  const program = join(dirname(engineBin()), "ggml-rpc-server");
  if (!existsSync(program)) throw new Error(`${program} is missing: run \`npm run setup\``);
  const port = await freePort();
  const child = Bun.spawn([program, "-H", "127.0.0.1", "-p", String(port)], {
    env: { PATH: process.env.PATH ?? "/usr/bin:/bin" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  });
  const kill = async () => {
    child.kill("SIGKILL");
    await child.exited;
  };
  try {
    await waitFor(
      async () => child.exitCode !== null || (await accepts(port)),
      20_000,
      "the rpc-server accepts",
    );
  } catch (error) {
    await kill();
    throw error;
  }
  if (child.exitCode === null) return { address: `127.0.0.1:${port}`, kill };
  if (tries <= 1) throw new Error(`${program} ended with ${child.exitCode}`);
  return startRpcServer(tries - 1);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() =>
        typeof address === "object" && address !== null ? resolve(address.port) : reject(),
      );
    });
  });
}

async function accepts(port: number): Promise<boolean> {
  try {
    const socket = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data: () => undefined } });
    socket.end();
    return true;
  } catch {
    // Not yet.
    return false;
  }
}
