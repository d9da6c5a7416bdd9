/**
 * The keys that open the daemon: the ones from the configuration, or the one that the first start mints.
 * cli/serve.ts builds the store, app/middleware/auth.ts asks it at every request.
 *
 * Always holds: keys are kept and compared as SHA-256; a check looks at every entry, so that its time tells
 * neither which key matched nor how nearly; a minted key is on disk (0600) before anybody sees it.
 */
import { hash, timingSafeEqual } from "node:crypto";
import {
  closeSync,
  fsyncSync,
  linkSync,
  openSync,
  readFileSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import type { Entropy } from "../ports/clock.ts";
import { isUsableKey, type KeySpec, type RateLimit, sha256Hex, usableKeyText } from "./config-keys.ts";
import { StartError, systemCode } from "./start-error.ts";

/** Whom a request speaks for. */
export interface KeyHolder {
  readonly keyId: string;
  readonly admin: boolean;
  /** Null: limits.rate applies. */
  readonly rate: RateLimit | null;
}

/** Of a key, as much as is needed to let its holder in. */
type Admitted = Pick<KeySpec, "keyId" | "sha256" | "admin" | "rate">;

const digestBytes = 32;

export class ApiKeys {
  readonly #holders: readonly KeyHolder[];
  readonly #digests: readonly Buffer[];

  constructor(specs: readonly Admitted[]) {
    this.#holders = specs.map(({ keyId, admin, rate }) => Object.freeze({ keyId, admin, rate }));
    this.#digests = specs.map(({ sha256 }) => Buffer.from(sha256, "hex"));
    if (this.#digests.some((digest) => digest.length !== digestBytes))
      throw new Error("a key's digest has 32 bytes");
  }

  get size(): number {
    return this.#holders.length;
  }

  /** Who presented this key; null: nobody's. */
  verify(presented: string): KeyHolder | null {
    const digest = hash("sha256", presented, "buffer");
    let matched = -1;
    for (let index = 0; index < this.#digests.length; index += 1) {
      const own = this.#digests[index];
      if (own !== undefined && timingSafeEqual(own, digest)) matched = index;
    }
    return this.#holders[matched] ?? null;
  }
}

export interface OpenedKeys {
  readonly keys: ApiKeys;
  /** The key in clear, at the start that minted it; to be shown once, on the terminal. */
  readonly minted: string | null;
  /** Where the first-run key lies; null when the configuration brings keys or asks for none. */
  readonly keyFile: string | null;
  readonly warnings: readonly string[];
}

const firstRunKeyId = "first-run";

/**
 * The store for this configuration. Without any key in it, the first-run key: an admin's, minted at the first
 * start and kept in the state folder, whose lock the caller holds.
 * @throws StartError "key_file"
 */
export function openKeys(deps: {
  readonly specs: readonly Admitted[];
  readonly mode: "required" | "loopback-open" | "off";
  readonly stateDir: string;
  readonly entropy: Entropy;
}): OpenedKeys {
  if (deps.specs.length > 0 || deps.mode === "off") {
    return { keys: new ApiKeys(deps.specs), minted: null, keyFile: null, warnings: [] };
  }
  const keyFile = join(deps.stateDir, "api-key");
  const { key, minted, warnings } = firstRunKey(keyFile, deps.entropy);
  const keys = new ApiKeys([{ keyId: firstRunKeyId, sha256: sha256Hex(key), admin: true, rate: null }]);
  return { keys, minted: minted ? key : null, keyFile, warnings };
}

function firstRunKey(path: string, entropy: Entropy): { key: string; minted: boolean; warnings: string[] } {
  try {
    const stored = readStored(path);
    if (stored !== null) return { key: stored, minted: false, warnings: modeWarnings(path) };
    const key = `orchd_${entropy.secret(32)}`;
    if (store(path, key, `${path}.${entropy.uuid()}`)) return { key, minted: true, warnings: [] };
    // Another daemon stored one meanwhile: that one counts.
    const theirs = readStored(path);
    if (theirs !== null) return { key: theirs, minted: false, warnings: modeWarnings(path) };
    throw new StartError("key_file", `${path} comes and goes; start one daemon only`);
  } catch (error) {
    const code = systemCode(error);
    if (code === null) throw error;
    throw new StartError("key_file", `cannot read or write the key file ${path} (${code})`, { cause: error });
  }
}

function readStored(path: string): string | null {
  let key: string;
  try {
    key = readFileSync(path, "utf8").trim();
  } catch (error) {
    if (systemCode(error) === "ENOENT") return null;
    throw error;
  }
  if (isUsableKey(key)) return key;
  const message = `the key file ${path} does not hold a key (${usableKeyText}); remove it, and the next start makes a new one`;
  throw new StartError("key_file", message);
}

const modeWarnings = (path: string): string[] =>
  (statSync(path).mode & 0o077) === 0 ? [] : [`others can read the key file ${path}; chmod 600 it`];

/** Whole or not at all, and never over another: a link fails where there is one. False: there was one. */
function store(path: string, key: string, draft: string): boolean {
  const descriptor = openSync(draft, "wx", 0o600);
  try {
    writeSync(descriptor, `${key}\n`);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  try {
    linkSync(draft, path);
  } catch (error) {
    if (systemCode(error) === "EEXIST") return false;
    throw error;
  } finally {
    unlinkSync(draft);
  }
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
  return true;
}
