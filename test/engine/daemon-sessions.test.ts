/**
 * Sessions on the real engine (ORCHD-SESS-2, ORCHD-SESS-3): a turn returns to the slot that holds the context of those
 * before, the engine says that it reused it, and what is deleted is not there any more. The slot is the one that the
 * daemon's log names; warm is what the engine reported.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { demoShape } from "../../scripts/model/demo-weights.ts";
import type { SessionViewBody } from "../../src/api/schema/sessions.ts";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { never, startLlamaCpp, testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { type Json, patienceMs, slotsBusy, submitAndWatch, type Viewer } from "./support.ts";

afterEach(endDaemons, 60_000);

const slots = 4;
const ctx = 2048;
/** Keys and values of every layer, 2 bytes a number. */
const kvBytesPerToken = demoShape.layers * demoShape.heads * demoShape.headWidth * 2 * 2;
const words = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8").match(
  /\b[a-z]{2,}\b/g,
);
const wordsOf = (from: number, count: number): string => (words ?? []).slice(from, from + count).join(" ");
const opening = wordsOf(0, 90);
/** Texts that share no beginning with each other or with `opening`. */
const otherText = (n: number): string => `${n} ${wordsOf(200 + 20 * n, 60)}`;

const start = (args: readonly string[] = []): Promise<RunningDaemon> =>
  startDaemon({
    settings: {
      log: { level: "info" },
      pools: [enginePool("chat", testModel("demo"), { slots, ctx, args })],
    },
  });

const sampling = { temperature: 0 };

/** A task that has ended well. */
async function run(daemon: RunningDaemon, body: Json): Promise<Viewer> {
  const viewer = await (await submitAndWatch(daemon, { max_tokens: 12, sampling, ...body })).finished();
  expect(viewer.terminal.type).toBe("end");
  return viewer;
}

const startedOf = ({ events }: Viewer): Json => events.find(({ type }) => type === "started")?.data ?? {};

/** On which slot the daemon let its last attempt start. */
async function slotOf(daemon: RunningDaemon, { taskId }: Viewer): Promise<number> {
  const slot = await waitFor(
    () => daemon.lines.findLast(({ event, task_id }) => event === "task_started" && task_id === taskId)?.slot,
    patienceMs,
    `the start of ${taskId} is in the log`,
  );
  return Number(slot);
}

const session = (daemon: RunningDaemon, id: string): Promise<SessionViewBody> =>
  daemon.json(`/v1/sessions/${id}`);

async function forget(daemon: RunningDaemon, id: string): Promise<void> {
  expect((await daemon.fetch(`/v1/sessions/${id}`, { method: "DELETE" })).status).toBe(204);
  expect((await daemon.fetch(`/v1/sessions/${id}`)).status).toBe(404);
}

/** `count` tasks of nobody's session, one after the other: each takes the slot that was idle longest. */
async function others(daemon: RunningDaemon, count: number): Promise<number[]> {
  const taken: number[] = [];
  for (let n = 0; n < count; n++)
    taken.push(await slotOf(daemon, await run(daemon, { prompt: otherText(n) })));
  return taken;
}

const filesOf = (folder: string): string[] => readdirSync(folder, { recursive: true }).map(String).sort();

const tokensOf = ({ terminal }: Viewer): number =>
  Number(terminal.data.tokens_in) + Number(terminal.data.tokens_out);

describe("the turns of a session", () => {
  test("go to the slot of the turn before and reuse its context, with others between and beside", async () => {
    const daemon = await start(["--ignore-eos"]);
    const session_id = crypto.randomUUID();
    const first = await run(daemon, { prompt: opening, session_id });
    const home = await slotOf(daemon, first);
    expect(startedOf(first)).toMatchObject({ kv_warmth: false, session_id });
    expect(await session(daemon, session_id)).toMatchObject({
      turns: 1,
      kv_warmth: false,
      kv_bytes: tokensOf(first) * kvBytesPerToken,
    });

    // Between: the others get the other slots.
    const between = await others(daemon, slots - 1);
    expect(new Set([...between, home]).size).toBe(slots);
    const longer = `${opening}${first.text} ${wordsOf(100, 20)}`;
    const second = await run(daemon, { prompt: longer, session_id });
    expect(await slotOf(daemon, second)).toBe(home);
    expect(startedOf(second).kv_warmth).toBe(true);
    expect(await session(daemon, session_id)).toMatchObject({
      turns: 2,
      kv_warmth: true,
      kv_bytes: tokensOf(second) * kvBytesPerToken,
    });

    // Beside: all other slots are busy, and stay so.
    const beside: Viewer[] = [];
    for (let n = 0; n < slots - 1; n++)
      beside.push(await submitAndWatch(daemon, { prompt: otherText(10 + n), max_tokens: 1_500, sampling }));
    for (const viewer of beside) await viewer.hasTokens(1);
    const third = await run(daemon, { prompt: `${longer}${second.text} ${wordsOf(130, 20)}`, session_id });
    expect(beside.filter(({ ended }) => ended)).toEqual([]);
    expect(await slotOf(daemon, third)).toBe(home);
    expect(startedOf(third).kv_warmth).toBe(true);
    expect((await session(daemon, session_id)).turns).toBe(3);
  }, 60_000);

  test("another text in the same slot is not called warm: a begin token is nobody's context", async () => {
    const daemon = await start();
    await others(daemon, slots);
    const other = await run(daemon, { prompt: wordsOf(400, 60) });
    expect(startedOf(other).kv_warmth).toBe(false);
  }, 30_000);

  test("pushed out of its slot, the engine's own cache on the host may bring it back", async () => {
    const daemon = await start();
    const session_id = crypto.randomUUID();
    const first = await run(daemon, { prompt: opening, session_id });
    expect(await others(daemon, slots)).toContain(await slotOf(daemon, first));
    const second = await run(daemon, { prompt: `${opening}${first.text} ${wordsOf(100, 20)}`, session_id });
    expect(startedOf(second).kv_warmth).toBe(true);
  }, 30_000);
});

