/**
 * What every task store owes its callers (ports/task-store.ts), as one suite over any adapter. task-store.test.ts
 * runs it over the fake and over SQLite.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { isAssertion } from "../../src/domain/assert.ts";
import type { TerminalState } from "../../src/domain/task.ts";
import type { StoreOp, TaskStore } from "../../src/ports/task-store.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import {
  afterEnd,
  everyEnded,
  newTranscript,
  storedAllowance,
  storedEnd,
  storedSession,
  storedTask,
  uuidOf,
} from "../support/stored-tasks.ts";

export interface StoreUnderTest {
  readonly store: TaskStore;
  /** Another store over what this one has written, as after a restart. */
  reopen(): Promise<StoreUnderTest>;
  /** Gives everything back. */
  dispose(): Promise<void>;
}

export interface StoreFactory {
  readonly name: string;
  open(): Promise<StoreUnderTest>;
}

const admit = (ordinal: number, more: Parameters<typeof storedTask>[1] = {}): StoreOp => ({
  kind: "task_admitted",
  task: storedTask(ordinal, more),
});
const end = (ordinal: number, more: Parameters<typeof storedEnd>[0] = {}): StoreOp => ({
  kind: "task_ended",
  taskId: uuidOf(ordinal),
  end: storedEnd(more),
});
/** Ends with the nth transcript. */
const left = (ordinal: number, more: Parameters<typeof newTranscript>[1] = {}): StoreOp => {
  const transcript = newTranscript(ordinal, more);
  const ended = storedEnd({ artifactId: transcript.artifactId });
  return { kind: "task_ended", taskId: uuidOf(ordinal), end: ended, transcript };
};
const assertionOf = (work: () => unknown): unknown => {
  try {
    work();
  } catch (error) {
    return isAssertion(error) ? "assertion" : error;
  }
  return "nothing";
};

