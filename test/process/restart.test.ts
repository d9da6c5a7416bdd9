/**
 * ORCHD-DUR-1, ORCHD-DUR-2: `kill -9` of the daemon at moments drawn by chance, under load: whatever a client got a 202 for is there after the
 * restart, once, in its order, and runs to its end. `RESTART_ROUNDS` and `RESTART_SEED` for more of it.
 */
import { afterEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { moment } from "../engine/support.ts";
import { endDaemons, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { waitFor } from "../support/wait.ts";

afterEach(endDaemons, 60_000);

const rounds = Number(process.env.RESTART_ROUNDS ?? 8);
const seed = Number(process.env.RESTART_SEED ?? 20_261_121);
const clients = 4;

interface Listed {
  readonly task_id: string;
  readonly state: string;
  readonly tokens_out: number;
}

/** Every task the daemon knows, newest first. */
async function listed(daemon: RunningDaemon): Promise<Listed[]> {
  const all: Listed[] = [];
  let cursor = "";
  do {
    const path = `/v1/tasks?limit=500${cursor === "" ? "" : `&cursor=${cursor}`}`;
    const page = await daemon.json<{ tasks: Listed[]; next_cursor: string | null }>(path);
    all.push(...page.tasks);
    cursor = page.next_cursor ?? "";
  } while (cursor !== "");
  return all;
}

/** Submits one after the other until the daemon is gone; what was accepted, in that order. */
async function submitUntilGone(daemon: RunningDaemon, client: number): Promise<string[]> {
  const accepted: string[] = [];
  for (let n = 0; ; n++) {
    const body = JSON.stringify({ prompt: `client ${client}, task ${n}`, max_tokens: 4, priority: "batch" });
    try {
      const headers = { "content-type": "application/json" };
      const answer = await daemon.fetch("/v1/tasks", { method: "POST", headers, body });
      if (answer.status !== 202) throw new Error(`answered with ${answer.status}: ${await answer.text()}`);
      accepted.push(((await answer.json()) as { task_id: string }).task_id);
    } catch (error) {
      // The 202 whose body was cut off by the kill is not known to its client either.
      if (daemon.hasExited || !(error instanceof Error) || !error.message.startsWith("answered"))
        return accepted;
      throw error;
    }
  }
}

const settings = (tokenMs: number) => ({
  pools: [
    {
      id: "mock",
      engine: "mock",
      model: "mock:words",
      slots: 8,
      queue: { capacity: 1_000_000 },
      mock: { token_ms: tokenMs, prefill_ms_per_token: 0 },
    },
  ],
});

test(
  "what was accepted survives kill -9, once and in order",
  async () => {
    console.info(`restart: seed ${seed}, ${rounds} rounds`);
    const folder = mkdtempSync(join(tmpdir(), "orchd-restart-"));
    let state = seed;
    const unit = (): number => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state / 2 ** 32;
    };
    const perClient: string[][] = Array.from({ length: clients }, () => []);
    try {
      for (let round = 0; round < rounds; round++) {
        const daemon = await startDaemon({ folder, settings: settings(20) });
        const submitting = perClient.map((_, client) => submitUntilGone(daemon, client));
        const first = listed(daemon);
        await first;
        await moment(unit() * 250);
        await daemon.kill9();
        for (const [client, ids] of (await Promise.all(submitting)).entries())
          perClient[client]?.push(...ids);
      }
      const daemon = await startDaemon({ folder, settings: settings(0) });
      const accepted = perClient.flat();
      expect(accepted.length).toBeGreaterThan(rounds * clients);
      await waitFor(
        async () => {
          const live = (await listed(daemon)).filter(({ state: s }) => s === "queued" || s === "running");
          return live.length === 0;
        },
        60_000,
        "all tasks ended",
      );
      const known = (await listed(daemon)).reverse();
      expect(new Set(known.map(({ task_id }) => task_id)).size).toBe(known.length);
      // A client may not have read the answer to its last one; nothing else is there more than once.
      expect(known.length - accepted.length).toBeLessThanOrEqual(rounds * clients);
      const place = new Map(known.map(({ task_id }, at) => [task_id, at]));
      expect(accepted.filter((id) => !place.has(id))).toEqual([]);
      expect(known.filter(({ state: s, tokens_out }) => s !== "done" || tokens_out !== 4)).toEqual([]);
      for (const ids of perClient) {
        const places = ids.map((id) => place.get(id) ?? -1);
        expect(places).toEqual([...places].sort((a, b) => a - b));
      }
      console.info(`restart: ${accepted.length} accepted over ${rounds} kills, ${known.length} known`);
    } finally {
      await endDaemons();
      rmSync(folder, { recursive: true, force: true });
    }
  },
  60_000 + rounds * 3_000,
);
