/**
 * What test/engine/determinism.test.ts asserts and scripts/determinism.ts counts: the same requests in one setting
 * after the other, each text compared with that of the same request run strict and alone before. A setting is a way
 * to run them: again, among others, on each of two replicas, over restarts, cut in the middle, sixteen at once, on cached
 * context.
 *
 * Two kinds of model. The demo model's sums are exact in any order, so its text says little about rounding; the
 * random one (scripts/model/random-weights.ts) says another text as soon as one sum rounds otherwise.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { writeGguf } from "../../scripts/model/gguf-writer.ts";
import { buildRandomModel } from "../../scripts/model/random-weights.ts";
import { limits } from "../../src/domain/limits.ts";
import { enginePool, type RunningDaemon, type Settings } from "../support/daemon.ts";
import { engineBin } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import {
  Chance,
  cancel,
  health,
  type Json,
  patienceMs,
  slotsBusy,
  submitAndWatch,
  type Viewer,
} from "./support.ts";

/** One request's fields, without its pool and its determinism. */
export type Ask = Json;

export interface Said {
  readonly text: string;
  readonly pieces: readonly string[];
  readonly replica: string;
  readonly tokensIn: number;
  readonly continuations: number;
  readonly exact: string;
}

export interface Tally {
  readonly runs: number;
  readonly equal: number;
  /** Of each that differs: how many of the reference's tokens both begin with, ascending. */
  readonly firstDifferences: readonly number[];
  /** How many ended with which `end.exact`. */
  readonly exact: Readonly<Record<string, number>>;
  /** Those that say exact "yes" after a cut, and differ: there must be none. */
  readonly wrongYes: number;
}

/** A pool of sixteen slots on one engine, and one of two slots on each of two. */
export const onePool = (model: string): string => `${model}-one`;
export const twoPool = (model: string): string => `${model}-two`;
export const replicasOf = (poolId: string): string[] => [`${poolId}-0`, `${poolId}-1`];
export const concurrency = 16;
/** Tokens of a batch on a machine without an accelerator, fixed here so that every machine splits prompts alike. */
const batchTokens = 64;
const ctx = 512;
/** Seconds of one replica; what is left of it is cancelled. */
const holderTokens = 3000;

const corpus = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8");
const words = corpus.match(/\b[a-z]{2,}\b/g) ?? [];
/** In words, each about one token: short, and on both sides of one, two and three batches. */
const promptWords = [3, 40, 60, 62, 63, 64, 65, 66, 110, 124, 126, 127, 128, 129, 130, 192, 210];
/** Prompts begin at so many places only: some share their beginnings. */
const beginnings = 5;

/** `count` requests over prompts of all lengths, of seeds from 0 on and the two largest that llama-server tells apart. */
export function asksOf(count: number, temperature: number, tokens: number): Ask[] {
  return Array.from({ length: count }, (_, at) => {
    const from = (at % beginnings) * 11;
    const prompt = words.slice(from, from + (promptWords[at % promptWords.length] ?? 0)).join(" ");
    const seed = at < count - 2 ? at : limits.seedMax - (count - 1 - at) - 1;
    return { prompt, seed, max_tokens: tokens, sampling: { temperature } };
  });
}

/** The random model in `folder`, as floats; and beside it, where the engine brings its quantizer, in Q4_K. */
export async function makeRandomModels(folder: string): Promise<Readonly<Record<string, string>>> {
  const path = join(folder, "random-f32.gguf");
  await writeGguf(path, buildRandomModel());
  const quantizer = join(dirname(resolve(engineBin())), "llama-quantize");
  if (!existsSync(quantizer)) return { "random-f32": path };
  const quantized = join(folder, "random-q4k.gguf");
  const child = Bun.spawn([quantizer, "--pure", path, quantized, "Q4_K_M", "1"], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const said = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) {
    rmSync(quantized, { force: true });
    throw new Error(`llama-quantize failed:\n${said}`);
  }
  return { "random-f32": path, "random-q4k": quantized };
}

