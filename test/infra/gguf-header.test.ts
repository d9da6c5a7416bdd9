/** GGUF headers: built byte by byte here, read by the product; then every way to be broken. */
import { describe, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
  isGgufError,
  parseGgufHeader,
  readGgufHeader,
  readOpenGguf,
} from "../../src/infra/engines/gguf-header.ts";
import { contextPerSlot } from "../../src/infra/engines/llamacpp-launch.ts";
import { testModel } from "../support/engine.ts";

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value: number | bigint) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);
const key = (name: string, type: number, value: Buffer) => Buffer.concat([text(name), u32(type), value]);
const strings = (items: string[]) => Buffer.concat([u32(8), u64(items.length), ...items.map(text)]);

const keys = [
  key("general.architecture", 8, text("llama")),
  key("general.name", 8, text("tiny 模型")),
  key("llama.block_count", 4, u32(5)),
  key("llama.context_length", 10, u64(2048)),
  key("llama.embedding_length", 4, u32(64)),
  key("llama.attention.head_count", 9, Buffer.concat([u32(5), u64(3), u32(1), u32(2), u32(3)])),
  key("llama.rope.scale", 6, Buffer.from([0, 0, 128, 63])),
  key("llama.pooling_type", 0, Buffer.from([1])),
  key("some.flag", 7, Buffer.from([1])),
  key("some.signed", 11, u64(5)),
  key("tokenizer.ggml.tokens", 9, strings(["<s>", "the", "🙂"])),
  key("tokenizer.chat_template", 8, text("{{ messages }}")),
];

const gguf = (
  entries: readonly Buffer[],
  version = 3,
  count: number | bigint = entries.length,
  tensors = 47,
) => Buffer.concat([Buffer.from("GGUF"), u32(version), u64(tensors), u64(count), ...entries]);

const parse = (bytes: Buffer) =>
  parseGgufHeader({
    sizeBytes: bytes.length,
    read: (offset, length) => bytes.subarray(offset, Math.min(bytes.length, offset + length)),
  });

const failure = (bytes: Buffer): string => {
  try {
    parse(bytes);
    return "it was read";
  } catch (error) {
    return isGgufError(error) ? error.message : `not a GgufError: ${String(error)}`;
  }
};

describe("GGUF header", () => {
  test("says what the daemon wants to know", () => {
    expect(parse(gguf(keys))).toEqual({
      version: 3,
      architecture: "llama",
      name: "tiny 模型",
      tensorCount: 47,
      blockCount: 5,
      contextLength: 2048,
      embeddingLength: 64,
      hasChatTemplate: true,
      poolingType: 1,
      fileSizeBytes: gguf(keys).length,
    });
  });

  test("what is not there is null, the order of keys means nothing", () => {
    const bare = parse(gguf(keys.slice(0, 1), 2));
    expect(bare).toMatchObject({ version: 2, name: null, contextLength: null, hasChatTemplate: false });
    expect(parse(gguf([...keys].reverse()))).toEqual(parse(gguf(keys)));
  });

  test("a vocabulary larger than the window is walked over", () => {
    const large = key(
      "tokenizer.ggml.merges",
      9,
      strings(Array.from({ length: 60_000 }, (_, i) => `piece ${i}`)),
    );
    const header = parse(gguf([large, ...keys]));
    expect(header.contextLength).toBe(2048);
    expect(header.fileSizeBytes).toBeGreaterThan(700_000);
  });

  test("cut anywhere, it is told as cut short", () => {
    const whole = gguf(keys);
    for (let length = 0; length < whole.length; length++) {
      expect(failure(whole.subarray(0, length))).toMatch(/too short|cut short/);
    }
  });

  test("nonsense has a reason and no crash", () => {
    expect(failure(Buffer.from(`hello${" ".repeat(40)}`))).toContain("does not begin with GGUF");
    expect(failure(gguf(keys, 1))).toContain("version 1");
    expect(failure(gguf(keys.slice(1)))).toContain("no architecture");
    expect(failure(gguf(keys, 3, 2n ** 60n))).toContain("key count");
    expect(failure(gguf([key("general.architecture", 99, u32(1))]))).toContain("value type 99");
    expect(failure(gguf([Buffer.concat([u64(2n ** 63n), Buffer.alloc(50)])]))).toContain("key length");
    expect(failure(gguf([key("a", 9, Buffer.concat([u32(9), u64(1), Buffer.alloc(40)]))]))).toContain(
      "array",
    );
  });

  test("any flipped byte is either read or refused (property)", () => {
    const whole = gguf(keys);
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, value) => {
        const bytes = Buffer.from(whole);
        bytes[at] = value;
        expect(failure(bytes)).not.toStartWith("not a GgufError");
      }),
      { numRuns: 1000 },
    );
  });

  test("files: missing, a folder, the demo model", () => {
    const folder = mkdtempSync(join(tmpdir(), "orchd-gguf-"));
    try {
      expect(() => readGgufHeader(join(folder, "none.gguf"))).toThrow("cannot be opened");
      expect(() => readGgufHeader(folder)).toThrow();
      writeFileSync(join(folder, "a.gguf"), gguf(keys));
      expect(readGgufHeader(join(folder, "a.gguf")).architecture).toBe("llama");
      expect(readGgufHeader(testModel("demo"))).toMatchObject({ hasChatTemplate: true });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("a file that cannot be read has a reason too", () => {
    const folder = mkdtempSync(join(tmpdir(), "orchd-gguf-"));
    const path = join(folder, "a.gguf");
    writeFileSync(path, gguf(keys));
    // Open for writing only: it is a file of the right size, and each read fails.
    const fd = openSync(path, "a");
    const read = () => {
      try {
        readOpenGguf(fd);
        return "it was read";
      } catch (error) {
        return isGgufError(error) ? error.message : `not a GgufError: ${String(error)}`;
      }
    };
    try {
      expect(read()).toBe("the model file cannot be read (EBADF)");
    } finally {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    }
    expect(read()).toBe("the model file cannot be read (EBADF)");
  });

  test("sizes the context: asked for, trained, or bounded", () => {
    expect(contextPerSlot(null, 2048)).toBe(2048);
    expect(contextPerSlot(null, 131_072)).toBe(8192);
    expect(contextPerSlot(null, null)).toBe(4096);
    expect(contextPerSlot(1_000_000, 2048)).toBe(2048);
    expect(contextPerSlot(512, 2048)).toBe(512);
    expect(contextPerSlot(32_768, null)).toBe(32_768);
  });
});
