/**
 * Which daemon a command asks, and with which key. replay.ts and fetch.ts call it.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../app/config.ts";
import { systemCode } from "../app/start-error.ts";
import { CannotReplay } from "./replay-client.ts";

/** Where the configured daemon listens, seen from this machine. */
export function addressOf(config: Config | null): string {
  const { host = "", port = 0 } = config?.addr ?? {};
  if (port === 0) throw new CannotReplay("the configuration names no port: name the daemon with --server");
  const anywhere: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1" };
  const there = anywhere[host] ?? host;
  return `${config?.tls === null ? "http" : "https"}://${there.includes(":") ? `[${there}]` : there}:${port}`;
}

/** The file that is named, the variable, else the first-run key; null where there is none: the daemon may need none. */
export function keyOf(
  { keyFile }: { readonly keyFile?: string | undefined },
  config: Config | null,
): string | null {
  if (keyFile === undefined && process.env.ORCHD_API_KEY) return process.env.ORCHD_API_KEY;
  const path = keyFile ?? (config === null ? null : join(config.stateDir, "api-key"));
  if (path === null) return null;
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    const code = systemCode(error);
    if (code === null) throw error;
    if (keyFile === undefined) return null;
    throw new CannotReplay(`cannot read the key file ${path} (${code})`);
  }
}
