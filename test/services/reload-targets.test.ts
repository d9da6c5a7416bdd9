/** Which model a reload means, over real files: references, places, digests. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OrchestratorError } from "../../src/domain/errors.ts";
import { LocalModelFiles } from "../../src/infra/models/local-model-files.ts";
import { ReloadTargets } from "../../src/services/reload-targets.ts";
import { poolSpec } from "../support/replicas.ts";
import { sha256, tinyGguf } from "../support/tiny-gguf.ts";

const folder = mkdtempSync(join(tmpdir(), "orchd-targets-"));
afterAll(() => rmSync(folder, { recursive: true }));
const dir = join(folder, "models");
mkdirSync(dir);
const bytes = tinyGguf(256);
const path = join(dir, "a.gguf");
writeFileSync(path, bytes);
writeFileSync(join(folder, "outside.gguf"), bytes);
writeFileSync(join(dir, "text.gguf"), "no model");

const files = new LocalModelFiles({
  dir,
  roots: [],
  headerProblem: (file) => (file.endsWith("text.gguf") ? "no GGUF header" : null),
});
const targets = new ReloadTargets({
  files,
  catalog: {
    get: (id) => {
      if (id !== "known") throw new OrchestratorError("NOT_FOUND", `the catalog has no entry ${id}`);
      return { located: files.locate("a.gguf", true) } as never;
    },
  },
});
const llama = poolSpec({ engine: "llamacpp", modelRef: "file:old.gguf", modelPath: "/m/old.gguf" });
const { signal } = new AbortController();

describe("the model of a reload", () => {
  test.each(["file:a.gguf", "a.gguf", `file:${path}`, "known"])("%s is the file", (ref) => {
    expect(targets.resolve(llama, ref, null, llama)).toEqual({ ...llama, modelRef: ref, modelPath: path });
  });

  test.each([
    ["file:b.gguf", "there is no file"],
    ["../outside.gguf", "models.dir"],
    [`file:${join(folder, "outside.gguf")}`, "outside models.dir"],
    ["hf:org/repo/file.gguf", "fetch it first"],
    ["unknown-entry", "the catalog has no entry"],
  ])("%s is refused", (ref, part) => {
    expect(() => targets.resolve(llama, ref, null, llama)).toThrow(part);
    try {
      targets.resolve(llama, ref, null, llama);
    } catch (error) {
      expect(error).toMatchObject({ code: "INVALID_PARAMS", details: { field: "new_model_ref" } });
    }
  });

  test("that the pool has, or is configured to have, may lie anywhere", () => {
    const now = targets.resolve(llama, "a.gguf", null, llama);
    expect(targets.resolve(now, "a.gguf", null, llama)).toEqual(now);
    expect(targets.resolve(now, "file:old.gguf", null, llama)).toEqual(llama);
  });

  test("is held against the digest of its bytes, and its header is looked at", async () => {
    const to = targets.resolve(llama, "a.gguf", null, llama);
    expect(await targets.problem(to, null, signal)).toBeNull();
    expect(await targets.problem(to, sha256(bytes), signal)).toBeNull();
    const other = "0".repeat(64);
    expect(await targets.problem(to, other, signal)).toBe(
      `the digest of ${path} is ${sha256(bytes)}, not ${other}`,
    );
    const text = targets.resolve(llama, "text.gguf", null, llama);
    expect(await targets.problem(text, null, signal)).toBe("no GGUF header");
    expect(await targets.problem(poolSpec(), null, signal)).toBeNull();
  });
});
