/**
 * Cancel on the real engine, 200 times at moments drawn by chance: waiting, reading the prompt, decoding, alone
 * and beside other streams. CANCELED is the last that any viewer hears, and the daemon has written it before the
 * 204: viewers and the 204 are read on this process's event loop, so one turn after the 204 nothing is left to come.
 * The engine's slot is soon free: the daemon counts it so only when the engine has freed it.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import {
  Chance,
  cancel,
  health,
  type Json,
  moment,
  patienceMs,
  percentiles,
  slotsBusy,
  submitAndWatch,
  type Viewer,
  watch,
} from "./support.ts";

const seed = Number(process.env.CANCEL_SEED ?? 20_261_121);
const chance = new Chance(seed);
let daemon: RunningDaemon;

beforeAll(async () => {
  // Without an end token every stream runs until it is canceled.
  const args = ["--ignore-eos"];
  daemon = await startDaemon({
    settings: {
      pools: [
        enginePool("fast", testModel("demo"), { slots: 4, ctx: 4096, args }),
        enginePool("slow", testModel("slow"), { slots: 2, ctx: 2048, args }),
      ],
    },
  });
}, 60_000);

afterAll(endDaemons, 60_000);

const words = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8").match(
  /[a-z]{2,}/g,
);
const wordsOf = (count: number): string => (words ?? []).slice(0, count).join(" ");

interface Task {
  readonly pool: "fast" | "slow";
  readonly promptWords: number;
  readonly maxTokens: number;
}

const bodyOf = ({ pool, promptWords, maxTokens }: Task): Json => ({
  prompt: wordsOf(promptWords),
  max_tokens: maxTokens,
  seed: 1,
  // No cached context: each prompt is read again.
  kv_hint: "cold",
  placement: { mode: "pin", pin_pool_id: pool },
});

/** Streams that run on beside those that are canceled. */
class Neighbours {
  #viewers: Viewer[] = [];

  constructor(private readonly task: Task) {}

  get running(): number {
    return this.#viewers.filter(({ ended }) => !ended).length;
  }

