/**
 * What a llama-server will reserve for a pool: its command line read back as settings, its model's file as a shape, and the
 * formula of domain/model-memory.ts over both. services/model-needs.ts asks, through the port.
 *
 * Always holds: a flag that is not known here changes nothing, and of one that is there twice the last counts, as the
 * engine has it. Files are read again only where size or time of change differ.
 */
import { statSync } from "node:fs";
import { ggmlTypeNamed } from "../../domain/ggml-types.ts";
import { estimateMemory, type LoadSettings, type ModelShape } from "../../domain/model-memory.ts";
import type { PoolSpec } from "../../domain/pool.ts";
import type { LoadReckoner, LoadReckoning } from "../../ports/memory.ts";
import { isGgufError } from "./gguf-cursor.ts";
import { readModelShape } from "./gguf-tensors.ts";
import { batchOf, contextPerSlot, isAccelerated, workloadOf } from "./llamacpp-launch.ts";

const shapesMax = 256;
/** The engine's own default of -ub. */
const ubatchDefault = 512;

export class LlamaCppReckoner implements LoadReckoner {
  readonly #shapes = new Map<string, ModelShape | null>();

  reckon(pool: PoolSpec, onHost: boolean): LoadReckoning | null {
    if (pool.engine !== "llamacpp" || pool.modelPath === null || pool.engineBin === null) return null;
    const model = stampOf(pool.modelPath);
    if (model === null) return null;
    const shape = this.#shapeOf(pool.modelPath, model);
    if (shape === null) return null;
    const settings = settingsOf(pool, shape, onHost);
    const engine = stampOf(pool.engineBin) ?? pool.engineBin;
    const { architecture } = shape;
    return { model, architecture, engine, settings, estimate: estimateMemory(shape, settings) };
  }

  fileBytes({ modelPath }: PoolSpec): number | null {
    const stat = modelPath === null ? undefined : statSync(modelPath, { throwIfNoEntry: false });
    return stat?.isFile() === true ? stat.size : null;
  }

  #shapeOf(path: string, stamp: string): ModelShape | null {
    const known = this.#shapes.get(stamp);
    if (known !== undefined) return known;
    const shape = shapeIn(path);
    if (this.#shapes.size >= shapesMax) this.#shapes.clear();
    this.#shapes.set(stamp, shape);
    return shape;
  }
}

/** Null: it is no model that is understood; its load tells why. */
function shapeIn(path: string): ModelShape | null {
  try {
    return readModelShape(path);
  } catch (error) {
    if (isGgufError(error)) return null;
    throw error;
  }
}

function stampOf(path: string): string | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isFile() === true ? `${path} ${stat.size} ${Math.round(stat.mtimeMs)}` : null;
}

/** As launch() starts it. Exported for its test. */
export function settingsOf(pool: PoolSpec, shape: ModelShape, onHost: boolean): LoadSettings {
  const context = contextPerSlot(pool.ctx, shape.contextTrained);
  const flags = new Flags(pool.args);
  const { batch, ubatch } = batchOf(
    pool.slots,
    workloadOf(pool.workloads),
    context,
    isAccelerated() && !onHost,
  );
  const load = flags.text("-lm", "--load-mode");
  return {
    slots: pool.slots,
    contextPerSlot: context,
    batch: flags.count("-b", "--batch-size") ?? batch,
    ubatch: flags.count("-ub", "--ubatch-size") ?? ubatch ?? ubatchDefault,
    unifiedKv: flags.last(["-kvu", "--kv-unified"], ["-no-kvu", "--no-kv-unified"]) ?? false,
    cacheTypeK: typeOf(flags.text("-ctk", "--cache-type-k")),
    cacheTypeV: typeOf(flags.text("-ctv", "--cache-type-v")),
    flashAttention: !["off", "0", "disabled"].includes(flags.text("-fa", "--flash-attn") ?? "auto"),
    gpuLayers: onHost ? 0 : layersOf(flags.text("-ngl", "--gpu-layers", "--n-gpu-layers")),
    hostExpertLayers: flags.has("-cmoe", "--cpu-moe")
      ? Number.POSITIVE_INFINITY
      : (flags.count("-ncmoe", "--n-cpu-moe") ?? 0),
    offloadKv: flags.last(["-kvo", "--kv-offload"], ["-nkvo", "--no-kv-offload"]) ?? true,
    mmap: !flags.has("--no-mmap") && load !== "none" && load !== "mlock",
  };
}

const typeOf = (name: string | null): string =>
  name !== null && ggmlTypeNamed(name) !== null ? name : "f16";

/** auto and all: as many as there are. */
function layersOf(text: string | null): number {
  const count = Number(text ?? Number.NaN);
  return Number.isSafeInteger(count) && count >= 0 ? count : Number.POSITIVE_INFINITY;
}

class Flags {
  readonly #flags: readonly (readonly [string, string | null])[];

  constructor(args: readonly string[]) {
    this.#flags = args.map((arg, at): readonly [string, string | null] => {
      const [name = arg, value] = arg.startsWith("--") ? splitOnce(arg) : [arg];
      return [name, value ?? args[at + 1] ?? null];
    });
  }

  has(...names: string[]): boolean {
    return this.#flags.some(([name]) => names.includes(name));
  }

  text(...names: string[]): string | null {
    return this.#flags.findLast(([name]) => names.includes(name))?.[1] ?? null;
  }

  count(...names: string[]): number | null {
    const value = Number(this.text(...names) ?? Number.NaN);
    return Number.isSafeInteger(value) && value >= 1 ? value : null;
  }

  /** Which of the two was said last; null: neither. */
  last(yes: readonly string[], no: readonly string[]): boolean | null {
    const found = this.#flags.findLast(([name]) => yes.includes(name) || no.includes(name));
    return found === undefined ? null : yes.includes(found[0]);
  }
}

const splitOnce = (arg: string): [string, string?] => {
  const at = arg.indexOf("=");
  return at < 0 ? [arg] : [arg.slice(0, at), arg.slice(at + 1)];
};
