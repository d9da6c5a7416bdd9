/**
 * ORCHD-DUR-2 on the real engine: a task that ran and those that waited when the daemon was killed are there after its
 * restart, in their order, and end well; a session and what it may still spend go on, too.
 */
import { afterEach, expect, test } from "bun:test";
import type { SessionViewBody } from "../../src/api/schema/sessions.ts";
import type { TaskViewBody } from "../../src/api/schema/tasks.ts";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import {
  type Json,
  patienceMs,
  startReference,
  submit,
  submitAndWatch,
  type Viewer,
  watch,
} from "./support.ts";

afterEach(endDaemons, 60_000);

const args = ["--ignore-eos"];
const pools = [enginePool("chat", testModel("demo"), { slots: 1, ctx: 2048, args })];
const settings = { log: { level: "info" }, sessions: { budget: { tokens: 5_000 } }, pools };
const sampling = { temperature: 0 };
const bodyOf = (prompt: string, max_tokens: number, more: Json = {}): Json => ({
  prompt,
  max_tokens,
  sampling,
  on_disconnect: "continue",
  ...more,
});

const stateOf = async (daemon: RunningDaemon, taskId: string): Promise<string> =>
  (await daemon.json<TaskViewBody>(`/v1/tasks/${taskId}`)).state;

test("kill -9: what ran and what waited end well after the restart, in their order", async () => {
  const daemon = await startDaemon({ settings });
  const session_id = crypto.randomUUID();
  const running = await submitAndWatch(daemon, bodyOf("The harbour", 1_200, { session_id }));
  await running.hasTokens(3);
  const waiting: Viewer[] = [];
  for (const [prompt, priority] of [
    ["Once upon a time", "batch"],
    ["The baker said farewell", "interactive"],
  ])
    waiting.push(await submitAndWatch(daemon, bodyOf(String(prompt), 40, { priority })));
  const unwatched = await submit(daemon, bodyOf("The sea", 30, { task_id: crypto.randomUUID() }));
  expect(unwatched.status).toBe(202);
  expect(await stateOf(daemon, running.taskId)).toBe("running");
  const left = (await daemon.json<SessionViewBody>(`/v1/sessions/${session_id}`)).tokens_budget_remaining;
  expect(left).toBeLessThan(5_000 - 1_200);
  await daemon.kill9();
  await waitFor(() => [running, ...waiting].every(({ ended }) => ended), patienceMs, "the streams are cut");
  expect(running.tokens.length).toBeLessThan(1_200);

  const next = await startDaemon({ settings, folder: daemon.folder, until: "listening" });
  const ids = [running, ...waiting].map(({ taskId }) => taskId).concat(String(unwatched.body.task_id));
  // The same task again is the one that is there.
  const again = await submit(next, bodyOf("The sea", 30, { task_id: unwatched.body.task_id }));
  expect([again.status, again.body.task_id]).toEqual([202, unwatched.body.task_id]);
  const viewers = await Promise.all(ids.map(async (id) => (await watch(next, id)).finished()));
  expect(viewers.map(({ outcome, terminal }) => [outcome, terminal.data.tokens_out])).toEqual([
    ["length", 1_200],
    ["length", 40],
    ["length", 40],
    ["length", 30],
  ]);
  for (const { events } of viewers) expect(events.filter(({ type }) => type === "started")).toHaveLength(1);
  // What a viewer had seen of the running one before is said again.
  expect(viewers[0]?.text).toStartWith(running.text);

  const alone = await startReference(testModel("demo"), ["-c", "2048", ...args]);
  try {
    for (const [at, prompt] of [
      "The harbour",
      "Once upon a time",
      "The baker said farewell",
      "The sea",
    ].entries())
      expect(viewers[at]?.text).toBe(
        await alone.complete({ prompt, n_predict: viewers[at]?.terminal.data.tokens_out, ...sampling }),
      );
  } finally {
    await alone.stop();
  }

  // It ran before, so it is the first; then interactive before batch, each in the order of acceptance.
  const [first, batch, interactive, last] = ids;
  const starts = () =>
    next.lines.filter(({ event }) => event === "task_started").map(({ task_id }) => task_id);
  await waitFor(() => starts().length >= ids.length, patienceMs, "all starts are in the log");
  expect(starts()).toEqual([first, interactive, last, batch]);
  const { tasks } = await next.json<{ tasks: unknown[] }>("/v1/tasks");
  expect(tasks).toHaveLength(ids.length);
  const session = await next.json<SessionViewBody>(`/v1/sessions/${session_id}`);
  expect(session).toMatchObject({ turns: 1 });
  expect(session.tokens_budget_remaining ?? 0).toBeLessThan(5_000 - 1_200);
  expect(await next.stop()).toBe(143);
}, 60_000);
