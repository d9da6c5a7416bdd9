/**
 * Whether an engine ended because memory ran out, and whose: a graphics card's or the machine's. Pure; failure-cause.ts
 * asks with the last log lines. The texts are llama.cpp's (ggml-cuda, which ROCm and MUSA share, ggml-vulkan, ggml-rpc,
 * ggml-cpu, the loader) and those of the C and C++ libraries.
 *
 * Always holds: what the engine survives explains nothing: pages that could not be locked or pinned, a buffer that it
 * then asks for in another way.
 */

/** Names of devices as the engine counts them: CUDA0, ROCm1, Vulkan0; RPC0[host:port] is on another machine. */
const deviceName =
  "(?:CUDA|ROCm|MUSA|Vulkan|SYCL|MTL|Metal|CANN|GPUOpenCL|OpenCL|HTP|RPC)\\d*(?:\\[[^\\]]*\\])?";

const ofCard = [
  /cudaMalloc failed/,
  /(?:CUDA|ROCm|MUSA|HIP) error: out of memory/,
  /\b(?:CUDA_ERROR|hipError|cudaError)_?(?:OUT_OF_MEMORY|OutOfMemory|MemoryAllocation)/,
  /CUBLAS_STATUS_ALLOC_FAILED|HIPBLAS_STATUS_ALLOC_FAILED/,
  /Device memory allocation of size \d+ failed/,
  /ErrorOutOfDeviceMemory|VK_ERROR_OUT_OF_DEVICE_MEMORY/,
  new RegExp(`(?:unable|failed) to allocate ${deviceName} buffer`),
  /rpc_buffer_type_alloc_buffer\].*-> failed/,
] as const;

const ofMachine = [
  /ggml_aligned_malloc: insufficient memory/,
  /cpu_buffer_type_alloc_buffer: failed to allocate/,
  /(?:unable|failed) to allocate CPU\S* buffer/,
  /bad_alloc/,
  /ErrorOutOfHostMemory|VK_ERROR_OUT_OF_HOST_MEMORY/,
  /Cannot allocate memory/,
] as const;

/** Whose it was stands in other lines, or nowhere. */
const ofEither = [/failed to allocate/, /unable to allocate/, /out of memory/i] as const;

/** The engine goes on after these. */
const survived = /mlock|pinned memory|retrying without|will try again|fallback|falling back/i;

export interface MemoryFailure {
  readonly whose: "card" | "machine";
  /** The line that tells it. */
  readonly line: string;
}

/** Null: the lines speak of no memory that ran out. The last line that says whose decides. */
export function memoryFailure(lines: readonly string[]): MemoryFailure | null {
  const telling = lines.filter((line) => !survived.test(line));
  const last = (patterns: readonly RegExp[]): number =>
    telling.findLastIndex((line) => patterns.some((pattern) => pattern.test(line)));
  const [card, machine, either] = [last(ofCard), last(ofMachine), last(ofEither)];
  const at = card < 0 && machine < 0 ? either : Math.max(card, machine);
  const line = telling[at];
  if (line === undefined) return null;
  return { whose: card >= 0 && card > machine ? "card" : "machine", line };
}

/** What to do about it, as the end of a sentence. */
export function memoryAdvice(whose: MemoryFailure["whose"], poolId: string): string {
  const smaller = `lower "ctx" or "slots" of pool ${poolId}`;
  if (whose === "machine")
    return `${smaller}, take a smaller or more strongly quantized model, or raise the limit of the daemon's service or container`;
  return (
    `${smaller}, keep its cache in fewer bits (args ["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"]), ` +
    `put fewer layers on the card (args ["-ngl", N]), name more "devices", or take a smaller model`
  );
}
