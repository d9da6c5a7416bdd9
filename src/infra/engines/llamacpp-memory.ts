/**
 * What a llama-server says in its log about the memory it reserved, as figures. Whoever reads the log hands it line
 * by line. Two sources, the exact one wins: the buffer lines of the load itself (`-lv 4`; older engines always), and
 * the breakdown that its fitting step prints before the load (`--log-jsonl`, whole MiB; absent with `-fit off`).
 *
 * Always holds: a line that says nothing of memory changes nothing; a model loaded again starts anew. Bounded: so many
 * devices, so many lines of a load.
 */
import { addParts, type MemoryParts, totalOf } from "../../domain/model-memory.ts";

export interface DeviceMemory extends MemoryParts {
  /** The engine's name: CPU, CUDA0, Vulkan1, RPC0[host:port]. */
  readonly name: string;
  readonly kind: "host" | "device";
}

export interface MemoryReport extends MemoryParts {
  readonly totalBytes: number;
  readonly host: MemoryParts;
  /** All accelerators together. */
  readonly device: MemoryParts;
  readonly devices: readonly DeviceMemory[];
  /** buffers: to a hundredth of a MiB; breakdown: in whole MiB, rounded down. */
  readonly source: "buffers" | "breakdown";
}

const bounds = { devicesMax: 64, buffersMax: 1024, lineCharsMax: 16_384 } as const;
const mib = 2 ** 20;
const nothing: MemoryParts = { weightsBytes: 0, kvBytes: 0, computeBytes: 0 };

/**
 * `load_tensors: CPU_Mapped model buffer size = 20.08 MiB`, `llama_kv_cache_init: CUDA0 KV buffer size = …`. The
 * function's name and what surrounds the line have changed over the years; this core has not. Earlier the word
 * "model" was missing.
 */
const bufferLine =
  /(?:^|\s)(?:(\w+):\s+)?(\S+?)\s+(?:(model|KV|output|RS|compute|LoRA|DSV4 \S+ state) )?buffer size\s+=\s+(\d+(?:[.,]\d+)?) (MiB|MB)\b/;
/** The server's model, the first time or after sleep; the fitting step may have reserved and freed the same before. */
const loadBegins = /load_model: loading model '|fitting params to free memory took/;
/** Of the model itself, of a draft model: each has its own plan. */
const contextBegins = /constructing llama_context/;

interface Buffer {
  readonly device: string;
  readonly part: keyof MemoryParts;
  readonly bytes: number;
}

export class MemoryLog {
  /** Compute buffers by context, function and device; all others by number. */
  readonly #buffers = new Map<string, Buffer>();
  #contexts = 0;
  #breakdown: readonly DeviceMemory[] | null = null;

  /** One line, without its end. */
  line(text: string): void {
    if (text.length > bounds.lineCharsMax) return;
    if (text.startsWith("{")) this.#json(text);
    else this.#plain(text);
  }

  /** Null: nothing was said yet, or not enough to be whole. */
  report(): MemoryReport | null {
    const buffers = [...this.#buffers.values()];
    if (buffers.some(is("weightsBytes")) && buffers.some(is("computeBytes"))) return ofBuffers(buffers);
    return this.#breakdown === null ? null : reportOf(this.#breakdown, "breakdown");
  }

  #json(text: string): void {
    const entry = parsed(text);
    if (entry === null) return;
    if (entry.type === "fit_memory_breakdown") this.#breakdown = breakdownOf(entry.data) ?? this.#breakdown;
    else if (typeof entry.msg === "string") this.#plain(entry.msg);
  }

  #plain(text: string): void {
    if (loadBegins.test(text)) {
      this.#buffers.clear();
      this.#contexts = 0;
    } else if (contextBegins.test(text)) this.#contexts++;
    const [, by = "", device = "", kind = "model", size, unit] = bufferLine.exec(text) ?? [];
    if (size === undefined || this.#buffers.size === bounds.buffersMax) return;
    // A plan that is made again replaces the one before; all else adds up: a line a file, a cache, a kind of state.
    const key = kind === "compute" ? `${this.#contexts} ${by} ${device}` : `${this.#buffers.size}`;
    const bytes = Math.round(Number(size.replace(",", ".")) * (unit === "MB" ? 1e6 : mib));
    this.#buffers.set(key, { device, part: partOf[kind] ?? "kvBytes", bytes });
  }
}

const partOf: Readonly<Record<string, keyof MemoryParts>> = {
  model: "weightsBytes",
  LoRA: "weightsBytes",
  compute: "computeBytes",
};
const is =
  (part: keyof MemoryParts) =>
  (buffer: Buffer): boolean =>
    buffer.part === part;

function ofBuffers(buffers: readonly Buffer[]): MemoryReport {
  const sum = (device: string, part: keyof MemoryParts): number =>
    buffers
      .filter((buffer) => buffer.device === device && buffer.part === part)
      .reduce((total, { bytes }) => total + bytes, 0);
  const names = [...new Set(buffers.map(({ device }) => device))].slice(0, bounds.devicesMax);
  const devices = names.map((name) => ({
    name,
    kind: kindOf(name),
    weightsBytes: sum(name, "weightsBytes"),
    kvBytes: sum(name, "kvBytes"),
    computeBytes: sum(name, "computeBytes"),
  }));
  return reportOf(devices, "buffers");
}

/** CPU, CPU_Mapped, CPU_REPACK, CUDA_Host: the machine's own memory, whoever may read it. */
const kindOf = (name: string): "host" | "device" =>
  /^(CPU|Host|BLAS|AMX|ACCEL)|_Host$/.test(name) ? "host" : "device";

function parsed(text: string): { type?: unknown; msg?: unknown; data?: unknown } | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch (error) {
    // A line that was cut short, or one of another program.
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Null: not in the form that is known. */
function breakdownOf(data: unknown): readonly DeviceMemory[] | null {
  const { unit, rows } = (data ?? {}) as { unit?: unknown; rows?: unknown };
  if (unit !== "MiB" || !Array.isArray(rows) || rows.length > bounds.devicesMax) return null;
  const devices: DeviceMemory[] = [];
  for (const row of rows as unknown[]) {
    const { kind, name, model, context, compute } = (row ?? {}) as Record<string, unknown>;
    if (typeof name !== "string" || !isCount(model) || !isCount(context) || !isCount(compute)) return null;
    devices.push({
      name,
      // Buffer types beside a device's own are the host's: CPU_REPACK, CUDA_Host.
      kind: kind === "device" ? "device" : "host",
      weightsBytes: model * mib,
      kvBytes: context * mib,
      computeBytes: compute * mib,
    });
  }
  return devices.length === 0 ? null : devices;
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function reportOf(devices: readonly DeviceMemory[], source: MemoryReport["source"]): MemoryReport {
  const of = (kind: "host" | "device"): MemoryParts =>
    devices.filter((each) => each.kind === kind).reduce<MemoryParts>(addParts, nothing);
  const host = of("host");
  const device = of("device");
  const all = addParts(host, device);
  return { ...all, totalBytes: totalOf(all), host, device, devices, source };
}
