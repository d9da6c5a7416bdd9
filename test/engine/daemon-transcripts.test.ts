/** What a transcript says of a real engine: the build, and the model's file by its digest once that was read. */
import { afterEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import type { TaskAcceptedBody, TaskViewBody } from "../../src/api/schema/tasks.ts";
import { endDaemons, enginePool, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";

afterEach(endDaemons);

interface Attempt {
  readonly engine: string;
  readonly engine_version: string;
  readonly model: string;
  readonly model_digest: string | null;
}

test("a transcript names the digest of the model's file", async () => {
  const model = testModel("demo");
  const daemon = await startDaemon({
    settings: { pools: [enginePool("chat", model, { slots: 1, ctx: 512 })] },
  });
  const headers = { "x-api-key": daemon.key, "content-type": "application/json" };
  const attempt = async (): Promise<Attempt | undefined> => {
    const body = JSON.stringify({ prompt: "The harbour", max_tokens: 2 });
    const answer = await fetch(`${daemon.url}/v1/tasks`, { method: "POST", headers, body });
    const { task_id } = (await answer.json()) as TaskAcceptedBody;
    const ended = await waitFor(
      async () => {
        const view = await daemon.json<TaskViewBody>(`/v1/tasks/${task_id}`);
        return view.state === "done" && view;
      },
      20_000,
      "the task is done",
    );
    const trace = await daemon.json<{ content: { attempts: Attempt[] } }>(
      `/v1/artifacts/${ended.artifact_id}`,
    );
    return trace.content.attempts[0];
  };
  // The file is read beside the work: the first ones may not know it yet.
  const named = await waitFor(
    async () => {
      const told = await attempt();
      return told?.model_digest != null && told;
    },
    30_000,
    "a transcript names the digest",
  );
  expect(named).toMatchObject({ engine: "llamacpp", model: model.split("/").at(-1) });
  expect(named.model_digest).toBe(new Bun.CryptoHasher("sha256").update(readFileSync(model)).digest("hex"));
});