/** `args` go behind those that fix threads, batches and the end of the text. */
export const pool = (id: string, path: string, more: Settings = {}, args: readonly string[] = []): Settings =>
  enginePool(id, path, {
    slots: concurrency,
    ctx,
    args: ["--ignore-eos", "-t", "1", "-b", String(batchTokens), ...args],
    ...more,
  });

export const poolsOf = (model: string, path: string): Settings[] => [
  pool(onePool(model), path),
  pool(twoPool(model), path, { slots: 2, replicas: 2, ctx: holderTokens + ctx }),
];

/** Quick restarts: their backoff is tested elsewhere. */
export const restartSettings: Settings = { backoff_ms: 20, backoff_max_ms: 100 };

export class Runs {
  readonly chance: Chance;

  constructor(
    readonly daemon: RunningDaemon,
    seed: number,
  ) {
    this.chance = new Chance(seed);
  }

  submit(poolId: string, ask: Ask, more: Json): Promise<Viewer> {
    const placement = { mode: "pin", pin_pool_id: poolId };
    return submitAndWatch(this.daemon, { ...ask, ...more, placement });
  }

  async say(poolId: string, ask: Ask, more: Json): Promise<Said> {
    return saidBy(await this.submit(poolId, ask, more));
  }

  /** One after the other: what all other settings are compared with, and the first of them. */
  async strict(poolId: string, asks: readonly Ask[]): Promise<Said[]> {
    return await this.alone(poolId, asks, { determinism: "strict" });
  }

  async alone(poolId: string, asks: readonly Ask[], more: Json): Promise<Said[]> {
    const said: Said[] = [];
    for (const ask of asks) said.push(await this.say(poolId, ask, more));
    return said;
  }

  /** Sixteen at any time, as long as there are so many. */
  async together(poolId: string, asks: readonly Ask[], more: Json): Promise<Said[]> {
    const said: Said[] = [];
    let next = 0;
    const client = async (): Promise<void> => {
      for (let at = next++; at < asks.length; at = next++)
        said[at] = await this.say(poolId, asks[at] as Ask, more);
    };
    await Promise.all(Array.from({ length: concurrency }, client));
    return said;
  }

  /** Strict ones, with other tasks before, between and behind them, and their contexts in all slots. */
  async strictAmongOthers(poolId: string, asks: readonly Ask[]): Promise<Said[]> {
    let enough = false;
    const client = async (): Promise<void> => {
      while (!enough) {
        const from = this.chance.between(0, 60);
        const prompt = words.slice(from, from + this.chance.between(1, 80)).join(" ");
        const noise = { prompt, max_tokens: this.chance.between(1, 24), sampling: { temperature: 0.8 } };
        await this.say(poolId, noise, {});
      }
    };
    const others = Promise.all(Array.from({ length: 4 }, client));
    try {
      return await this.strict(poolId, asks);
    } finally {
      enough = true;
      await others;
    }
  }

  /**
   * Strict ones, all on this replica of a pool of two: a long task holds the other one. (A pool runs strict tasks one
   * at a time, and takes its first empty replica.)
   */
  async onReplica(poolId: string, replica: string, asks: readonly Ask[]): Promise<Said[]> {
    const said: Said[] = [];
    while (said.length < asks.length) {
      const holders = await Promise.all([this.#holder(poolId), this.#holder(poolId)]);
      const [here, there] = replicaOf(holders[0]) === replica ? holders : [...holders].reverse();
      if (here === undefined || there === undefined || replicaOf(here) === replicaOf(there))
        throw new Error(`the holders are on ${holders.map(replicaOf).join(" and ")}`);
      await cancel(this.daemon, here.taskId);
      // Before the slot is free a strict task would wait for either replica.
      await this.#slotsAreBusy(poolId, 1);
      while (said.length < asks.length && !there.ended) {
        const one = await this.say(poolId, asks[said.length] as Ask, { determinism: "strict" });
        // Elsewhere: the holder had ended.
        if (one.replica === replica) said.push(one);
      }
      await cancel(this.daemon, there.taskId);
      // A slot that still lets go would keep both of the next holders off its replica.
      await this.#slotsAreBusy(poolId, 0);
    }
    return said;
  }

  /** At most so many; the holder may have ended. */
  async #slotsAreBusy(poolId: string, count: number): Promise<void> {
    const look = async () => (await slotsBusy(this.daemon, poolId)) <= count;
    await waitFor(look, patienceMs, `no more than ${count} slots are busy`);
  }

  async #holder(poolId: string): Promise<Viewer> {
    const ask = { prompt: "The harbour", max_tokens: holderTokens, sampling: { temperature: 0.8 } };
    const viewer = await this.submit(poolId, ask, {});
    await viewer.hasStarted();
    return viewer;
  }

