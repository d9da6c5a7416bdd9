/**
 * What was learnt about the memory of models: what the engine reported for a model with its settings, beside what had
 * been reckoned. Called around a load: `corrected` before it, `learn` once the engine has told, `encode` and `decode`
 * where it is kept across restarts.
 *
 * Always holds: bounded, the oldest goes first; the same load by the same engine is told as it was reported; other
 * settings of a known model and other models of its architecture are scaled, never below a quarter nor above eight
 * times the formula. Text that is not whole and within bounds is refused.
 */
import { assert } from "./assert.ts";
import {
  addParts,
  type LoadSettings,
  type MemoryEstimate,
  type MemoryParts,
  totalOf,
} from "./model-memory.ts";

/** One load that the engine has told about. */
export interface MemoryObservation {
  /** What tells the model from every other: its digest, else path, size and time of change. */
  readonly model: string;
  readonly architecture: string;
  /** Build of the engine: another one may reserve differently. */
  readonly engine: string;
  readonly settings: LoadSettings;
  /** What the formula said, before any correction. */
  readonly estimated: { readonly host: MemoryParts; readonly device: MemoryParts };
  readonly reported: { readonly host: MemoryParts; readonly device: MemoryParts };
}

/** Newest last. */
export type MemoryExperience = readonly MemoryObservation[];

export const noExperience: MemoryExperience = [];

export interface CorrectedEstimate extends MemoryEstimate {
  /** same-load: as reported; same-model, same-architecture: the formula, scaled; formula: nothing is known. */
  readonly basis: "same-load" | "same-model" | "same-architecture" | "formula";
}

const bounds = {
  observationsMax: 512,
  /** Of those that are alike so many of the newest are asked. */
  alikeMax: 9,
  factorMin: 0.25,
  factorMax: 8,
  nameCharsMax: 4096,
  textCharsMax: 16 * 1024 * 1024,
  bytesMax: 2 ** 50,
} as const;
const version = 1;

const sameLoad = (a: Identity, b: Identity): boolean =>
  a.model === b.model && a.engine === b.engine && settingsKey(a.settings) === settingsKey(b.settings);

type Identity = Pick<MemoryObservation, "model" | "architecture" | "engine" | "settings">;

/** In a fixed order; sizes as they are, types without case. */
const settingsKey = (s: LoadSettings): string =>
  [
    ...[s.slots, s.contextPerSlot, s.batch, s.ubatch, s.unifiedKv, s.flashAttention, s.offloadKv, s.mmap],
    ...[s.cacheTypeK.toUpperCase(), s.cacheTypeV.toUpperCase(), s.gpuLayers, s.hostExpertLayers],
  ].join(" ");

/** The same load again replaces what was known of it. */
export function learn(experience: MemoryExperience, seen: MemoryObservation): MemoryExperience {
  assert(
    [seen.model, seen.architecture, seen.engine].every((name) => name.length <= bounds.nameCharsMax),
    "names are bounded",
  );
  const others = experience.filter((known) => !sameLoad(known, seen));
  return [...others, seen].slice(-bounds.observationsMax);
}

/** `estimate`: the formula's, for these settings. */
export function corrected(
  experience: MemoryExperience,
  load: Identity,
  estimate: MemoryEstimate,
): CorrectedEstimate {
  const same = experience.findLast((known) => sameLoad(known, load));
  if (same !== undefined) return withParts(estimate, same.reported, "same-load");
  const ofModel = experience.filter(({ model }) => model === load.model);
  // Weights and cache follow from the file and the flags alone; where the engine puts them differently, that holds
  // for the model. What it plans for its graph depends on the architecture.
  if (ofModel.length > 0) {
    const factor = factorsOf(alike(ofModel, load));
    return withParts(estimate, scaled(estimate, factor), "same-model");
  }
  const ofArchitecture = experience.filter(({ architecture }) => architecture === load.architecture);
  if (ofArchitecture.length > 0) {
    const { computeBytes } = factorsOf(alike(ofArchitecture, load));
    const factor = { weightsBytes: 1, kvBytes: 1, computeBytes };
    return withParts(estimate, scaled(estimate, factor), "same-architecture");
  }
  return { ...estimate, basis: "formula" };
}

/** The newest; where this engine's own are among them, only those, and with the same kind of attention if there are. */
function alike(known: MemoryExperience, load: Identity): MemoryExperience {
  const prefer = (from: MemoryExperience, holds: (one: MemoryObservation) => boolean): MemoryExperience =>
    from.some(holds) ? from.filter(holds) : from;
  const ofEngine = prefer(known, ({ engine }) => engine === load.engine);
  return prefer(ofEngine, ({ settings }) => settings.flashAttention === load.settings.flashAttention).slice(
    -bounds.alikeMax,
  );
}

/** The median of what was reported for each byte that had been reckoned, part by part. */
function factorsOf(known: MemoryExperience): MemoryParts {
  const of = (part: keyof MemoryParts): number => {
    const ratios = known
      .map(({ estimated, reported }) => ({
        reckoned: estimated.host[part] + estimated.device[part],
        told: reported.host[part] + reported.device[part],
      }))
      .filter(({ reckoned }) => reckoned > 0)
      .map(({ reckoned, told }) => told / reckoned)
      .sort((a, b) => a - b);
    const median = ratios[Math.floor(ratios.length / 2)] ?? 1;
    return Math.min(bounds.factorMax, Math.max(bounds.factorMin, median));
  };
  return { weightsBytes: of("weightsBytes"), kvBytes: of("kvBytes"), computeBytes: of("computeBytes") };
}

