/** The table of task states, and the small shapes that tasks are made of: ids, sampler profiles. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { isAssertion } from "../../src/domain/assert.ts";
import { isCorrelationId, isPoolId, uuidPattern } from "../../src/domain/ids.ts";
import { samplerProfiles } from "../../src/domain/sampler-profile.ts";
import { isTerminal, type TaskState, taskStates, transition } from "../../src/domain/task.ts";

/** The table of src/domain/task.ts, written down a second time on purpose. */
const allowed = new Set([
  "queued>running",
  "queued>failed",
  "queued>canceled",
  "running>suspended",
  "running>done",
  "running>failed",
  "running>canceled",
  "suspended>queued",
  "suspended>failed",
  "suspended>canceled",
]);

describe("the states of a task", () => {
  for (const from of taskStates)
    for (const to of taskStates) {
      const legal = allowed.has(`${from}>${to}`);
      test(`${from} -> ${to} ${legal ? "is a transition" : "is a mistake"}`, () => {
        if (legal) expect(transition(from, to)).toBe(to);
        else {
          let thrown: unknown = null;
          try {
            transition(from, to);
          } catch (error) {
            thrown = error;
          }
          expect(isAssertion(thrown)).toBe(true);
        }
      });
    }

  test("end in exactly three of them", () => {
    expect(taskStates.filter(isTerminal)).toEqual(["done", "failed", "canceled"]);
  });

  test("never leave a terminal one, on any walk", () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom<TaskState>(...taskStates), { maxLength: 30 }), (walk) => {
        let state: TaskState = "queued";
        let ends = 0;
        for (const to of walk) {
          if (!allowed.has(`${state}>${to}`)) continue;
          state = transition(state, to);
          if (isTerminal(state)) ends++;
        }
        expect(ends).toBeLessThanOrEqual(1);
      }),
    );
  });
});

describe("ids", () => {
  const good = "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e";
  const isUuid = (text: string): boolean => new RegExp(uuidPattern).test(text);
  const rows: [is: (text: string) => boolean, text: string, expected: boolean][] = [
    [isUuid, good, true],
    [isUuid, good.toUpperCase(), true],
    [isUuid, `${good}\n`, false],
    [isUuid, good.replaceAll("-", ""), false],
    [isUuid, "", false],
    [isPoolId, "a", true],
    [isPoolId, "qwen3-8b.q4_k", true],
    [isPoolId, "-a", false],
    [isPoolId, "a-", false],
    [isPoolId, "A", false],
    [isPoolId, "", false],
    [isPoolId, "a".repeat(64), true],
    [isPoolId, "a".repeat(65), false],
    [isPoolId, "a\n", false],
    [isPoolId, "a/../b", false],
    [isCorrelationId, "Req:1._-", true],
    [isCorrelationId, "a".repeat(128), true],
    [isCorrelationId, "a".repeat(129), false],
    [isCorrelationId, "", false],
    [isCorrelationId, "a b", false],
    [isCorrelationId, "a\r\nx: y", false],
  ];
  for (const [is, text, expected] of rows)
    test(`${is.name} ${JSON.stringify(text.slice(0, 40))} is ${expected}`, () => {
      expect(is(text)).toBe(expected);
    });
});

test("sampler profile v1 is what it was when it was released, for ever", () => {
  expect(samplerProfiles.v1).toEqual({
    temperature: 0.8,
    topP: 0.95,
    topK: 40,
    minP: 0.05,
    repeatPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    stop: [],
    grammar: null,
    jsonSchema: null,
  });
});