  /** Strict ones, the engine killed after every `each`. */
  async overRestarts(poolId: string, asks: readonly Ask[], each: number): Promise<Said[]> {
    const said: Said[] = [];
    for (const [at, ask] of asks.entries()) {
      if (at % each === each - 1) await this.killEngine(poolId);
      said.push(await this.say(poolId, ask, { determinism: "strict" }));
    }
    return said;
  }

  /** One after the other, the engine killed somewhere in the middle of each. */
  async cut(poolId: string, asks: readonly Ask[], more: Json): Promise<Said[]> {
    const said: Said[] = [];
    for (const ask of asks) {
      const viewer = await this.submit(poolId, ask, more);
      await viewer.hasTokens(this.chance.between(1, Math.floor(Number(ask.max_tokens) / 2)));
      await this.killEngine(poolId);
      said.push(await saidBy(viewer));
    }
    return said;
  }

  /** Resolves when another engine is ready in its place. */
  async killEngine(poolId: string): Promise<void> {
    const engine = async () => (await health(this.daemon, poolId)).replicas[0];
    const pid = (await engine())?.pid ?? null;
    if (pid === null) throw new Error(`no engine of ${poolId} to kill`);
    process.kill(pid, "SIGKILL");
    await waitFor(
      async () => {
        const next = await engine();
        return next !== undefined && next.pid !== pid && next.state === "ready";
      },
      patienceMs,
      "the next engine",
    );
  }
}

const replicaOf = ({ events }: Viewer): string => String(events[0]?.data.replica_id);

async function saidBy(viewer: Viewer): Promise<Said> {
  const { text, tokens, terminal } = await viewer.finished();
  if (terminal.type !== "end") throw new Error(`the task failed: ${JSON.stringify(terminal.data)}`);
  const { continuations, exact, tokens_in } = terminal.data;
  return {
    text,
    pieces: tokens.map(({ data }) => String(data.t)),
    replica: replicaOf(viewer),
    tokensIn: Number(tokens_in),
    continuations: Number(continuations),
    exact: String(exact),
  };
}

/** Both in the order of the requests. */
export function compare(reference: readonly Said[], said: readonly Said[]): Tally {
  if (reference.length !== said.length) throw new Error("each text has its reference");
  const firstDifferences: number[] = [];
  const exact: Record<string, number> = {};
  let wrongYes = 0;
  for (const [at, one] of said.entries()) {
    const expected = reference[at] as Said;
    exact[one.exact] = (exact[one.exact] ?? 0) + 1;
    if (Buffer.from(one.text).equals(Buffer.from(expected.text))) continue;
    firstDifferences.push(tokensInCommon(expected, one));
    if (one.exact === "yes" && one.continuations > 0) wrongYes++;
  }
  firstDifferences.sort((a, b) => a - b);
  const equal = said.length - firstDifferences.length;
  return { runs: said.length, equal, firstDifferences, exact, wrongYes };
}

/**
 * Tokens of the reference that the other begins with. By characters, for a continuation may cut its pieces otherwise;
 * a token of which another one is only the beginning is not in common.
 */
function tokensInCommon({ pieces }: Said, other: Said): number {
  const borders = new Set<number>();
  for (let at = 0, units = 0; at < other.pieces.length; at++) {
    units += other.pieces[at]?.length ?? 0;
    borders.add(units);
  }
  let units = 0;
  let tokens = 0;
  for (const piece of pieces) {
    const end = units + piece.length;
    if (!other.text.startsWith(piece, units) || !borders.has(end)) break;
    units = end;
    tokens++;
  }
  return tokens;
}
