/** A GGUF file of a given length: a header that is right, and bytes that stand for weights. Nothing can run it. */
export function tinyGguf(bytes: number, seed = 1): Uint8Array {
  const text = (value: string): Buffer => {
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(value.length));
    return Buffer.concat([length, Buffer.from(value)]);
  };
  const u32 = (value: number): Buffer => {
    const out = Buffer.alloc(4);
    out.writeUInt32LE(value);
    return out;
  };
  const u64 = (value: bigint): Buffer => {
    const out = Buffer.alloc(8);
    out.writeBigUInt64LE(value);
    return out;
  };
  const header = Buffer.concat([
    Buffer.from("GGUF"),
    u32(3),
    u64(0n),
    u64(1n),
    text("general.architecture"),
    u32(8),
    text("llama"),
  ]);
  const file = new Uint8Array(Math.max(bytes, header.byteLength));
  for (let at = 0, word = seed; at < file.byteLength; at++) {
    word = (Math.imul(word, 1_664_525) + 1_013_904_223) >>> 0;
    file[at] = word >>> 24;
  }
  file.set(header, 0);
  return file;
}

export const sha256 = (bytes: Uint8Array): string =>
  new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
