/** Two files that may be large, compared byte by byte. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { limits } from "../../src/domain/limits.ts";
import { LocalModelFiles } from "../../src/infra/models/local-model-files.ts";

const dir = mkdtempSync(join(tmpdir(), "orchd-compared-"));
afterAll(() => rmSync(dir, { recursive: true }));
const files = new LocalModelFiles({ dir, roots: [] }, () => null);
const never = new AbortController().signal;
const place = (name: string, bytes: Uint8Array): string => {
  const path = join(dir, name);
  writeFileSync(path, bytes);
  return path;
};
const size = 2 * limits.modelHashBytes + 5;
const bytes = new Uint8Array(size).map((_, at) => (at * 31) >>> 3);

test.each([
  ["the first byte", 0],
  ["the last byte of the first slice", limits.modelHashBytes - 1],
  ["the last byte", size - 1],
])("they differ in %s", async (_, at) => {
  const other = bytes.slice();
  other[at] = (other[at] ?? 0) ^ 1;
  expect(await files.sameBytes(place("a", bytes), place("b", other), never)).toBe(false);
});

test("they are the same, or one is the beginning of the other", async () => {
  const path = place("a", bytes);
  expect(await files.sameBytes(path, place("b", bytes), never)).toBe(true);
  expect(await files.sameBytes(path, place("b", bytes.subarray(0, limits.modelHashBytes)), never)).toBe(
    false,
  );
  expect(await files.sameBytes(path, place("b", bytes.subarray(0, size - 1)), never)).toBe(false);
  const empty = place("empty", new Uint8Array());
  expect(await files.sameBytes(empty, place("b", new Uint8Array()), never)).toBe(true);
});

test("one that is not there, and a comparison that is called off, are errors", async () => {
  const path = place("a", bytes);
  const missing = files.sameBytes(path, join(dir, "missing"), never);
  await expect(missing).rejects.toMatchObject({
    fetchErrorKind: "io",
    message: expect.stringContaining("ENOENT"),
  });
  await expect(files.sameBytes(path, path, AbortSignal.abort())).rejects.toMatchObject({
    fetchErrorKind: "aborted",
  });
});
