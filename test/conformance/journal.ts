/**
 * What every journal owes its callers (ports/journal.ts), as one suite over any adapter. journal.test.ts runs it over
 * the fake, over a file system in memory and over a folder.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { isAssertion } from "../../src/domain/assert.ts";
import { isFrameKind, type Journal, type JournalRecord } from "../../src/ports/journal.ts";
import { journalRecord, journalToken, plain } from "../support/journal-records.ts";

export interface JournalUnderTest {
  readonly journal: Journal;
  /** Another journal over what this one has flushed: as after a `kill -9`, or after a close. */
  reopen(how: "kill" | "close"): Promise<JournalUnderTest>;
  /** Gives everything back. */
  dispose(): Promise<void>;
}

export interface JournalFactory {
  readonly name: string;
  open(): Promise<JournalUnderTest>;
}

interface Step {
  readonly do: "frame" | "attempt" | "begin_again" | "forget" | "flush" | "compact" | "kill" | "close";
  /** Of the first four. */
  readonly task?: number;
}

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 30, arbitrary: fc.record({ do: fc.constant("frame" as const), task: fc.nat(4) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom("attempt" as const, "begin_again" as const, "forget" as const),
      task: fc.nat(4),
    }),
  },
  { weight: 8, arbitrary: fc.constant({ do: "flush" as const }) },
  { weight: 3, arbitrary: fc.constant({ do: "compact" as const }) },
  { weight: 1, arbitrary: fc.constantFrom({ do: "kill" as const }, { do: "close" as const }) },
);

const assertionOf = (work: () => unknown): unknown => {
  try {
    work();
  } catch (error) {
    return isAssertion(error) ? "assertion" : error;
  }
  return "nothing";
};

