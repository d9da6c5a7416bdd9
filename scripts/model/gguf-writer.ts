/**
 * Owns the GGUF version 3 file format, as far as made models need it. Called by make-demo-model.ts and the benches.
 * Always holds: the target path either does not change or receives a complete, synced file; a tensor
 * without data becomes a hole in the file, which reads as zeros and costs no disk space.
 * Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import { createHash, randomBytes } from "node:crypto";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { bytesOf, ggmlTypeNamed, ggmlTypes } from "../../src/domain/ggml-types.ts";

export type MetadataValue =
  | { readonly kind: "uint32"; readonly value: number }
  | { readonly kind: "float32"; readonly value: number }
  | { readonly kind: "bool"; readonly value: boolean }
  | { readonly kind: "string"; readonly value: string }
  | { readonly kind: "strings"; readonly value: readonly string[] }
  | { readonly kind: "float32s"; readonly value: readonly number[] }
  | { readonly kind: "int32s"; readonly value: readonly number[] };

export interface Tensor {
  readonly name: string;
  /** Row length first, then the number of rows: the order in which GGUF lists dimensions. */
  readonly shape: readonly number[];
  /** Values can be given for F32 and F16 only. */
  readonly type: "F32" | "F16" | "Q8_0" | "Q4_0" | "Q4_K" | "Q5_K" | "Q6_K" | "IQ4_NL";
  /** Row-major values; null means all zeros. */
  readonly data: Float32Array | null;
}

export interface GgufFile {
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  readonly tensors: readonly Tensor[];
}

const alignment_bytes = 32;
const typeIds = new Map([...ggmlTypes].map(([id, { name }]) => [name, id]));
const valueTypes = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

class ByteSink {
  private readonly parts: Buffer[] = [];

  uint32(value: number): void {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    this.parts.push(part);
  }

  uint64(value: number): void {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    this.parts.push(part);
  }

  float32(value: number): void {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    this.parts.push(part);
  }

  int32(value: number): void {
    const part = Buffer.alloc(4);
    part.writeInt32LE(value);
    this.parts.push(part);
  }

  bytes(value: Buffer): void {
    this.parts.push(value);
  }

  string(value: string): void {
    const bytes = Buffer.from(value, "utf8");
    this.uint64(bytes.length);
    this.parts.push(bytes);
  }

  take(): Buffer {
    return Buffer.concat(this.parts);
  }
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / alignment_bytes) * alignment_bytes;
}

function byteLength(tensor: Tensor): number {
  const type = ggmlTypeNamed(tensor.type);
  if (type === null || (tensor.shape[0] ?? 0) % type.blockValues !== 0)
    throw new Error(`${tensor.name}: its rows are no whole blocks of ${tensor.type}`);
  return bytesOf(
    type,
    tensor.shape.reduce((product, n) => product * n, 1),
  );
}

function writeValue(sink: ByteSink, entry: MetadataValue): void {
  const array = (type: number, length: number) => {
    sink.uint32(valueTypes.array);
    sink.uint32(type);
    sink.uint64(length);
  };
  switch (entry.kind) {
    case "uint32":
      sink.uint32(valueTypes.uint32);
      sink.uint32(entry.value);
      break;
    case "float32":
      sink.uint32(valueTypes.float32);
      sink.float32(entry.value);
      break;
    case "bool":
      sink.uint32(valueTypes.bool);
      sink.bytes(Buffer.from([entry.value ? 1 : 0]));
      break;
    case "string":
      sink.uint32(valueTypes.string);
      sink.string(entry.value);
      break;
    case "strings":
      array(valueTypes.string, entry.value.length);
      for (const value of entry.value) sink.string(value);
      break;
    case "float32s":
      array(valueTypes.float32, entry.value.length);
      for (const value of entry.value) sink.float32(value);
      break;
    case "int32s":
      array(valueTypes.int32, entry.value.length);
      for (const value of entry.value) sink.int32(value);
      break;
  }
}

function header(file: GgufFile): Buffer {
  const sink = new ByteSink();
  sink.bytes(Buffer.from("GGUF", "ascii"));
  sink.uint32(3);
  sink.uint64(file.tensors.length);
  sink.uint64(file.metadata.size);
  for (const [key, entry] of file.metadata) {
    sink.string(key);
    writeValue(sink, entry);
  }
  let offset_bytes = 0;
  for (const tensor of file.tensors) {
    sink.string(tensor.name);
    sink.uint32(tensor.shape.length);
    for (const dimension of tensor.shape) sink.uint64(dimension);
    sink.uint32(typeIds.get(tensor.type) ?? 0);
    sink.uint64(offset_bytes);
    offset_bytes += aligned(byteLength(tensor));
  }
  const bytes = sink.take();
  return Buffer.concat([bytes, Buffer.alloc(aligned(bytes.length) - bytes.length)]);
}

/** Bytes of a tensor with the padding behind it; GGUF is little-endian, and so is every machine we run on. */
function payload(tensor: Tensor, data: Float32Array): Buffer {
  const values = tensor.type === "F16" ? Float16Array.from(data) : data;
  if (tensor.type !== "F16" && tensor.type !== "F32")
    throw new Error(`${tensor.name}: ${tensor.type} is written without values only`);
  const bytes = Buffer.alloc(aligned(byteLength(tensor)));
  if (values.byteLength !== byteLength(tensor))
    throw new Error(`${tensor.name}: data does not fill the shape`);
  Buffer.from(values.buffer, values.byteOffset, values.byteLength).copy(bytes);
  return bytes;
}

async function writeAll(handle: FileHandle, bytes: Buffer, position: number): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}

/**
 * Writes the file through a temporary neighbour and a rename.
 * Returns its size and the SHA-256 of its content as lower-case hexadecimal.
 */
export async function writeGguf(path: string, file: GgufFile): Promise<{ bytes: number; sha256: string }> {
  const temporary = `${path}.${randomBytes(6).toString("hex")}.tmp`;
  const hash = createHash("sha256");
  const zeros = Buffer.alloc(1 << 20);
  const handle = await open(temporary, "wx");
  let position = 0;
  try {
    const head = header(file);
    await writeAll(handle, head, 0);
    hash.update(head);
    position = head.length;
    for (const tensor of file.tensors) {
      const length = aligned(byteLength(tensor));
      if (tensor.data === null) {
        for (let left = length; left > 0; left -= zeros.length) {
          hash.update(left < zeros.length ? zeros.subarray(0, left) : zeros);
        }
      } else {
        const bytes = payload(tensor, tensor.data);
        await writeAll(handle, bytes, position);
        hash.update(bytes);
      }
      position += length;
    }
    // A hole at the very end exists only once the length says so.
    await handle.truncate(position);
    await handle.sync();
    await handle.close();
    await rename(temporary, path);
  } catch (error) {
    await handle.close();
    await rm(temporary, { force: true });
    throw error;
  }
  const directory = await open(dirname(path), "r");
  await directory.sync();
  await directory.close();
  return { bytes: position, sha256: hash.digest("hex") };
}
