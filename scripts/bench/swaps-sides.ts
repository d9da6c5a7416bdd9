/**
 * Three models and room for one: orchestratord whose pools share memory, llama-server's router with `--models-max 1`, and
 * one llama-server after the other by hand. The same engine, flags, models and requests for all. swaps.ts starts them.
 * Always holds: `started` counts engine processes, as each side's own log tells of them.
 */
import { copyFileSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildModel } from "../make-demo-model.ts";
import { writeGguf } from "../model/gguf-writer.ts";
import { Connection, type Target } from "./http-client.ts";
import { engineFlags, firstMatch, type Running, startDaemon, startEngine, stopper } from "./processes.ts";
import { daemonTarget, engineTarget } from "./targets.ts";

export const modelNames = ["a", "b", "c"] as const;
export type ModelName = (typeof modelNames)[number];

/** Moments of performance.now(). */
export interface Answer {
  readonly model: ModelName;
  readonly sentMs: number;
  readonly firstTokenMs: number;
  readonly endMs: number;
}

export interface SwapSide {
  readonly name: string;
  /** Opens a connection; the request leaves when the function that it resolves with is called. */
  readonly prepare: (model: ModelName, n: number) => Promise<() => Promise<Answer>>;
  /** Engine processes until now. */
  readonly started: () => number;
  readonly stop: () => Promise<void>;
}

export interface Models {
  /** Holds a.gguf, b.gguf and c.gguf and nothing else. */
  readonly folder: string;
  readonly fileOf: (model: ModelName) => string;
  /** Of each file. */
  readonly bytes: number;
  readonly remove: () => void;
}

