/** Inputs of waiting tasks are bounded in memory: what is beyond the bound is read from the store when it starts. */
import { afterEach, expect, test } from "bun:test";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { mockPool, Rig, replay } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const prompt = "Tell me of the river and of all who live on it";
const pools = [mockPool({ queueCapacity: 64 })];

async function accept(text: string): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec({ input: { kind: "prompt", prompt: text } }));
  await rig.clock.advance(0);
  return (await submitted).record;
}
const promptOf = ({ spec }: TaskRecord): string => (spec.input.kind === "prompt" ? spec.input.prompt : "");

test("a waiting input beyond the bound is on disk, and the task says what it says with it in memory", async () => {
  rig = await new Rig({ pools }).start();
  const inMemory = [await accept(prompt), await accept(prompt), await accept(prompt)];
  await rig.clock.advance(5_000);
  const said = inMemory.map((record) =>
    replay(record)
      .map(({ data }) => data.t)
      .join(""),
  );
  await rig.stop();

  rig = await new Rig({ pools, inputBytesMax: 3 * prompt.length }).start();
  const records = [await accept(prompt), await accept(prompt), await accept(prompt), await accept(prompt)];
  // One runs, one waits within the bound, two beyond it.
  expect(records.map(promptOf)).toEqual([prompt, prompt, "", ""]);
  const canceled = records.pop();
  void rig.dispatcher.cancel(canceled?.spec.taskId ?? "", "client");
  await rig.clock.advance(5_000);
  expect(records.map(({ state }) => state)).toEqual(["done", "done", "done"]);
  expect(
    records.map((record) =>
      replay(record)
        .map(({ data }) => data.t)
        .join(""),
    ),
  ).toEqual(said);
  // All places are free again.
  const again = [await accept(prompt), await accept(prompt), await accept(prompt)];
  expect(again.map(promptOf)).toEqual([prompt, prompt, ""]);
});