export function journalConformance(factory: JournalFactory): void {
  describe(`journal conformance: ${factory.name}`, () => {
    let under: JournalUnderTest;
    beforeEach(async () => {
      under = await factory.open();
    });
    afterEach(() => under.dispose());
    const journal = () => under.journal;
    const restart = async (how: "kill" | "close" = "kill") => {
      under = await under.reopen(how);
      return under.journal.recover();
    };

    test("a new journal is empty", () => {
      const { tasks, damage } = journal().recover();
      expect([tasks.size, damage.length]).toEqual([0, 0]);
      journal().flush();
    });

    test("what was written comes back byte for byte, what was not does not", async () => {
      journal().recover();
      const records = [
        journalRecord("started", "a", 0),
        ...Array.from({ length: 300 }, (_, index) => journalToken("a", index + 1)),
        journalRecord("metrics", "a", 301),
        journalRecord("attempt", "a", 302),
        journalToken("a", 302),
      ];
      for (const record of records) journal().append("a", record);
      journal().flush();
      const late = journalToken("a", 303);
      if (journal().append("a", late)) records.push(late);
      const { tasks, damage } = await restart();
      expect(damage).toEqual([]);
      expect(tasks.get("a")?.damaged).toBe(false);
      expect(plain(tasks.get("a")?.records ?? [])).toEqual(plain(records));
      journal().append("a", journalToken("a", records.length - 1));
      journal().flush();
      expect((await restart("close")).tasks.get("a")?.records).toHaveLength(records.length + 1);
    });

    test("no ids and unknown ids are two things", async () => {
      journal().recover();
      const bytes = new Uint8Array([1, 2, 3]);
      journal().append("a", { kind: "token", seq: 0, bytes, tokenIds: [] });
      journal().append("a", { kind: "token", seq: 1, bytes });
      journal().append("a", { kind: "token", seq: 2, bytes, tokenIds: [0, 127, 128, 2 ** 31, 2 ** 32 - 1] });
      journal().flush();
      const records = (await restart()).tasks.get("a")?.records ?? [];
      expect(records.map(({ tokenIds }) => tokenIds)).toEqual([
        [],
        undefined,
        [0, 127, 128, 2 ** 31, 2 ** 32 - 1],
      ]);
    });

    test("what began again has nothing of before", async () => {
      journal().recover();
      for (let seq = 0; seq < 5; seq++) journal().append("a", journalToken("a", seq));
      journal().flush();
      journal().append("a", journalRecord("begin_again", "a", 0));
      journal().append("a", journalToken("a", 0, 1));
      journal().flush();
      expect(plain((await restart()).tasks.get("a")?.records ?? [])).toEqual(
        plain([journalRecord("begin_again", "a", 0), journalToken("a", 0, 1)]),
      );
    });

    test("a beginning that was not flushed leaves what was there", async () => {
      journal().recover();
      journal().append("a", journalToken("a", 0));
      journal().flush();
      const again = journalRecord("begin_again", "a", 0);
      const written = journal().append("a", again);
      await journal().compact();
      expect(plain((await restart()).tasks.get("a")?.records ?? [])).toEqual(
        plain([written ? again : journalToken("a", 0)]),
      );
    });

    test("a forgotten id may be used again", async () => {
      journal().recover();
      for (let seq = 0; seq < 5; seq++) journal().append("a", journalToken("a", seq));
      journal().flush();
      journal().forget("a");
      journal().forget("never there");
      journal().append("a", journalToken("a", 0, 7));
      journal().flush();
      expect(plain((await restart()).tasks.get("a")?.records ?? [])).toEqual(
        plain([journalToken("a", 0, 7)]),
      );
    });

    test("a gap in the numbers, and what comes before recovery, are the caller's mistakes", () => {
      expect(assertionOf(() => journal().append("a", journalToken("a", 0)))).toBe("assertion");
      journal().recover();
      expect(assertionOf(() => journal().append("a", journalToken("a", 1)))).toBe("assertion");
      journal().append("a", journalToken("a", 0));
      expect(assertionOf(() => journal().append("a", journalToken("a", 0)))).toBe("assertion");
      expect(assertionOf(() => journal().append("a", journalToken("a", 2)))).toBe("assertion");
      expect(assertionOf(() => journal().recover())).toBe("assertion");
    });

    test("whatever is done in whatever order: what was flushed of tasks not forgotten is there", async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(step, { maxLength: 120 }), async (steps) => {
          await under.dispose();
          under = await factory.open();
          journal().recover();
          let flushed = new Map<string, JournalRecord[]>();
          let collected = new Map<string, JournalRecord[]>();
          const copy = (of: typeof flushed) =>
            new Map([...of].map(([taskId, records]) => [taskId, [...records]]));
          const put = (taskId: string, record: JournalRecord) => {
            const written = journal().append(taskId, record);
            const before = record.kind === "begin_again" ? [] : (collected.get(taskId) ?? []);
            collected.set(taskId, [...before, record]);
            // And all that was collected before it.
            if (written) flushed = copy(collected);
          };
          for (const [round, one] of steps.entries()) {
            if (one.do === "flush") {
              journal().flush();
              flushed = copy(collected);
            } else if (one.do === "compact") await journal().compact();
            else if (one.do === "kill" || one.do === "close") {
              const { tasks, damage } = await restart(one.do);
              expect(damage).toEqual([]);
              for (const [taskId, records] of flushed) {
                expect(tasks.get(taskId)?.damaged).toBe(false);
                expect(plain(tasks.get(taskId)?.records ?? [])).toEqual(plain(records));
              }
              for (const taskId of tasks.keys()) if (!flushed.has(taskId)) journal().forget(taskId);
              collected = copy(flushed);
            } else {
              const taskId = `task ${one.task}`;
              const frames = (collected.get(taskId) ?? []).filter(({ kind }) => isFrameKind(kind)).length;
              if (one.do === "frame") put(taskId, journalToken(taskId, frames, round));
              else if (one.do === "attempt") put(taskId, journalRecord("attempt", taskId, frames));
              else if (one.do === "begin_again") put(taskId, journalRecord("begin_again", taskId, 0));
              else {
                journal().forget(taskId);
                collected.delete(taskId);
                flushed.delete(taskId);
              }
            }
          }
        }),
        { numRuns: 60 },
      );
    });
  });
}