  async keep(count: number): Promise<void> {
    for (const viewer of this.#viewers.filter(({ ended }) => ended)) viewer.checkOrder();
    this.#viewers = this.#viewers.filter(({ ended }) => !ended);
    while (this.#viewers.length < count) {
      const viewer = await submitAndWatch(daemon, bodyOf(this.task));
      this.#viewers.push(viewer);
      await viewer.hasTokens(1);
    }
  }

  async end(): Promise<void> {
    for (const viewer of this.#viewers) {
      await cancel(daemon, viewer.taskId);
      await viewer.finished();
      expect(viewer.outcome).toBe("CANCELED");
    }
    await waitFor(
      async () => (await slotsBusy(daemon, this.task.pool)) === 0,
      patienceMs,
      "all slots are free",
    );
    this.#viewers = [];
  }
}

/** What the engine did for the task when its cancel was asked for, as far as a viewer could see. */
type Phase = "queued" | "prompt" | "decoding";
const slotFreeMs: Record<Phase, number[]> = { queued: [], prompt: [], decoding: [] };
const sealedMs: number[] = [];
let canceled = 0;

async function cancelAt(task: Task, neighbours: Neighbours, comes: (viewer: Viewer) => Promise<unknown>) {
  const viewer = await submitAndWatch(daemon, bodyOf(task));
  const others = chance.unit() < 0.3 ? [await watch(daemon, viewer.taskId, "?observe=1")] : [];
  await comes(viewer);
  const { state } = await daemon.json<{ state: string }>(`/v1/tasks/${viewer.taskId}`);
  const phase: Phase = state === "queued" ? "queued" : viewer.tokens.length === 0 ? "prompt" : "decoding";
  const askedMs = performance.now();
  const doneMs = await cancel(daemon, viewer.taskId);
  const watching = [viewer, ...others];
  const heard = watching.map(({ events }) => events.length);
  sealedMs.push(doneMs - askedMs);
  canceled++;
  const stillBusy = async () => (await slotsBusy(daemon, task.pool)) > neighbours.running;
  await waitFor(async () => !(await stillBusy()), patienceMs, "the slot is free");
  slotFreeMs[phase].push(performance.now() - doneMs);

  for (const [at, one] of watching.entries()) {
    await one.finished();
    expect(one.outcome).toBe("CANCELED");
    expect({ seed, phase, late: one.events.slice(heard[at]) }).toEqual({ seed, phase, late: [] });
  }
  // What was logged before the seal is still told to those who come later.
  const replay = await (await watch(daemon, viewer.taskId)).finished();
  expect(replay.outcome).toBe("CANCELED");
  expect(replay.text).toStartWith(viewer.text);
  return phase;
}

interface Speed {
  readonly decodeTps: number;
  readonly prefillTps: number;
}

/** Tokens per second of one sequence as this machine does now: what the bounds are scaled by. */
async function speedOf(task: Task): Promise<Speed> {
  const { terminal } = await (await submitAndWatch(daemon, bodyOf(task))).finished();
  const { tokens_in, tokens_out, decode_ms, first_token_ms, queue_ms } = terminal.data as Record<
    string,
    number
  >;
  const perSecond = (tokens = 0, ms = 0) => (tokens * 1000) / Math.max(1, ms);
  return {
    decodeTps: perSecond(tokens_out, decode_ms),
    prefillTps: perSecond(tokens_in, (first_token_ms ?? 0) - (queue_ms ?? 0)),
  };
}

/** Prints and empties what was measured. `before` and now: a machine that others use changes its speed. */
async function assertSoon(name: string, task: Task, share: number, before: Speed): Promise<void> {
  const now = await speedOf(task);
  const decodeTps = Math.min(before.decodeTps, now.decodeTps);
  const prefillTps = Math.min(before.prefillTps, now.prefillTps);
  // On a machine that other work slows down, what counts is the engine's own step: it looks for gone clients
  // between two batches of 64 prompt tokens, and at each decoded token, of which the neighbours have their share.
  const decodingMs = Math.max(300, (8_000 * share) / decodeTps);
  const promptMs = Math.max(1_500, (4 * 64_000 * share) / prefillTps);
  const bounds: Readonly<Record<Phase, number>> = {
    queued: decodingMs,
    decoding: decodingMs,
    prompt: promptMs,
  };
  for (const phase of ["queued", "decoding", "prompt"] as const) {
    const values = slotFreeMs[phase].splice(0);
    if (values.length === 0) continue;
    const seen = percentiles(values);
    const speeds = `${Math.round(decodeTps)} and ${Math.round(prefillTps)} tokens/s`;
    const shown = JSON.stringify({ n: values.length, ...seen });
    console.info(`cancel, ${name}, ${phase}: slot free after ms ${shown}; ${speeds}`);
    expect(seen.p90).toBeLessThan(bounds[phase]);
    // One in ten may meet a process that the machine did not let run.
    expect(seen.max).toBeLessThan(3 * bounds[phase]);
  }
}

const inTurn = (counts: Readonly<Record<string, number>>): string[] =>
  Object.entries(counts)
    .flatMap(([kind, count]) => Array.from({ length: count }, () => kind))
    .map((kind) => ({ kind, order: chance.unit() }))
    .sort((a, b) => a.order - b.order)
    .map(({ kind }) => kind);

const fastDecoding: Task = { pool: "fast", promptWords: 8, maxTokens: 3_000 };
const fastReading: Task = { pool: "fast", promptWords: 2_000, maxTokens: 1_000 };
const slowDecoding: Task = { pool: "slow", promptWords: 6, maxTokens: 1_000 };
const slowReading: Task = { pool: "slow", promptWords: 240, maxTokens: 500 };
const fastSpeed: Task = { pool: "fast", promptWords: 500, maxTokens: 100 };
const slowSpeed: Task = { pool: "slow", promptWords: 60, maxTokens: 8 };
const afterTokens = (most: number) => (viewer: Viewer) => viewer.hasTokens(chance.between(1, most));
const afterMs = (most: number) => () => moment(chance.unit() * most);

describe("after the 204 no token, and the slot is soon free", () => {
  test("a quick engine: decoding, reading, waiting; alone and beside up to three others", async () => {
    console.info(`cancel: seed ${seed}`);
    const speed = await speedOf(fastSpeed);
    const neighbours = new Neighbours({ ...fastDecoding, maxTokens: 3_900 });
    for (const kind of inTurn({ alone: 40, beside: 60, reading: 30, readingAlone: 8 })) {
      const isAlone = kind === "alone" || kind === "readingAlone";
      if (isAlone && neighbours.running > 0 && chance.unit() < 0.5) await neighbours.end();
      else if (!isAlone) await neighbours.keep(chance.between(1, 3));
      const reads = kind.startsWith("reading");
      await cancelAt(reads ? fastReading : fastDecoding, neighbours, reads ? afterMs(250) : afterTokens(40));
    }
    await neighbours.end();
    await assertSoon("quick engine", fastSpeed, 4, speed);

    await neighbours.keep(4);
    for (let left = 40; left > 0; left--) {
      expect(await cancelAt(fastDecoding, neighbours, afterMs(10))).toBe("queued");
      expect((await health(daemon, "fast")).queue).toMatchObject({ interactive: 0, batch: 0 });
      await neighbours.keep(4);
    }
    await neighbours.end();
    await assertSoon("quick engine", fastSpeed, 4, speed);
  }, 90_000);

  test("a slow engine: in the middle of the prompt and of the answer", async () => {
    const speed = await speedOf(slowSpeed);
    const neighbours = new Neighbours({ ...slowDecoding, maxTokens: 1_900 });
    for (const beside of [0, 1]) {
      await neighbours.keep(beside);
      for (const kind of inTurn({ decoding: 4, reading: 7 })) {
        if (kind === "reading") await cancelAt(slowReading, neighbours, afterMs(600));
        else await cancelAt(slowDecoding, neighbours, afterTokens(6));
      }
      await neighbours.end();
      await assertSoon(`slow engine beside ${beside}`, slowSpeed, 1 + beside, speed);
    }
    expect(canceled).toBe(200);
    console.info("cancel: 204 after ms", JSON.stringify(percentiles(sealedMs)));
  }, 90_000);

  test("it is idempotent, and a task that nobody knows is not found", async () => {
    const viewer = await submitAndWatch(daemon, bodyOf(fastDecoding));
    await viewer.hasTokens(1);
    await cancel(daemon, viewer.taskId);
    await viewer.finished();
    await cancel(daemon, viewer.taskId);
    expect((await watch(daemon, viewer.taskId).then((one) => one.finished())).outcome).toBe("CANCELED");
    const unknown = await daemon.fetch(`/v1/tasks/${crypto.randomUUID()}/cancel`, { method: "POST" });
    expect(unknown.status).toBe(404);
  });
});