describe("a session that is deleted", () => {
  test("leaves nothing in its slot: the next task with the same prompt starts cold", async () => {
    const daemon = await start();
    const session_id = crypto.randomUUID();
    const first = await run(daemon, { prompt: opening, session_id });
    // Without the end of the session it would be warm.
    const again = await run(daemon, { prompt: opening, session_id });
    expect(startedOf(again).kv_warmth).toBe(true);
    await forget(daemon, session_id);
    const next = await run(daemon, { prompt: opening });
    // There, where its context would be if it had not been erased.
    expect(await slotOf(daemon, next)).toBe(await slotOf(daemon, first));
    expect(startedOf(next).kv_warmth).toBe(false);
    expect(next.text).toBe(first.text);
    expect(daemon.lines.filter(({ event }) => event === "erase_failed")).toEqual([]);
  }, 30_000);

  test("is erased from every slot that its tasks ran on, finished or not", async () => {
    const daemon = await start(["--ignore-eos", "--cache-ram", "0"]);
    const session_id = crypto.randomUUID();
    const prompts = [opening, otherText(1), otherText(2)];
    const running: Viewer[] = [];
    for (const prompt of prompts)
      running.push(await submitAndWatch(daemon, { prompt, session_id, max_tokens: 1_500, sampling }));
    for (const viewer of running) await viewer.hasTokens(1);
    const held = await Promise.all(running.map((viewer) => slotOf(daemon, viewer)));
    expect(new Set(held).size).toBe(prompts.length);
    await forget(daemon, session_id);
    for (const viewer of running) expect((await viewer.finished()).outcome).toBe("CANCELED");
    await waitFor(async () => (await slotsBusy(daemon, "chat")) === 0, patienceMs, "all slots are free");
    for (const prompt of prompts) expect(startedOf(await run(daemon, { prompt })).kv_warmth).toBe(false);
  }, 30_000);

  /**
   * A limit: the engine has no call for its cache on the host (`--cache-ram`), in which it keeps what was pushed out of
   * a slot. Without that cache nothing is left.
   */
  test("and was pushed out of its slot before, is gone where the engine keeps no cache on the host", async () => {
    for (const [args, warmth] of [[[], true] as const, [["--cache-ram", "0"], false] as const]) {
      const daemon = await start(args);
      const session_id = crypto.randomUUID();
      const first = await run(daemon, { prompt: opening, session_id });
      expect(await others(daemon, slots)).toContain(await slotOf(daemon, first));
      await forget(daemon, session_id);
      expect(startedOf(await run(daemon, { prompt: opening })).kv_warmth).toBe(warmth);
      await daemon.stop();
    }
  }, 60_000);
});

describe("the context memory that the engine reports", () => {
  test("is that of the model's shape, by token, for a small and for a large one", async () => {
    const engine = await startLlamaCpp({ slots, ctx });
    try {
      expect((await engine.client.identity(never)).kvBytesPerToken).toBe(kvBytesPerToken);
      // Llama 3 8B: 32 layers, 8 heads of 128 for keys and values, 2 bytes; part of it on a GPU.
      const perToken = 32 * 8 * 128 * 2 * 2;
      const mib = (perToken * slots * ctx) / 2 ** 20;
      const row = (name: string, context: number) => ({
        name,
        self: 9_000,
        model: 5_000,
        context,
        compute: 9,
      });
      const rows = [row("CUDA0", mib - 64), row("Host", 64)];
      engine.client.onLogLine(JSON.stringify({ type: "fit_memory_breakdown", data: { unit: "MiB", rows } }));
      expect((await engine.client.identity(never)).kvBytesPerToken).toBe(perToken);
    } finally {
      await engine.stop();
    }
  }, 30_000);

  test("erasing a slot writes nothing into the folder that allows it", async () => {
    const daemon = await start();
    const [pid] = daemon.engines();
    const argv = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    const folder = argv[argv.indexOf("--slot-save-path") + 1] ?? "";
    expect(folder).toStartWith(daemon.folder);
    const before = filesOf(folder);
    const session_id = crypto.randomUUID();
    await run(daemon, { prompt: opening, session_id });
    await forget(daemon, session_id);
    expect(filesOf(folder)).toEqual(before);
    // Keys, sockets, and the daemon's own record of its children.
    expect(before.filter((name) => !/\.(key|sock)$|^children/.test(name))).toEqual([]);
  }, 30_000);
});