function scaled(
  { host, device }: MemoryEstimate,
  factor: MemoryParts,
): { readonly host: MemoryParts; readonly device: MemoryParts } {
  const times = (parts: MemoryParts): MemoryParts => ({
    weightsBytes: Math.round(parts.weightsBytes * factor.weightsBytes),
    kvBytes: Math.round(parts.kvBytes * factor.kvBytes),
    computeBytes: Math.round(parts.computeBytes * factor.computeBytes),
  });
  return { host: times(host), device: times(device) };
}

function withParts(
  estimate: MemoryEstimate,
  { host, device }: { readonly host: MemoryParts; readonly device: MemoryParts },
  basis: CorrectedEstimate["basis"],
): CorrectedEstimate {
  const all = addParts(host, device);
  return {
    ...estimate,
    ...all,
    totalBytes: totalOf(all),
    host,
    device,
    mappedBytes: estimate.mappedBytes === 0 ? 0 : host.weightsBytes,
    bound: basis === "same-load" ? false : estimate.bound,
    basis,
  };
}

/** JSON, within what `decode` takes. */
export function encode(experience: MemoryExperience): string {
  const observations = experience.map(({ settings, ...rest }) => ({
    ...rest,
    settings: { ...settings, ...finite(settings) },
  }));
  return JSON.stringify({ version, observations });
}

/** "All layers" is infinite, which JSON has no word for. */
const finite = (settings: LoadSettings) => ({
  gpuLayers: Number.isFinite(settings.gpuLayers) ? settings.gpuLayers : "all",
  hostExpertLayers: Number.isFinite(settings.hostExpertLayers) ? settings.hostExpertLayers : "all",
});

/** Null: refused; nothing of it is used. */
export function decode(text: string): MemoryExperience | null {
  if (text.length > bounds.textCharsMax) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
  const reader = new Reader();
  const whole = reader.object(value);
  reader.check(whole.version === version);
  const observations = reader
    .array(whole.observations, bounds.observationsMax)
    .map((item): MemoryObservation => {
      const from = reader.object(item);
      return {
        model: reader.text(from.model),
        architecture: reader.text(from.architecture),
        engine: reader.text(from.engine),
        settings: readSettings(reader, reader.object(from.settings)),
        estimated: readBoth(reader, from.estimated),
        reported: readBoth(reader, from.reported),
      };
    });
  return reader.refused ? null : observations;
}

function readSettings(reader: Reader, from: Readonly<Record<string, unknown>>): LoadSettings {
  const layers = (value: unknown) => (value === "all" ? Number.POSITIVE_INFINITY : reader.count(value));
  return {
    slots: reader.positive(from.slots),
    contextPerSlot: reader.positive(from.contextPerSlot),
    batch: reader.positive(from.batch),
    ubatch: reader.positive(from.ubatch),
    unifiedKv: reader.flag(from.unifiedKv),
    cacheTypeK: reader.text(from.cacheTypeK),
    cacheTypeV: reader.text(from.cacheTypeV),
    flashAttention: reader.flag(from.flashAttention),
    gpuLayers: layers(from.gpuLayers),
    hostExpertLayers: layers(from.hostExpertLayers),
    offloadKv: reader.flag(from.offloadKv),
    mmap: reader.flag(from.mmap),
  };
}

function readBoth(reader: Reader, value: unknown): { host: MemoryParts; device: MemoryParts } {
  const { host, device } = reader.object(value);
  return { host: readParts(reader, host), device: readParts(reader, device) };
}

function readParts(reader: Reader, value: unknown): MemoryParts {
  const { weightsBytes, kvBytes, computeBytes } = reader.object(value);
  return {
    weightsBytes: reader.count(weightsBytes),
    kvBytes: reader.count(kvBytes),
    computeBytes: reader.count(computeBytes),
  };
}

/** Reads what may be anything; `refused` tells afterwards that something was not as it must be. */
class Reader {
  refused = false;

  check(holds: boolean): void {
    if (!holds) this.refused = true;
  }

  count(value: unknown): number {
    this.check(Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= bounds.bytesMax);
    return this.refused ? 0 : (value as number);
  }

  positive(value: unknown): number {
    const count = this.count(value);
    this.check(count > 0);
    return count;
  }

  text(value: unknown): string {
    this.check(typeof value === "string" && value.length <= bounds.nameCharsMax);
    return this.refused ? "" : (value as string);
  }

  flag(value: unknown): boolean {
    this.check(typeof value === "boolean");
    return value === true;
  }

  array(value: unknown, most: number): readonly unknown[] {
    this.check(Array.isArray(value) && value.length <= most);
    return this.refused ? [] : (value as readonly unknown[]);
  }

  object(value: unknown): Readonly<Record<string, unknown>> {
    if (typeof value === "object" && value !== null) return value as Readonly<Record<string, unknown>>;
    this.refused = true;
    return {};
  }
}
