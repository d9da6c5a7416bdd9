/**
 * What the operator sees at start, as lines. cli/serve.ts prints them on stderr: stdout belongs to the JSON log.
 *
 * Always holds: no key is in here, only where one lies.
 */
import type { PoolSpec } from "../domain/pool.ts";
import type { BuildInfo } from "./build-info.ts";
import type { Config } from "./config.ts";

export interface BannerFacts {
  readonly config: Config;
  readonly buildInfo: BuildInfo;
  /** With the real port. */
  readonly url: string;
  /** Where the first-run key lies; null when the configuration brings keys or asks for none. */
  readonly keyFile: string | null;
}

export function bannerLines({ config, buildInfo, url, keyFile }: BannerFacts): string[] {
  const lines = [
    `orchestratord ${buildInfo.version} (${buildInfo.commit})`,
    row("address", url),
    row("auth", authText(config, keyFile)),
    ...config.pools.map((pool, index) => row(index === 0 ? "pools" : "", poolText(pool))),
    row("metrics", `${url}/metrics`),
    row("docs", `${url}/docs`),
    row("state", config.stateDir),
    row("config", config.filePath ?? "none"),
  ];
  if (config.poolsFrom === "demo") {
    lines.push(
      "",
      "  No model yet: the pool demo answers with made-up words. To serve a real one, put a .gguf file into",
      `  ${config.models.dir} (or name another folder with --models-dir) and start again.`,
    );
  } else if (config.pools.every((pool) => pool.engine === "mock")) {
    lines.push(
      "",
      "  Only mock pools: they answer with made-up words. To serve a model, add a pool with engine: llamacpp and",
      "  model: file:/path/to/model.gguf to the configuration.",
    );
  }
  return lines;
}

const row = (name: string, text: string): string => `  ${name.padEnd(8)} ${text}`;

function authText(config: Config, keyFile: string | null): string {
  const { mode, keys } = config.auth;
  if (mode === "off") return "off (loopback only)";
  if (keyFile !== null) return `${mode}, key in ${keyFile}`;
  return `${mode}, ${keys.length} ${keys.length === 1 ? "key" : "keys"} configured`;
}

function poolText(pool: PoolSpec): string {
  const replicas = pool.replicas === 1 ? "" : `${pool.replicas} × `;
  const slots = `${replicas}${pool.slots} ${pool.slots === 1 ? "slot" : "slots"}`;
  return `${pool.id}: ${pool.engine}, ${pool.modelRef}, ${slots}, ${pool.preload ? "loaded at start" : "on demand"}`;
}
