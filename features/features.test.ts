/**
 * The behaviour of the daemon as its users see it: every scenario of the feature files in this folder is a test,
 * over HTTP, against a whole daemon of its own.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import "./steps/answer.steps.ts";
import "./steps/artifact.steps.ts";
import "./steps/catalog.steps.ts";
import "./steps/config.steps.ts";
import "./steps/daemon.steps.ts";
import "./steps/llama-server.steps.ts";
import "./steps/memory.steps.ts";
import "./steps/pool-control.steps.ts";
import "./steps/remote.steps.ts";
import "./steps/request.steps.ts";
import "./steps/restart.steps.ts";
import "./steps/session.steps.ts";
import "./steps/stream.steps.ts";
import "./steps/telemetry.steps.ts";
import "./steps/transcript.steps.ts";
import { requirements } from "./support/contract-check.ts";
import { library } from "./support/steps.ts";
import { World } from "./support/world.ts";

const scenarioMs = 20_000;

const files = readdirSync(import.meta.dir)
  .filter((name) => name.endsWith(".feature"))
  .sort();
const features = files.map((file) => library.load(join(import.meta.dir, file), file));

for (const { name, scenarios } of features) {
  describe(name, () => {
    for (const scenario of scenarios) {
      test(
        scenario.name,
        async () => {
          const world = new World();
          try {
            await scenario.run(world);
          } finally {
            await world.close();
          }
        },
        scenarioMs,
      );
    }
  });
}

describe("the feature files", () => {
  const tags = new Set(features.flatMap(({ scenarios }) => scenarios.flatMap((scenario) => scenario.tags)));

  test("are there", () => {
    expect(files.length).toBeGreaterThan(0);
  });
  test("use every step that is defined", () => {
    expect(library.unused()).toEqual([]);
  });
  test("cover every requirement of the contracts", () => {
    expect([...requirements].filter((id) => !tags.has(`@${id}`))).toEqual([]);
  });
  test("have a requirement for each scenario", () => {
    const bare = features.flatMap(({ name, scenarios }) =>
      scenarios.filter(({ tags }) => tags.length === 0).map((scenario) => `${name}: ${scenario.name}`),
    );
    expect(bare).toEqual([]);
  });
});