/** Three files of the same shape: what differs between two of them is their name alone, so a swap costs the same each time. */
export async function makeModels(): Promise<Models> {
  const folder = mkdtempSync(join(tmpdir(), "orchd-swaps-"));
  const fileOf = (model: ModelName): string => join(folder, `${model}.gguf`);
  await writeGguf(fileOf("a"), buildModel("slow"));
  for (const model of ["b", "c"] as const) copyFileSync(fileOf("a"), fileOf(model));
  return {
    folder,
    fileOf,
    bytes: statSync(fileOf("a")).size,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

export interface SideOptions {
  readonly binary: string;
  readonly engineBin: string;
  readonly models: Models;
  readonly loadMode: string;
  readonly tokens: number;
  readonly slots: number;
  readonly swapMaxWaitMs: number;
  readonly swapTurnMaxMs: number;
}

const ctx = 1024;
const moreOf = ({ loadMode }: SideOptions): string[] => ["--ignore-eos", "--load-mode", loadMode];
/** A request without its end by then has failed. */
const answerMsMax = 300_000;

/** Short, and different for each `n`. */
const promptOf = (n: number): string => `${n} lamps`;

async function prepared(target: Target, model: ModelName, body: string): Promise<() => Promise<Answer>> {
  const connection = await Connection.open(target);
  return async () => {
    const late = setTimeout(() => connection.close(), answerMsMax);
    try {
      const sentMs = performance.now();
      const { firstTokenMs, totalMs } = await connection.stream(target, body);
      return { model, sentMs, firstTokenMs: sentMs + firstTokenMs, endMs: sentMs + totalMs };
    } finally {
      clearTimeout(late);
      connection.close();
    }
  };
}

export interface DaemonSide extends SwapSide {
  readonly log: () => string;
  readonly metrics: () => Promise<string>;
}

export async function startDaemonSide(options: SideOptions): Promise<DaemonSide> {
  const { models, slots, tokens } = options;
  const daemon = await startDaemon(options.binary, {
    limits: { rate: { per_second: 100_000, burst: 100_000 }, streams_per_key: 20_000 },
    engines: { llamacpp: { bin: options.engineBin } },
    // One fits with its context and buffers, two do not.
    devices: [{ id: "host", memory_bytes: Math.round(models.bytes * 1.6), reserve_bytes: 0 }],
    residency: { swap_max_wait_ms: options.swapMaxWaitMs, swap_turn_max_ms: options.swapTurnMaxMs },
    pools: modelNames.map((id) => ({
      id,
      engine: "llamacpp",
      model: `file:${models.fileOf(id)}`,
      devices: ["host"],
      slots,
      ctx,
      preload: false,
      queue: { capacity: 1024 },
      args: ["-t", "1", ...moreOf(options)],
    })),
  });
  return {
    name: "orchestratord",
    prepare: (model, n) =>
      prepared(
        daemonTarget(daemon),
        model,
        JSON.stringify({
          prompt: promptOf(n),
          max_tokens: tokens,
          seed: 1,
          sampling: { temperature: 0 },
          model_ref: model,
        }),
      ),
    started: () => [...daemon.log().matchAll(/"from":"starting","to":"loading"/g)].length,
    log: daemon.log,
    metrics: async () => (await fetch(`http://${daemon.host}:${daemon.port}/metrics`)).text(),
    stop: daemon.stop,
  };
}

const completionOf = (model: ModelName, n: number, tokens: number): string =>
  JSON.stringify({ model, prompt: promptOf(n), n_predict: tokens, temperature: 0, seed: 1, stream: true });

/** llama-server that starts one llama-server for each model that it is asked for, one at a time. */
export async function startRouterSide(options: SideOptions): Promise<SwapSide> {
  const { engineBin, models, slots, tokens } = options;
  const child = Bun.spawn(
    [
      ...[engineBin, "--models-dir", models.folder, "--models-max", "1"],
      ...engineFlags(slots, ctx, moreOf(options)),
    ],
    { stdout: "pipe", stderr: "ignore" },
  );
  let started = 0;
  let rest = "";
  const count = (text: string): void => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    started += lines.filter((line) => line.includes("spawning server instance with name=")).length;
  };
  const port = Number(await firstMatch(child.stdout, /listening on http:\/\/127\.0\.0\.1:(\d+)/, count));
  const running: Running = { pid: child.pid, host: "127.0.0.1", port, stop: stopper(child) };
  return {
    name: "llama-server's router",
    prepare: (model, n) => prepared(engineTarget(running), model, completionOf(model, n, tokens)),
    started: () => started,
    stop: running.stop,
  };
}

/** What a swap takes where nothing is decided: told to stop, reaped, the next one started, asked as soon as it says that it listens. */
export interface HandMade {
  readonly gapMs: number;
  readonly exitMs: number;
  readonly loadMs: number;
  readonly firstTokenMs: number;
}

export class ByHand {
  #engine: Running | null = null;

  constructor(private readonly options: SideOptions) {}

  async #ask(model: ModelName, n: number): Promise<Answer> {
    if (this.#engine === null) throw new Error("no engine runs");
    const { tokens } = this.options;
    return (await prepared(engineTarget(this.#engine), model, completionOf(model, n, tokens)))();
  }

  async #start(model: ModelName): Promise<void> {
    const { engineBin, models, slots } = this.options;
    this.#engine = await startEngine(engineBin, models.fileOf(model), slots, ctx, moreOf(this.options));
  }

  async swap(from: ModelName, to: ModelName, n: number): Promise<HandMade> {
    if (this.#engine === null) await this.#start(from);
    const { endMs } = await this.#ask(from, n);
    await this.stop();
    const exitedMs = performance.now();
    await this.#start(to);
    const listensMs = performance.now();
    const { firstTokenMs } = await this.#ask(to, n);
    return {
      gapMs: firstTokenMs - endMs,
      exitMs: exitedMs - endMs,
      loadMs: listensMs - exitedMs,
      firstTokenMs: firstTokenMs - listensMs,
    };
  }

  async stop(): Promise<void> {
    await this.#engine?.stop();
    this.#engine = null;
  }
}
