/**
 * A whole daemon for tests: compiled configuration, real socket on a free port, mock engines. In this process by
 * default; as a child process where the log is to be read or where it is to be killed. Whoever starts one closes it:
 * the state folder goes with it, unless it was given one, which stays for the next start.
 */
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ApiKeys } from "../../src/app/api-keys.ts";
import { composition } from "../../src/app/bootstrap.ts";
import { buildInfo } from "../../src/app/build-info.ts";
import { loadConfig } from "../../src/app/config.ts";
import { sha256Hex } from "../../src/app/config-keys.ts";
import { formatProblem } from "../../src/app/config-problems.ts";
import type { Daemon, Reread } from "../../src/app/daemon.ts";
import { startDaemon as launch, runToEnd, type Setting, type Settings } from "./daemon.ts";

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
  /** As `kill -9` does; resolves when nothing of it is left. */
  kill(): Promise<void>;
}

/** The folder with configuration and state, removed by whoever made it. */
export const newFolder = (): string => mkdtempSync(join(tmpdir(), "orchd-test-"));
export const removeFolder = (folder: string): void => rmSync(folder, { recursive: true, force: true });

/** Where a daemon with this folder keeps its tasks. */
export const databaseFile = (folder: string): string => join(folder, "state", "orchestratord.db");

/** The section `auth`: everybody's key; rates and budgets by the key's id. */
export const authSettings = (
  rates: Readonly<Record<string, Setting>> = {},
  budgets: Readonly<Record<string, Setting>> = {},
): Settings => ({
  keys: Object.entries(keys).map(([id, text]) => ({
    id,
    sha256: sha256Hex(text),
    admin: id === "operator",
    rate: rates[id] ?? null,
    budget: budgets[id] ?? null,
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

/** Another text in the place of the configuration file of a daemon that was started in this folder. */
export function replaceConfig(settings: Settings | string, folder: string): void {
  const text = typeof settings === "string" ? settings : fileText(settings, join(folder, "state"));
  writeFileSync(join(folder, "config.yaml.new"), text);
  renameSync(join(folder, "config.yaml.new"), join(folder, "config.yaml"));
}

const portOf = (url: string): number => Number(new URL(url).port);

export async function startDaemon(settings: Settings, given: string | null = null): Promise<RunningDaemon> {
  const folder = given ?? newFolder();
  const remove = (): void => {
    if (given === null) removeFolder(folder);
  };
  let daemon: Daemon;
  try {
    const stateDir = join(folder, "state");
    mkdirSync(stateDir, { recursive: true });
    writeFileSync(join(folder, "config.yaml"), fileText(settings, stateDir));
    const reread = (): ReturnType<Reread> => {
      const read = loadConfig({
        flags: {},
        env: { PATH: "" },
        cwd: folder,
        home: folder,
        readModelKind: composition.readModelKind,
        inUse: join(folder, "config.yaml"),
      });
      if (!read.ok) return { ok: false, problems: read.problems.map(formatProblem) };
      return { ...read, keys: new ApiKeys(read.config.auth.keys) };
    };
    const first = reread();
    if (!first.ok) throw new Error(first.problems.join("\n"));
    const { config, keys } = first;
    daemon = await composition.bootstrap({ config, keys, buildInfo, reread });
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

/** Its configuration file. With one of its own it needs no real engine on this machine. */
function written(settings: Settings, folder: string): string {
  const file = join(folder, "mock.yaml");
  writeFileSync(file, fileText({ log: { level: "debug" }, ...settings }, join(folder, "state")));
  return file;
}

/** The same as a process of its own, as an operator starts it. Its `close` fails where something is left behind. */
export async function startLoggingDaemon(
  settings: Settings,
  given: string | null = null,
): Promise<LoggingDaemon> {
  const folder = given ?? newFolder();
  const args = ["--config", written(settings, folder)];
  const daemon = await launch({ settings: null, args, folder, until: "listening" });
  const { url } = daemon;
  const end = async (ended: Promise<unknown>): Promise<void> => {
    await ended;
    await daemon.dispose();
    if (given === null) removeFolder(folder);
  };
  let closed: Promise<void> | null = null;
  const close = (how: () => Promise<unknown>): Promise<void> => {
    closed ??= end(how());
    return closed;
  };
  return {
    url,
    port: portOf(url),
    get lines() {
      return daemon.lines;
    },
    written: () => daemon.stdout + daemon.stderr,
    close: () => close(() => daemon.stop()),
    kill: () => close(() => daemon.kill9()),
  };
}

/** A start that must fail, as a process of its own. */
export const failToStart = (settings: Settings, folder: string): Promise<{ code: number; stderr: string }> =>
  runToEnd({ settings: null, args: ["--config", written(settings, folder)], folder });
