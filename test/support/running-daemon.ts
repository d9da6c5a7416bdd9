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
import { startDaemon as launch, type Setting, type Settings } from "./daemon.ts";

export type { Setting, Settings };

export const keys = {
  alice: "alice-test-key-5f1c2d3e",
  bob: "bob-test-key-9a440c1f",
  operator: "operator-test-key-6a1c4d57",
} as const;

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

/** The section `auth`: everybody's key; `rates` by the key's id. */
export const authSettings = (rates: Readonly<Record<string, Setting>> = {}): Settings => ({
  keys: Object.entries(keys).map(([id, text]) => ({
    id,
    sha256: sha256Hex(text),
    admin: id === "operator",
    rate: rates[id] ?? null,
  })),
});

/** Closing cuts what runs, and rates are out of the way. */
const testSettings: Settings = {
  log: { level: "error" },
  limits: { rate: { per_second: 1_000_000, burst: 1_000_000 } },
  shutdown: { drain_deadline_ms: 0 },
  auth: authSettings(),
};

/** As the text of a file: the address is a free one. */
const fileText = (settings: Settings, stateDir: string): string =>
  JSON.stringify({ ...testSettings, ...settings, addr: "127.0.0.1:0", state_dir: stateDir });

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

/** The same as a process of its own, as an operator starts it. Its `close` fails where something is left behind. */
export async function startLoggingDaemon(settings: Settings): Promise<LoggingDaemon> {
  const folder = newFolder();
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  const file = join(folder, "mock.yaml");
  writeFileSync(file, fileText({ log: { level: "debug" }, ...settings }, join(folder, "state")));
  // With a file of its own it needs no real engine on this machine.
  const daemon = await launch({ settings: null, args: ["--config", file], folder, until: "listening" });
  const { url } = daemon;
  return {
    url,
    port: portOf(url),
    get lines() {
      return daemon.lines;
    },
    written: () => daemon.stdout + daemon.stderr,
    close: async () => {
      await daemon.stop();
      await daemon.dispose();
      remove();
    },
  };
}
