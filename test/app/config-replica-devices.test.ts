/** pools[].devices and pools[].replica_devices: which cards which replica is told to use. */
import { describe, expect, test } from "bun:test";
import { compiled, problemsOf } from "../support/config-files.ts";

const pool = (more: string) => `pools: [{ id: chat, engine: mock, model: mock:words, ${more} }]`;

test("a list for each replica; together they are the pool's devices", () => {
  const { pools } = compiled(pool("replicas: 2, replica_devices: [[gpu-1, gpu-0], [gpu-1, host]]"));
  expect(pools[0]).toMatchObject({
    devices: ["gpu-1", "gpu-0", "host"],
    replicaDevices: [
      ["gpu-1", "gpu-0"],
      ["gpu-1", "host"],
    ],
  });
  expect(compiled(pool("devices: [gpu-0]")).pools[0]).not.toHaveProperty("replicaDevices");
});

describe("what no replica could be told", () => {
  const table: [more: string, part: string][] = [
    ["replicas: 2, devices: [gpu-0, gpu-1, gpu-2]", "devices: found 3 cards for 2 replicas"],
    ["replicas: 2, replica_devices: [[gpu-0]]", "replica_devices: found 1 lists for 2 replicas"],
    ["devices: [gpu-0, CUDA1]", "devices: found gpu-0, CUDA1, expected only gpu-0, gpu-1"],
    [
      "replicas: 2, devices: [gpu-0, gpu-1], replica_devices: [[gpu-0], [gpu-3]]",
      "replica_devices[1]: found gpu-3, which devices of the pool does not name",
    ],
    ["replica_devices: [[]]", "replica_devices[0]"],
    ["replica_devices: [[gpu-0, gpu-0]]", "replica_devices[0]"],
    ["replica_devices: [[gpu0]]", "replica_devices[0][0]"],
  ];
  test.each(table)("%s", (more, part) => {
    const found = problemsOf(pool(more));
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
  });

  test("a server elsewhere has its own", () => {
    const text =
      'pools: [{ id: far, engine: openai, model: m, base_url: "http://gpu:8000/v1", replica_devices: [[gpu-0]] }]';
    expect(problemsOf(text).join()).toContain("replica_devices: engine openai loads nothing here");
  });
});
