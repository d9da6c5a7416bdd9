/** Canonical form, search and collection rules of artifacts. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type ArtifactDocument,
  artifactKinds,
  canonicalText,
  collected,
  documentBytesMax,
  parseDocument,
  searchText,
  searchWords,
} from "../../src/domain/artifact.ts";
import { limits } from "../../src/domain/limits.ts";

const digest = fc.stringMatching(/^[0-9a-f]{64}$/);
const wellFormed = fc.string({ unit: "grapheme" });
const documents: fc.Arbitrary<ArtifactDocument> = fc.record({
  kind: fc.constantFrom(...artifactKinds),
  content: fc.oneof(
    wellFormed,
    fc.array(fc.jsonValue()),
    fc.dictionary(wellFormed, fc.jsonValue(), { noNullPrototype: true }),
  ) as fc.Arbitrary<ArtifactDocument["content"]>,
  tags: fc.array(fc.stringMatching(/^[a-z]{1,8}$/), { maxLength: 4 }),
  parent: fc.option(digest),
  metadata: fc.dictionary(fc.stringMatching(/^[a-z]{1,8}$/), wellFormed, { noNullPrototype: true }),
  attachments: fc.array(digest, { maxLength: 2 }),
});

const plan: ArtifactDocument = {
  kind: "plan",
  content: { b: [1, "Two"], a: "Straße" },
  tags: ["x"],
  parent: null,
  metadata: { team: "Docs" },
  attachments: [],
};

/** The members of every object the other way round. */
const turned = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(turned);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .reverse()
      .map(([name, member]) => [name, turned(member)]),
  );
};

describe("the canonical text", () => {
  test("is RFC 8785 of the document, without attachments where there are none", () => {
    expect(canonicalText(plan)).toBe(
      '{"content":{"a":"Straße","b":[1,"Two"]},"kind":"plan","metadata":{"team":"Docs"},"parent":null,"tags":["x"]}',
    );
    expect(canonicalText({ ...plan, attachments: ["ab"] })).toContain('"attachments":["ab"]');
  });

  test("does not depend on the order of members, and reads back as the same document", () => {
    fc.assert(
      fc.property(documents, (document) => {
        const text = canonicalText(document);
        expect(canonicalText(turned(document) as ArtifactDocument)).toBe(text);
        const back = parseDocument(text);
        expect(back === null ? null : canonicalText(back)).toBe(text);
      }),
    );
  });

  test("half a surrogate pair is refused", () => {
    expect(() => canonicalText({ ...plan, content: "\ud800" })).toThrow("surrogate");
  });

  test.each([
    "",
    "[]",
    "1",
    "{",
    '{"kind":"plan"}',
    '{"kind":"x","content":"","tags":[],"parent":null,"metadata":{}}',
  ])("what never was a document is none: %s", (text) => {
    expect(parseDocument(text)).toBeNull();
  });
});

test("a plan and a summary have their own bounds, all are within the configured one", () => {
  expect(documentBytesMax("trace", 8_000_000)).toBe(8_000_000);
  expect(documentBytesMax("summary", 8_000_000)).toBe(limits.artifactSummaryBytesMax);
  expect(documentBytesMax("summary", 10)).toBe(10);
});

describe("a search", () => {
  test("sees every text in lower case, within its bound", () => {
    for (const word of ["straße", "two", "docs", "team", "x"]) expect(searchText(plan)).toContain(word);
    fc.assert(
      fc.property(documents, (document) => {
        expect(searchText(document).length).toBeLessThanOrEqual(limits.artifactSearchCharsMax);
      }),
    );
    let deep: unknown = "bottom";
    for (let level = 0; level < 50_000; level += 1) deep = [deep];
    expect(searchText({ ...plan, content: deep as [] })).toContain("bottom");
  });

  test("asks for each word once, and for few", () => {
    expect(searchWords("  One two ONE ")).toEqual(["one", "two"]);
    expect(searchWords(" ")).toEqual([]);
  });
});

test("what goes: the old, and while there is too much everything but what came just now", () => {
  const now = 1e12;
  const entry = (ageMs: number) => ({ storedMs: now - ageMs, sizeBytes: 1 });
  const day = 24 * 3600 * 1000;
  expect(collected(entry(day), { maxAgeMs: null, overBytes: 0 }, now)).toBeNull();
  expect(collected(entry(day), { maxAgeMs: day, overBytes: 0 }, now)).toBe("age");
  expect(collected(entry(day - 1), { maxAgeMs: day, overBytes: 0 }, now)).toBeNull();
  expect(collected(entry(day - 1), { maxAgeMs: day, overBytes: 1 }, now)).toBe("quota");
  expect(collected(entry(limits.artifactGraceMs - 1), { maxAgeMs: 1, overBytes: 1 }, now)).toBeNull();
});
