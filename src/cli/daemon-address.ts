/**
 * Which daemon a command asks, and with which key. replay.ts and fetch.ts call `onDaemon`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Config, type ConfigFlags, loadConfig } from "../app/config.ts";
import type { Composition } from "../app/daemon.ts";
import { systemCode } from "../app/start-error.ts";
import { problemsText } from "./check-config.ts";
import { CommandError, DaemonClient, isCommandError } from "./daemon-client.ts";
import { printError } from "./print.ts";

export interface DaemonFlags {
  /** Base URL; else the configuration's address. */
  readonly server?: string | undefined;
  /** Else ORCHD_API_KEY or the first-run key. */
  readonly keyFile?: string | undefined;
}

/** Exit code: what `work` resolves to, or 2 where the configuration is wrong or `work` throws a CommandError. */
export async function onDaemon(
  flags: DaemonFlags,
  configFlags: ConfigFlags,
  { readModelKind }: Pick<Composition, "readModelKind">,
  work: (client: DaemonClient) => Promise<number>,
): Promise<number> {
  const loaded = loadConfig({ flags: configFlags, env: process.env, readModelKind });
  if (!loaded.ok && (flags.server === undefined || flags.keyFile === undefined)) {
    await printError(problemsText(loaded.problems));
    return 2;
  }
  const config = loaded.ok ? loaded.config : null;
  try {
    const url = flags.server?.replace(/\/+$/, "") ?? addressOf(config);
    return await work(new DaemonClient(url, keyOf(flags, config)));
  } catch (error) {
    if (!isCommandError(error)) throw error;
    await printError(`orchestratord: ${error.message}\n`);
    return 2;
  }
}

/** Where the configured daemon listens, seen from this machine. */
function addressOf(config: Config | null): string {
  const { host = "", port = 0 } = config?.addr ?? {};
  if (port === 0) throw new CommandError("the configuration names no port: name the daemon with --server");
  const anywhere: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1" };
  const there = anywhere[host] ?? host;
  return `${config?.tls === null ? "http" : "https"}://${there.includes(":") ? `[${there}]` : there}:${port}`;
}

/** The file that is named, the variable, else the first-run key; null where there is none: the daemon may need none. */
function keyOf({ keyFile }: DaemonFlags, config: Config | null): string | null {
  if (keyFile === undefined && process.env.ORCHD_API_KEY) return process.env.ORCHD_API_KEY;
  const path = keyFile ?? (config === null ? null : join(config.stateDir, "api-key"));
  if (path === null) return null;
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    const code = systemCode(error);
    if (code === null) throw error;
    if (keyFile === undefined) return null;
    throw new CommandError(`cannot read the key file ${path} (${code})`);
  }
}
