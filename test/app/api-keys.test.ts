/**
 * The key store: who is let in, what a first start mints, and that neither two starts at once nor a crash
 * between can spoil the key file (ORCHD-CLI-3).
 */
import { afterAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ApiKeys, openKeys } from "../../src/app/api-keys.ts";
import { isStartError } from "../../src/app/start-error.ts";
import type { Entropy } from "../../src/ports/clock.ts";

const root = mkdtempSync(join(tmpdir(), "orchd-keys-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const freshDir = (): string => mkdtempSync(join(root, `${folders++}-`));

let secrets = 0;
const entropy: Entropy = {
  uuid: () => `00000000-0000-4000-8000-${String(secrets++).padStart(12, "0")}`,
  uint32: () => 4,
  unit: () => 0.5,
  secret: (bytes) => Buffer.alloc(bytes, secrets++).toString("base64url"),
};

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");
const spec = (keyId: string, key: string, more: { admin?: boolean } = {}) => ({
  keyId,
  sha256: sha256(key),
  from: "sha256" as const,
  filePath: null,
  admin: more.admin ?? false,
  rate: null,
});
const open = (stateDir: string, more: Partial<Parameters<typeof openKeys>[0]> = {}) =>
  openKeys({ specs: [], mode: "required", stateDir, entropy, ...more });
const failure = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    if (isStartError(error)) return `${error.startErrorKind}: ${error.message}`;
    throw error;
  }
  return "none";
};

describe("verify", () => {
  test("the right key opens as its holder, any other does not", () => {
    const keys = new ApiKeys([
      spec("a", "the first key"),
      { ...spec("b", "the second key", { admin: true }), rate: { perSecond: 2, burst: 3 } },
    ]);
    expect(keys.size).toBe(2);
    expect(keys.verify("the first key")).toEqual({ keyId: "a", admin: false, rate: null });
    expect(keys.verify("the second key")).toEqual({
      keyId: "b",
      admin: true,
      rate: { perSecond: 2, burst: 3 },
    });
    const others = [
      "",
      "the first key ",
      "The first key",
      "the first ke",
      sha256("the first key"),
      "x".repeat(100_000),
      "\ud800",
    ];
    for (const other of others) expect(keys.verify(other)).toBeNull();
  });

  test("many keys: each one opens as itself", () => {
    const many = new ApiKeys(
      Array.from({ length: 300 }, (_, index) => spec(`k${index}`, `key number ${index}`)),
    );
    for (const index of [0, 1, 150, 299]) expect(many.verify(`key number ${index}`)?.keyId).toBe(`k${index}`);
    expect(many.verify("key number 300")).toBeNull();
  });

  test("without keys nobody is let in", () => {
    expect(new ApiKeys([]).verify("")).toBeNull();
  });

  test("a digest of another length is a mistake of the program", () => {
    expect(() => new ApiKeys([{ keyId: "a", sha256: "ab", admin: false, rate: null }])).toThrow("32 bytes");
  });
});

describe("the first-run key", () => {
  test("is minted once, kept 0600 and used again", () => {
    const stateDir = freshDir();
    const first = open(stateDir);
    expect(first.minted).toMatch(/^orchd_[A-Za-z0-9_-]{43}$/);
    expect(first.keyFile).toBe(join(stateDir, "api-key"));
    expect(first.keys.verify(first.minted ?? "")).toEqual({ keyId: "first-run", admin: true, rate: null });
    expect(statSync(join(stateDir, "api-key")).mode & 0o777).toBe(0o600);
    expect(readFileSync(join(stateDir, "api-key"), "utf8")).toBe(`${first.minted}\n`);
    expect(readdirSync(stateDir)).toEqual(["api-key"]);

    const second = open(stateDir);
    expect(second.minted).toBeNull();
    expect(second.keyFile).toBe(first.keyFile);
    expect(second.keys.verify(first.minted ?? "")?.keyId).toBe("first-run");
    expect(second.warnings).toEqual([]);
  });

  test("is not made where the configuration brings keys, or asks for none", () => {
    const stateDir = freshDir();
    const configured = open(stateDir, { specs: [spec("a", "the first key")] });
    expect(configured.keys.verify("the first key")?.keyId).toBe("a");
    expect([configured.minted, configured.keyFile]).toEqual([null, null]);
    expect(open(stateDir, { mode: "off" }).keys.size).toBe(0);
    expect(readdirSync(stateDir)).toEqual([]);
    expect(open(stateDir, { mode: "loopback-open" }).minted).not.toBeNull();
  });

  test("loses against one that appeared meanwhile, and never overwrites it", () => {
    const stateDir = freshDir();
    const theirs = "orchd_the-key-of-the-other-daemon";
    // The other daemon stores its key between our look and our store.
    const racing: Entropy = {
      ...entropy,
      secret: (bytes) => {
        writeFileSync(join(stateDir, "api-key"), `${theirs}\n`, { mode: 0o600 });
        return entropy.secret(bytes);
      },
    };
    const opened = open(stateDir, { entropy: racing });
    expect(opened.minted).toBeNull();
    expect(opened.keys.verify(theirs)?.keyId).toBe("first-run");
    expect(readFileSync(join(stateDir, "api-key"), "utf8")).toBe(`${theirs}\n`);
    expect(readdirSync(stateDir)).toEqual(["api-key"]);
  });

  test("a file that others can read is a warning, one that holds no key an error that does not quote it", () => {
    const stateDir = freshDir();
    open(stateDir);
    const path = join(stateDir, "api-key");
    chmodSync(path, 0o644);
    expect(open(stateDir).warnings).toEqual([`others can read the key file ${path}; chmod 600 it`]);
    writeFileSync(path, "too short\n");
    expect(failure(() => open(stateDir))).toStartWith(`key_file: the key file ${path} does not hold a key`);
    expect(failure(() => open(stateDir))).not.toContain("too short");
    writeFileSync(path, "");
    expect(failure(() => open(stateDir))).toStartWith("key_file:");
  });

  test("a folder that is not there is an error with its code", () => {
    const gone = join(freshDir(), "gone");
    expect(failure(() => open(gone))).toBe(
      `key_file: cannot read or write the key file ${join(gone, "api-key")} (ENOENT)`,
    );
    expect(existsSync(gone)).toBe(false);
  });
});
