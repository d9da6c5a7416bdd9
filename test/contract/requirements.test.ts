/**
 * Requirement ids hold specification, contracts and scenarios together: what an operation or a scenario names
 * is defined in .specs/, and what is defined there is named by a scenario or a test.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");
const pattern = /ORCHD-[A-Z]+-\d+/g;

function idsBelow(folder: string, ending: RegExp): Set<string> {
  const files = readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).filter((f) =>
    ending.test(f),
  );
  return new Set(
    files.flatMap((file) => readFileSync(join(root, folder, file), "utf8").match(pattern) ?? []),
  );
}

/** The rows of a specification's tables: id and the rest of the row. */
const rowsOf = (specification: string): Map<string, string> =>
  new Map(
    [
      ...readFileSync(join(root, ".specs", specification), "utf8").matchAll(
        /^\| (ORCHD-[A-Z]+-\d+) \|(.*)$/gm,
      ),
    ].map((match) => [match[1] ?? "", match[2] ?? ""]),
  );
const ofBehaviour = rowsOf("00_orchestratord.md");
const ofShape = rowsOf("10_architecture.md");
const defined = new Set([...ofBehaviour.keys(), ...ofShape.keys()]);
const inContracts = idsBelow("contracts", /\.yaml$/);
const inFeatures = idsBelow("features", /\.feature$/);
const inTests = idsBelow("test", /\.ts$/);
const elsewhere = new Set([
  ...idsBelow(".specs", /\.md$/),
  ...idsBelow("docs", /\.md$/),
  ...idsBelow("src", /\.ts$/),
  ...idsBelow("scripts", /\.ts$/),
]);

test("the specifications define requirements, each once", () => {
  expect(ofBehaviour.size).toBeGreaterThan(40);
  expect(ofShape.size).toBeGreaterThan(10);
  expect(defined.size).toBe(ofBehaviour.size + ofShape.size);
});

test("contracts, scenarios, tests, code and documents name only what the specifications define", () => {
  const named = [...inContracts, ...inFeatures, ...inTests, ...elsewhere];
  expect(named.filter((id) => !defined.has(id))).toEqual([]);
});

test("contracts and scenarios name what users see", () => {
  expect([...inContracts, ...inFeatures].filter((id) => ofShape.has(id))).toEqual([]);
});

test("every requirement is covered by a scenario or cited by a test, unless a review is all that can see it", () => {
  const byReview = new Set([...ofShape].filter(([, row]) => /\| review \|$/.test(row)).map(([id]) => id));
  expect(byReview.size).toBeLessThan(ofShape.size / 2);
  const missing = [...defined].filter((id) => !inFeatures.has(id) && !inTests.has(id) && !byReview.has(id));
  expect(missing).toEqual([]);
});
