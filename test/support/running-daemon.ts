/**
 * A whole daemon for tests: compiled configuration, real socket on a free port, mock engines. In this process by
 * default; as a child process where the log is to be read. Whoever starts one closes it: the state folder goes
 * with it.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ApiKeys } from "../../src/app/api-keys.ts";
import { composition } from "../../src/app/bootstrap.ts";
import { buildInfo } from "../../src/app/build-info.ts";
import { compileConfig } from "../../src/app/config.ts";
import { systemFiles } from "../../src/app/config-files.ts";
import { sha256Hex } from "../../src/app/config-keys.ts";
import type { Daemon } from "../../src/app/daemon.ts";
import { waitFor } from "./wait.ts";

export const keys = {
  alice: "alice-test-key-5f1c2d3e",
  bob: "bob-test-key-9a440c1f",
  operator: "operator-test-key-6a1c4d57",
} as const;

/** A section or value of the configuration file. */
export type Setting = null | boolean | number | string | readonly Setting[] | Settings;
export interface Settings {
  readonly [name: string]: Setting;
}

export interface RunningDaemon {
  readonly url: string;
  readonly port: number;
  /** Drains as SIGTERM does; resolves when everything is closed and its folder gone. */
  close(): Promise<void>;
}

export interface LoggingDaemon extends RunningDaemon {
  /** What it has written to its log so far. */
  readonly lines: readonly Readonly<Record<string, unknown>>[];
  /** The same as it was written, and whatever came out on stderr. */
  readonly written: () => string;
}

/** Closing cuts what runs, the address is a free one, and rates are out of the way. */
function fileText(settings: Settings, stateDir: string): string {
  const key = (id: string, text: string, admin: boolean) => ({ id, sha256: sha256Hex(text), admin });
  return JSON.stringify({
    log: { level: "error" },
    limits: { rate: { per_second: 1_000_000, burst: 1_000_000 } },
    shutdown: { drain_deadline_ms: 0 },
    auth: {
      keys: [
        key("alice", keys.alice, false),
        key("bob", keys.bob, false),
        key("operator", keys.operator, true),
      ],
    },
    ...settings,
    addr: "127.0.0.1:0",
    state_dir: stateDir,
  });
}

const newFolder = (): string => mkdtempSync(join(tmpdir(), "orchd-test-"));
const portOf = (url: string): number => Number(new URL(url).port);

export async function startDaemon(settings: Settings): Promise<RunningDaemon> {
  const folder = newFolder();
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  let daemon: Daemon;
  try {
    const compiled = compileConfig({
      flags: {},
      env: { PATH: "" },
      fileText: fileText(settings, folder),
      filePath: join(folder, "config.yaml"),
      cwd: folder,
      home: folder,
      files: systemFiles,
      readModelKind: composition.readModelKind,
    });
    if (!compiled.ok) throw new Error(compiled.problems.map((p) => `${p.path}: ${p.message}`).join("\n"));
    const { config } = compiled;
    daemon = await composition.bootstrap({ config, keys: new ApiKeys(config.auth.keys), buildInfo });
  } catch (error) {
    remove();
    throw error;
  }
  const { url } = daemon;
  let closed: Promise<void> | null = null;
  return {
    url,
    port: portOf(url),
    close: () => {
      closed ??= daemon.close().finally(remove);
      return closed;
    },
  };
}

/** The same as a process of its own, as an operator starts it. */
export async function startLoggingDaemon(settings: Settings): Promise<LoggingDaemon> {
  const folder = newFolder();
  const config = join(folder, "config.yaml");
  writeFileSync(config, fileText({ log: { level: "debug" }, ...settings }, folder));
  const child = Bun.spawn([process.execPath, "src/main.ts", "--config", config], {
    cwd: join(import.meta.dir, "../.."),
    env: { PATH: process.env.PATH ?? "", HOME: folder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  let out = "";
  let err = "";
  const drained = [collect(child.stdout, (text) => (out += text)), collect(child.stderr, (text) => (err += text))];
  const url = await waitFor(
    () => (child.exitCode !== null ? "" : /address +(http:\S+)/.exec(err)?.[1]),
    15_000,
    "the daemon's banner",
  );
  if (url === "") throw new Error(`the daemon did not start: ${err}`);
  return {
    url,
    port: portOf(url),
    get lines() {
      return out
        .slice(0, out.lastIndexOf("\n") + 1)
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => JSON.parse(line) as Record<string, unknown>);
    },
    written: () => out + err,
    close: async () => {
      child.kill("SIGTERM");
      await child.exited;
      await Promise.all(drained);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function collect(stream: ReadableStream<Uint8Array>, add: (text: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  for await (const bytes of stream) add(decoder.decode(bytes, { stream: true }));
}
