/**
 * The keys that the configuration names, compiled: ids unique, every key as its SHA-256. Called by
 * app/config.ts; app/api-keys.ts makes the store out of the result.
 *
 * Always holds: a compiled key carries a digest, never the key itself, so that a dump of the configuration
 * gives nobody access.
 */
import { createHash } from "node:crypto";
import type { Budget } from "../domain/task.ts";
import type { Allowance } from "../services/allowances.ts";
import type { ConfigFiles } from "./config-files.ts";
import type { Problems, Segments } from "./config-problems.ts";
import type { FilledKey, RateSpec, SpendingSpec } from "./config-schema.ts";

export interface RateLimit {
  readonly perSecond: number;
  readonly burst: number;
}

/** What a key may spend in each window of time. */
export interface KeyBudget extends Budget {
  readonly windowMs: number;
}

export interface KeySpec {
  readonly keyId: string;
  /** SHA-256 of the key, 64 lower-case hexadecimal digits. */
  readonly sha256: string;
  readonly from: "sha256" | "file" | "env";
  readonly filePath: string | null;
  readonly admin: boolean;
  /** Null: limits.rate applies. */
  readonly rate: RateLimit | null;
  /** Null: its tasks are bounded by their sessions' budgets only. */
  readonly budget: KeyBudget | null;
}

const keyCharsMin = 16;
const keyCharsMax = 512;
/** Ids that the daemon gives itself. */
const reservedIds = ["env", "first-run"];

export const sha256Hex = (text: string): string => createHash("sha256").update(text).digest("hex");
/** A key travels in a header: visible ASCII without blanks. */
export const isUsableKey = (key: string): boolean =>
  key.length >= keyCharsMin && key.length <= keyCharsMax && /^[\x21-\x7e]+$/.test(key);
export const usableKeyText = `${keyCharsMin} to ${keyCharsMax} visible ASCII characters without blanks`;

const compileRate = (rate: RateSpec | null): RateLimit | null =>
  rate === null ? null : { perSecond: rate.per_second, burst: rate.burst };

export const compileBudget = (of: SpendingSpec): Budget => ({
  tokens: of.tokens,
  timeMs: of.time_ms,
  cost: of.cost,
});

/** By key id, the keys that have one: what the ledger of the keys' spending starts from. */
export const allowancesOf = (specs: readonly KeySpec[]): ReadonlyMap<string, Allowance> =>
  new Map(
    specs.flatMap(({ keyId, budget: own }) => {
      if (own === null) return [];
      const { windowMs, ...budget } = own;
      return [[keyId, { budget, windowMs }] as const];
    }),
  );

/** Null: it has none, or one that is a mistake. */
function compileKeyBudget(of: FilledKey["budget"], path: Segments, problems: Problems): KeyBudget | null {
  if (of === null) return null;
  const budget = compileBudget(of);
  if (Object.values(budget).some((bound) => bound !== null)) return { ...budget, windowMs: of.window_ms };
  problems.atPath(path, "found none of tokens, time_ms and cost, expected at least one");
  return null;
}

export function compileKeys(deps: {
  readonly keys: readonly FilledKey[];
  readonly envKey: string | undefined;
  readonly files: ConfigFiles;
  readonly absolute: (path: string) => string;
  readonly problems: Problems;
  readonly warnings: string[];
}): KeySpec[] {
  const { problems, warnings } = deps;
  const specs: KeySpec[] = [];
  const ids = new Map<string, number>();
  const digests = new Map<string, string>();

  deps.keys.forEach((key, index) => {
    const path = ["auth", "keys", index] as const;
    const twin = ids.get(key.id);
    if (twin !== undefined)
      problems.atPath([...path, "id"], `found ${key.id} again; auth.keys[${twin}] has this id already`);
    else ids.set(key.id, index);
    if (reservedIds.includes(key.id))
      problems.atPath([...path, "id"], `found ${key.id}, which the daemon uses itself`);
    if (problems.hasBelow(path)) return;

    let sha256: string;
    let filePath: string | null = null;
    if (key.sha256 !== null && key.file === null) sha256 = key.sha256.toLowerCase();
    else if (key.file !== null && key.sha256 === null) {
      filePath = deps.absolute(key.file);
      const read = readKeyFile(filePath, deps.files);
      if ("wrong" in read) {
        problems.atPath([...path, "file"], read.wrong);
        return;
      }
      if (read.warning !== null) warnings.push(read.warning);
      sha256 = sha256Hex(read.key);
    } else {
      const what = key.file === null ? "neither" : "both";
      problems.atPath([...path], `found ${what} of sha256 and file, expected one of them`);
      return;
    }
    const same = digests.get(sha256);
    if (same !== undefined) problems.atPath([...path], `the same key as ${same} has; give each its own`);
    else digests.set(sha256, key.id);
    const from = filePath === null ? "sha256" : "file";
    const rate = compileRate(key.rate);
    const budget = compileKeyBudget(key.budget, [...path, "budget"], problems);
    specs.push({ keyId: key.id, sha256, from, filePath, admin: key.admin, rate, budget });
  });

  if (deps.envKey !== undefined) {
    if (isUsableKey(deps.envKey)) {
      specs.push({
        keyId: "env",
        sha256: sha256Hex(deps.envKey),
        from: "env",
        filePath: null,
        admin: true,
        rate: null,
        budget: null,
      });
    } else {
      problems.of(
        "ORCHD_API_KEY",
        `found a text of ${deps.envKey.length} characters, expected ${usableKeyText}`,
      );
    }
  }
  return specs;
}

function readKeyFile(
  path: string,
  files: ConfigFiles,
): { readonly key: string; readonly warning: string | null } | { readonly wrong: string } {
  const text = files.readText(path, 64 * 1024);
  if (text === null) return { wrong: `cannot read the file ${path}` };
  const key = text.trim();
  if (!isUsableKey(key))
    return { wrong: `the file ${path} holds ${key.length} characters, expected ${usableKeyText}` };
  const mode = files.facts(path)?.mode ?? 0;
  const warning = (mode & 0o004) === 0 ? null : `the key file ${path} can be read by everyone; chmod 600 it`;
  return { key, warning };
}
