/**
 * Requirement ids hold specification, contracts and scenarios together: what an operation or a scenario names
 * is defined in .specs/, and what is defined there is named by a contract, a scenario or a test.
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

const defined = new Set(
  [
    ...readFileSync(join(root, ".specs/00_orchestratord.md"), "utf8").matchAll(/^\| (ORCHD-[A-Z]+-\d+) \|/gm),
  ].map((match) => match[1] ?? ""),
);
const inContracts = idsBelow("contracts", /\.yaml$/);
const inFeatures = idsBelow("features", /\.feature$/);
const inTests = idsBelow("test", /\.ts$/);

test("the specification defines requirements", () => {
  expect(defined.size).toBeGreaterThan(40);
});

test("contracts and scenarios name only what the specification defines", () => {
  expect([...inContracts, ...inFeatures].filter((id) => !defined.has(id))).toEqual([]);
});

test("every requirement is covered by a scenario or cited by a test", () => {
  expect([...defined].filter((id) => !inFeatures.has(id) && !inTests.has(id))).toEqual([]);
});
