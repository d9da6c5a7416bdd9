/** References to models: every form there is, what is refused and why, one place in the cache each. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { cachePathOf, idOf, isRemote, parseModelRef, refText, urlOf } from "../../src/domain/model-ref.ts";

const refOf = (text: string) => {
  const parsed = parseModelRef(text);
  if (!parsed.ok) throw new Error(`${text}: ${parsed.problem}`);
  return parsed.ref;
};
const problemOf = (text: string): string => {
  const parsed = parseModelRef(text);
  return parsed.ok ? "" : parsed.problem;
};

describe("a model reference", () => {
  test("names a file, by scheme or bare", () => {
    expect(refOf("file:/models/a.gguf")).toEqual({ kind: "file", path: "/models/a.gguf" });
    expect(refOf("file:a.gguf")).toEqual({ kind: "file", path: "a.gguf" });
    expect(refOf("a.gguf")).toEqual({ kind: "file", path: "a.gguf" });
    expect(refOf("sub/a")).toEqual({ kind: "file", path: "sub/a" });
    expect(refText(refOf("a.gguf"))).toBe("file:a.gguf");
  });

  test("names an entry of the catalog", () => {
    expect(refOf("qwen3-8b")).toEqual({ kind: "catalog", id: "qwen3-8b" });
    expect(refOf("Qwen3-8b")).toEqual({ kind: "file", path: "Qwen3-8b" });
  });

  test("names a file of the hub, its revision main where none is named", () => {
    const ref = refOf("hf:Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf");
    expect(ref).toEqual({
      kind: "hub",
      org: "Qwen",
      repo: "Qwen3-8B-GGUF",
      revision: "main",
      file: "Qwen3-8B-Q4_K_M.gguf",
    });
    if (!isRemote(ref)) throw new Error("it is remote");
    expect(urlOf(ref)).toBe("https://huggingface.co/Qwen/Qwen3-8B-GGUF/resolve/main/Qwen3-8B-Q4_K_M.gguf");
    expect(cachePathOf(ref)).toBe("hf/Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf");
    expect(idOf(ref)).toBe("qwen3-8b-q4_k_m");
    const tagged = refOf("hf:a/b@v1.0/sub/c.gguf");
    if (!isRemote(tagged)) throw new Error("it is remote");
    expect([urlOf(tagged, "http://h"), cachePathOf(tagged), refText(tagged)]).toEqual([
      "http://h/a/b/resolve/v1.0/sub/c.gguf",
      "hf/a/b@v1.0/sub/c.gguf",
      "hf:a/b@v1.0/sub/c.gguf",
    ]);
    expect(refText(refOf("hf:a/b@main/c.gguf"))).toBe("hf:a/b/c.gguf");
  });

  test("names an address", () => {
    const ref = refOf("https://Models.Example:8443/x/a%20b.gguf");
    if (!isRemote(ref)) throw new Error("it is remote");
    expect(urlOf(ref)).toBe("https://models.example:8443/x/a%20b.gguf");
    expect(cachePathOf(ref)).toBe("https/models.example_8443/x/a%20b.gguf");
  });

  test("is refused with what to write instead, and no secret in it", () => {
    const wrong: readonly [string, string][] = [
      ["", "characters"],
      ["a\nb", "control"],
      ["file:", "file:/absolute.gguf"],
      ["file:///a.gguf", "file:/absolute.gguf"],
      ["hf:only/two.gguf", "hf:ORG/REPO"],
      ["hf:a/../b/c.gguf", "hf:ORG/REPO"],
      ["hf:a/b/.hidden.gguf", "hf:ORG/REPO"],
      ["hf:a/b@/c.gguf", "hf:ORG/REPO"],
      ["hf:a/b/c.safetensors", "hf:ORG/REPO"],
      ["https://user:s3cret@h.example/a.gguf", "credentials"],
      ["https://h.example/a.gguf?token=s3cret", "query"],
      ["https://h.example/a.gguf#x", "fragment"],
      ["https://h.example/a.txt", ".gguf"],
      ["https://h.example/%2e%2e%2fa.gguf", ".gguf"],
      ["https://h.example//a.gguf", ".gguf"],
      ["https://", "cannot be read"],
      ["ftp://h.example/a.gguf", "scheme ftp:"],
      ["mock:words", "engine mock"],
    ];
    for (const [text, part] of wrong) {
      expect([text, problemOf(text)]).toEqual([text, expect.stringContaining(part)]);
      expect(problemOf(text)).not.toContain("s3cret");
    }
  });

  test("has one spelling that parses to itself, and its place never leaves the cache", () => {
    const texts = fc.oneof(
      fc.string({ maxLength: 40 }),
      fc.webUrl().map((url) => `${url}/m.gguf`),
      fc.stringMatching(/^hf:[A-Za-z0-9._@/-]{1,40}\.gguf$/),
    );
    fc.assert(
      fc.property(texts, (text) => {
        const parsed = parseModelRef(text);
        if (!parsed.ok) return;
        expect(parseModelRef(refText(parsed.ref))).toEqual(parsed);
        if (!isRemote(parsed.ref)) return;
        expect(parseModelRef(idOf(parsed.ref))).toEqual({
          ok: true,
          ref: { kind: "catalog", id: idOf(parsed.ref) },
        });
        const place = cachePathOf(parsed.ref).split("/");
        expect(place.some((part) => part === "" || part === "." || part === "..")).toBe(false);
        expect(place[0]).toMatch(/^(hf|https?)$/);
      }),
      { numRuns: 2_000 },
    );
  });
});
