/** Entries of the catalog: states, what a file is found to be, whether it is trusted. */
import { describe, expect, test } from "bun:test";
import {
  asksTheSame,
  type CatalogRequest,
  judged,
  moved,
  newEntry,
  resultOf,
  stateOf,
  trustOf,
  type Verification,
  verificationReasons,
} from "../../src/domain/catalog.ts";

const request: CatalogRequest = {
  id: "m",
  modelRef: "file:m.gguf",
  digest: "a".repeat(64),
  sizeBytes: 10,
  tags: ["x", "y"],
  references: [{ kind: "sbom", uri: "https://h/s" }],
};
const entry = newEntry(request, 1000);
const file = { sizeBytes: 10, modifiedMs: 5 };
const verified = (reason: Verification["reason"]): Verification => ({ reason, digest: null, file, atMs: 1 });

describe("an entry", () => {
  test("is Active until the instant at which it is retired, and again when it is taken back", () => {
    expect(stateOf(entry, 0)).toBe("Active");
    const retiring = moved(entry, "Retired", 500, 2000);
    expect([2000, 2499, 2500].map((nowMs) => stateOf(retiring, nowMs))).toEqual([
      "Active",
      "Active",
      "Retired",
    ]);
    expect(stateOf(moved(entry, "Retired", 0, 2000), 2000)).toBe("Retired");
    expect(stateOf(moved(retiring, "Active", 0, 3000), 9000)).toBe("Active");
    expect(() => moved(entry, "Retired", -1, 0)).toThrow("now or later");
  });

  test("is the same whatever the order of its tags", () => {
    expect(asksTheSame(request, { ...request, tags: ["y", "x"] })).toBe(true);
    const others: Partial<CatalogRequest>[] = [
      { id: "n" },
      { modelRef: "file:n.gguf" },
      { digest: null },
      { sizeBytes: null },
      { tags: ["x"] },
      { references: [] },
    ];
    for (const other of others) expect(asksTheSame(request, { ...request, ...other })).toBe(false);
  });
});

describe("a digest that was found", () => {
  const [a, b] = ["a".repeat(64), "b".repeat(64)];
  test("is compared with the one that was given, else with the source's", () => {
    expect(judged({ digest: a, sourceDigest: b }, a)).toBe("given");
    expect(judged({ digest: a, sourceDigest: b }, b)).toBe("digest");
    expect(judged({ digest: null, sourceDigest: b }, b)).toBe("source");
    expect(judged({ digest: null, sourceDigest: b }, a)).toBe("digest");
    expect(judged({ digest: null, sourceDigest: null }, a)).toBe("measured");
  });

  test("is good or bad by its reason alone", () => {
    expect(verificationReasons.filter((reason) => resultOf(reason) === "done")).toEqual([
      "given",
      "source",
      "measured",
    ]);
    expect(resultOf("canceled")).toBe("canceled");
  });
});

describe("trust", () => {
  const bad = ["digest", "size", "header", "unreadable"] as const;

  test("permissive: everything but what was found wrong, as it lies there now", () => {
    expect(trustOf("permissive", null, file).trusted).toBe(true);
    expect(trustOf("permissive", entry, file).trusted).toBe(true);
    for (const reason of bad) {
      const failed = { ...entry, verification: verified(reason) };
      expect(trustOf("permissive", failed, file).trusted).toBe(false);
      // Another file was put there since.
      expect(trustOf("permissive", failed, { ...file, modifiedMs: 6 }).trusted).toBe(true);
    }
  });

  test("strict: only what has the digest that somebody gave, and has not changed since", () => {
    const right = { ...entry, verification: verified("given") };
    expect(trustOf("strict", right, file)).toEqual({ trusted: true, because: "verified" });
    const why = (...args: Parameters<typeof trustOf>): string => {
      const trust = trustOf(...args);
      return trust.trusted ? "trusted" : trust.why;
    };
    expect(why("strict", null, file)).toContain("not in the catalog");
    expect(why("strict", entry, file)).toContain("not verified yet");
    expect(why("strict", right, { ...file, sizeBytes: 11 })).toContain("changed since");
    expect(why("strict", right, { ...file, modifiedMs: 6 })).toContain("changed since");
    expect(why("strict", right, null)).toContain("changed since");
    for (const reason of ["source", "measured"] as const)
      expect(why("strict", { ...entry, digest: null, verification: verified(reason) }, file)).toContain(
        "no digest",
      );
    for (const reason of bad)
      expect(why("strict", { ...entry, verification: verified(reason) }, file)).toContain(
        "failed its verification",
      );
  });
});
