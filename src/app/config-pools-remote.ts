/**
 * What a pool says of other machines: a server that speaks the OpenAI API (engine openai), or rpc-servers that take a
 * part of a llama.cpp model. Called by app/config-pools.ts.
 *
 * Always holds: nothing of this is looked up or tried here; private addresses are fine, for the operator names them.
 */
import type { RemoteServer } from "../domain/pool.ts";
import { type Credential, type CredentialDeps, compileCredential } from "./config-credentials.ts";
import type { Problems, Segments } from "./config-problems.ts";
import type { FilledPool } from "./config-schema.ts";

/** Null: reported as a problem. */
export function compileRemote(
  pool: FilledPool,
  path: Segments,
  deps: CredentialDeps,
): { readonly modelRef: string; readonly remote: RemoteServer } | null {
  const { problems } = deps;
  const before = problems.found.length;
  refuse(pool, path, problems);
  if (/^(?:file|mock):/.test(pool.model)) {
    const expected = "expected the model as the server names it, as in GET /v1/models, with engine openai";
    problems.atPath([...path, "model"], `found ${JSON.stringify(pool.model)}, ${expected}`);
  }
  const baseUrl = compileBaseUrl(pool.base_url, path, deps);
  const named = pool.api_key_file !== null || pool.api_key_env !== null;
  const at = { file: pool.api_key_file, variable: pool.api_key_env };
  const key: Credential | null = named ? compileCredential(path, "api_key", at, deps) : null;
  if (baseUrl === null || problems.found.length > before) return null;
  if (key !== null) warnPlain(baseUrl, pool.id, deps.warnings);
  return { modelRef: pool.model, remote: { baseUrl, kind: pool.server, key } };
}

/** Keys of engines that run here. */
function refuse(pool: FilledPool, path: Segments, problems: Problems): void {
  const noProcess = "engine openai starts nothing here";
  if (pool.mock !== null) problems.atPath([...path, "mock"], "only engine mock takes this", "key");
  if (pool.args.length > 0) problems.atPath([...path, "args"], `${noProcess}: give them to the server`);
  if (Object.keys(pool.env).length > 0) problems.atPath([...path, "env"], `${noProcess}: leave env out`);
  if (pool.rpc.length > 0) problems.atPath([...path, "rpc"], "only engine llamacpp takes this", "key");
  if (pool.replicas > 1) {
    const advice = "slots is how many tasks the server gets at once; for a second server make a second pool";
    problems.atPath(
      [...path, "replicas"],
      `found ${pool.replicas}, expected 1 with engine openai: ${advice}`,
    );
  }
}

/** Keys of a server elsewhere in a pool that has none. */
export function refuseRemoteKeys(pool: FilledPool, path: Segments, problems: Problems): void {
  const named = ["base_url", "api_key_file", "api_key_env"] as const;
  for (const key of named)
    if (pool[key] !== null) problems.atPath([...path, key], "only engine openai takes this", "key");
  if (pool.server !== "auto") problems.atPath([...path, "server"], "only engine openai takes this", "key");
}

function compileBaseUrl(text: string | null, path: Segments, { problems }: CredentialDeps): string | null {
  const expected = "expected https://HOST/v1 or http://HOST:PORT/v1";
  if (text === null) {
    problems.atPath([...path, "engine"], `found openai without base_url, ${expected}`);
    return null;
  }
  const at = [...path, "base_url"];
  const url = URL.canParse(text) ? new URL(text) : null;
  // Not quoted: somebody may have put a key into it.
  if (url !== null && (url.username !== "" || url.password !== "" || url.search !== "")) {
    problems.atPath(
      at,
      "found credentials or parameters in the address, expected api_key_file or api_key_env",
    );
    return null;
  }
  if (url === null || !["http:", "https:"].includes(url.protocol) || url.hash !== "") {
    problems.atPath(at, `found ${JSON.stringify(text)}, ${expected}`);
    return null;
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}

/** Beyond this machine everybody on the way can read it. */
function warnPlain(baseUrl: string, poolId: string, warnings: string[]): void {
  const { protocol, hostname } = new URL(baseUrl);
  const isHere = hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
  if (protocol === "http:" && !isHere)
    warnings.push(`pool ${poolId}: ${baseUrl} is not encrypted: prompts and its key can be read on the way`);
}

/** HOST:PORT of rpc-servers: the schema has their shape, the port its bounds here. */
export function checkRpc(rpc: readonly string[], path: Segments, problems: Problems): void {
  rpc.forEach((server, index) => {
    const port = Number(server.slice(server.lastIndexOf(":") + 1));
    if (port < 1 || port > 65_535)
      problems.atPath([...path, "rpc", index], `found port ${port}, expected 1 to 65535`);
  });
}