export function taskStoreConformance(factory: StoreFactory): void {
  describe(`task store conformance: ${factory.name}`, () => {
    let under: StoreUnderTest;
    beforeEach(async () => {
      under = await factory.open();
    });
    afterEach(() => under.dispose());
    const store = () => under.store;
    const restart = async () => {
      under = await under.reopen();
      return under.store.recover();
    };
    const listed = (more: Parameters<typeof everyEnded>[0] = {}) =>
      store()
        .list(everyEnded(more))
        .map(({ ordinal }) => ordinal);

    test("a new store is empty", () => {
      expect(store().recover()).toEqual({ ordinal: 0, live: [], sessions: [], allowances: [] });
      expect(store().find(uuidOf(1))).toBeNull();
      expect(listed()).toEqual([]);
      expect(store().sizeBytes()).toBeGreaterThan(0);
    });

    test("live tasks come back whole and in the order of admission", async () => {
      store().write([admit(3), admit(1)]);
      store().write([admit(2, { sessionId: uuidOf(9), priority: "batch", deadlineMs: null, budget: null })]);
      const { ordinal, live } = await restart();
      expect(ordinal).toBe(3);
      expect(live).toEqual([
        storedTask(1),
        storedTask(2, { sessionId: uuidOf(9), priority: "batch", deadlineMs: null, budget: null }),
        storedTask(3),
      ]);
    });

    test("every kind of input comes back", async () => {
      const inputs = [
        { kind: "messages", messages: [{ role: "user", content: "hi" }] },
        { kind: "embedding", inputs: ["a", ""] },
        { kind: "rerank", query: "q", inputs: ["a"] },
        { kind: "prompt", prompt: "x".repeat(300_000) },
      ] as const;
      store().write(inputs.map((input, at) => admit(at + 1, { input })));
      expect((await restart()).live.map(({ spec }) => spec.input)).toEqual([...inputs]);
    });

    test("an ended task keeps its end and loses its input", async () => {
      const failed = storedEnd({
        state: "failed",
        startedMs: null,
        firstTokenMs: null,
        finishReason: null,
        tokensIn: null,
        replicaId: null,
        error: { code: "WORKER_RESET", message: "the engine died" },
      });
      store().write([admit(1), admit(2)]);
      store().write([{ kind: "task_ended", taskId: uuidOf(1), end: failed }]);
      const expected = afterEnd(storedTask(1), failed);
      expect(store().find(uuidOf(1))).toEqual(expected);
      expect(store().find(uuidOf(2))).toEqual(storedTask(2));
      const { live } = await restart();
      expect(live.map(({ ordinal }) => ordinal)).toEqual([2]);
      expect(store().find(uuidOf(1))).toEqual(expected);
      expect(store().list(everyEnded())).toEqual([expected]);
    });

    test("one batch may admit and end a task, or admit one that has ended", () => {
      store().write([admit(1), end(1)]);
      store().write([{ kind: "task_admitted", task: { ...storedTask(2), ended: storedEnd() } }]);
      expect(store().list(everyEnded())).toEqual([
        afterEnd(storedTask(2), storedEnd()),
        afterEnd(storedTask(1), storedEnd()),
      ]);
    });

    test("sessions and allowances are replaced, removed and come back", async () => {
      store().write([
        { kind: "session_saved", session: storedSession(1) },
        { kind: "session_saved", session: storedSession(2) },
        { kind: "allowance_saved", allowance: storedAllowance("a") },
        { kind: "allowance_saved", allowance: storedAllowance("b") },
      ]);
      store().write([
        { kind: "session_saved", session: storedSession(1, { turns: 5 }) },
        { kind: "session_removed", sessionId: storedSession(2).sessionId },
        { kind: "session_removed", sessionId: uuidOf(77) },
        { kind: "allowance_saved", allowance: storedAllowance("a", 99) },
      ]);
      const { sessions, allowances } = await restart();
      expect(sessions).toEqual([storedSession(1, { turns: 5 })]);
      expect([...allowances].sort((x, y) => x.keyId.localeCompare(y.keyId))).toEqual([
        storedAllowance("a", 99),
        storedAllowance("b"),
      ]);
    });

    test("a batch that contradicts what is stored is a mistake, and nothing of it is kept", async () => {
      store().write([admit(1), admit(2), end(2)]);
      const wrong: StoreOp[] = [
        admit(1),
        { kind: "task_admitted", task: { ...storedTask(9), ordinal: 1 } },
        end(7),
        end(2),
      ];
      for (const op of wrong) {
        const batch: StoreOp[] = [admit(50), { kind: "session_saved", session: storedSession(1) }, op];
        expect(assertionOf(() => store().write(batch))).toBe("assertion");
      }
      store().write([admit(3)]);
      const { live, sessions } = await restart();
      expect(live.map(({ ordinal }) => ordinal)).toEqual([1, 3]);
      expect(sessions).toEqual([]);
    });

    test("recovery happens once, and before the first write", () => {
      store().recover();
      expect(assertionOf(() => store().recover())).toBe("assertion");
    });

    test("an empty batch is nothing, and syncs come one for all", async () => {
      store().write([]);
      await store().synced();
      store().write([admit(1)]);
      const first = store().synced();
      store().write([admit(2)]);
      await Promise.all([first, store().synced(), store().synced()]);
      await store().synced();
      expect((await restart()).live).toHaveLength(2);
    });

    test("lists: every filter and all of them together, newest first, page by page", () => {
      const states: TerminalState[] = ["done", "failed", "canceled"];
      const all = Array.from({ length: 60 }, (_, at) => at + 1);
      const keyOf = (n: number) => `key-${n % 2}`;
      // A session belongs to one key: every sixth task, all of key-0 and key-1 by halves.
      const sessionOf = (n: number) => (n % 5 === 0 ? uuidOf(500 + (n % 2)) : null);
      const stateOf = (n: number) => states[n % 3] ?? "done";
      store().write(all.map((n) => admit(n, { keyId: keyOf(n), sessionId: sessionOf(n) })));
      // Number 60 stays live: lists do not show it.
      store().write(all.slice(0, -1).map((n) => end(n, { state: stateOf(n) })));
      for (const keyId of [null, "key-0", "key-1", "nobody"])
        for (const state of [null, ...states])
          for (const sessionId of [null, uuidOf(500), uuidOf(501)])
            for (const before of [null, 31])
              for (const limit of [4, 100]) {
                const expected = all
                  .slice(0, -1)
                  .filter((n) => keyId === null || keyOf(n) === keyId)
                  .filter((n) => state === null || stateOf(n) === state)
                  .filter((n) => sessionId === null || sessionOf(n) === sessionId)
                  .filter((n) => before === null || n < before)
                  .reverse()
                  .slice(0, limit);
                expect(listed({ keyId, state, sessionId, before, limit })).toEqual(expected);
              }
    });

    test("pruning forgets the oldest ends, a bounded number at a time, never what is live", async () => {
      store().write([1, 2, 3, 4, 5].map((n) => admit(n)));
      store().write([end(5, { finishedMs: 10 }), end(2, { finishedMs: 20 }), end(3, { finishedMs: 30 })]);
      expect(store().prune(30, 1)).toBe(1);
      expect(store().find(uuidOf(5))).toBeNull();
      expect(store().prune(30, 10)).toBe(1);
      expect(store().prune(30, 10)).toBe(0);
      expect(listed()).toEqual([3]);
      const { ordinal, live } = await restart();
      // Number 5 was the newest: its ordinal is not given again.
      expect(ordinal).toBe(5);
      expect(live.map((task) => task.ordinal)).toEqual([1, 4]);
    });

    test("transcripts come with the end of their task, wait in order, and go when they are told to", async () => {
      store().write([1, 2, 3, 4].map((n) => admit(n)));
      store().write([left(2), left(1, { keyId: "alice" })]);
      // Alone in its batch, too.
      store().write([left(3)]);
      store().write([end(4)]);
      expect(store().find(uuidOf(1))?.ended?.artifactId).toBe(newTranscript(1).artifactId);
      expect(store().find(uuidOf(4))?.ended?.artifactId).toBeNull();
      await restart();
      const waiting = store().transcripts(10);
      expect(waiting.map(({ ordinal, ...transcript }) => transcript)).toEqual([
        newTranscript(2),
        newTranscript(1, { keyId: "alice" }),
        newTranscript(3),
      ]);
      expect(store().transcripts(2)).toEqual(waiting.slice(0, 2));
      const chars = waiting.reduce((sum, { text }) => sum + (text ?? "").length, 0);
      expect(store().transcriptTotals()).toEqual({ count: 3, chars });
      const [first, second, third] = waiting;
      if (first === undefined || second === undefined || third === undefined) throw new Error("three wait");
      expect(store().findTranscript(second.artifactId, null)).toEqual(second);
      expect(store().findTranscript(second.artifactId, "alice")).toEqual(second);
      expect(store().findTranscript(second.artifactId, "bob")).toBeNull();
      store().removeTranscripts([first.ordinal, third.ordinal, 999]);
      store().removeTranscripts([]);
      expect(store().findTranscript(first.artifactId, null)).toBeNull();
      await restart();
      expect(store().transcripts(10)).toEqual([second]);
      store().removeTranscripts([second.ordinal]);
      expect(store().transcriptTotals()).toEqual({ count: 0, chars: 0 });
      // A number is not given twice: one that is moved late must not take another's place.
      store().write([admit(5), left(5)]);
      expect(store().transcripts(1)[0]?.ordinal).toBeGreaterThan(third.ordinal);
    });

    test("a transcript is stored with its end or not at all", async () => {
      store().write([admit(1)]);
      expect(assertionOf(() => store().write([left(1), end(7)]))).toBe("assertion");
      expect(store().transcripts(10)).toEqual([]);
      await restart();
      expect(store().find(uuidOf(1))?.ended).toBeNull();
    });

    test("after close nothing goes in, and closing twice is closing once", async () => {
      store().write([admit(1)]);
      await store().close();
      await store().close();
      expect(assertionOf(() => store().write([admit(2)]))).toBe("assertion");
      expect((await restart()).live).toHaveLength(1);
    });

    test("random batches, restarts and prunings leave what a plain model has", async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 30 }), async (steps) => {
          let real = await factory.open();
          try {
            const model = new MemoryTaskStore();
            const world = new World();
            for (const { action, picks } of steps)
              if (action === "restart") {
                real = await real.reopen();
              } else if (action === "prune") {
                expect(real.store.prune(world.nowMs - 5, 3)).toBe(model.prune(world.nowMs - 5, 3));
              } else {
                const batch = picks.map((pick) => world.op(pick));
                real.store.write(batch);
                model.write(batch);
              }
            for (const id of world.ids) expect(real.store.find(id)).toEqual(model.find(id));
            expect(real.store.list(everyEnded())).toEqual(model.list(everyEnded()));
            expect(textsOf(real.store)).toEqual(textsOf(model));
            real = await real.reopen();
            const found = real.store.recover();
            const expected = model.reopen("kill").recover();
            expect({ ...found, sessions: bySession(found), allowances: byKey(found) }).toEqual({
              ...expected,
              sessions: bySession(expected),
              allowances: byKey(expected),
            });
          } finally {
            await real.dispose();
          }
        }),
        { numRuns: 25 },
      );
    });
  });
}

const textsOf = (store: TaskStore) =>
  store.transcripts(100).map(({ artifactId, text }) => [artifactId, text]);

type Found = ReturnType<TaskStore["recover"]>;
const bySession = ({ sessions }: Found) => [...sessions].sort((a, b) => (a.sessionId < b.sessionId ? -1 : 1));
const byKey = ({ allowances }: Found) => [...allowances].sort((a, b) => (a.keyId < b.keyId ? -1 : 1));

const step = fc.record({
  action: fc.constantFrom("write", "write", "write", "restart", "prune"),
  picks: fc.array(fc.record({ kind: fc.nat(6), which: fc.nat(1000), text: fc.string({ unit: "binary" }) }), {
    maxLength: 6,
  }),
});

/** Turns random numbers into operations that agree with what came before. */
class World {
  readonly ids: string[] = [];
  readonly #live: number[] = [];
  #ordinal = 0;
  nowMs = 100;

  op({ kind, which, text }: { kind: number; which: number; text: string }): StoreOp {
    this.nowMs++;
    const live = this.#live[which % Math.max(1, this.#live.length)];
    if (kind === 0) return { kind: "session_saved", session: storedSession(which % 4, { turns: which }) };
    if (kind === 1) return { kind: "session_removed", sessionId: storedSession(which % 4).sessionId };
    if (kind === 2) return { kind: "allowance_saved", allowance: storedAllowance(`key-${which % 3}`, which) };
    if (kind > 4 && live !== undefined) {
      this.#live.splice(this.#live.indexOf(live), 1);
      if (kind === 6) return left(live, { text: text.toWellFormed() });
      return end(live, { finishedMs: this.nowMs, error: { code: "INTERNAL", message: text } });
    }
    this.#ordinal += 1 + (which % 3);
    this.#live.push(this.#ordinal);
    this.ids.push(uuidOf(this.#ordinal));
    return admit(this.#ordinal, { input: { kind: "prompt", prompt: text }, metadata: { label: text } });
  }
}
