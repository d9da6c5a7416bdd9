/** Which devices a replica gets and what its engine is told of them (ORCHD-GPU-3, ORCHD-GPU-4): tables. */
import { describe, expect, test } from "bun:test";
import {
  type Card,
  type DevicePlan,
  type DevicePlanInput,
  dealingProblem,
  devicesOfReplica,
  mixesNames,
  planDevices,
  replicaNumberOf,
} from "../../src/domain/device-plan.ts";

const GiB = 2 ** 30;

describe("dealing cards out", () => {
  const table: [devices: string[], each: string[][] | null, replicas: number, dealt: string[][]][] = [
    [[], null, 2, [[], []]],
    [["gpu-0", "gpu-1"], null, 1, [["gpu-0", "gpu-1"]]],
    [["gpu-1", "gpu-0"], null, 2, [["gpu-1"], ["gpu-0"]]],
    [
      ["gpu-0", "gpu-1", "gpu-2", "gpu-3"],
      null,
      2,
      [
        ["gpu-0", "gpu-1"],
        ["gpu-2", "gpu-3"],
      ],
    ],
    [["gpu-0", "gpu-1"], null, 3, [["gpu-0"], ["gpu-1"], ["gpu-0"]]],
    [
      ["gpu-0", "gpu-1", "host"],
      null,
      2,
      [
        ["gpu-0", "host"],
        ["gpu-1", "host"],
      ],
    ],
    [["host"], null, 3, [["host"], ["host"], ["host"]]],
    [["CUDA1", "CUDA0"], null, 2, [["CUDA1"], ["CUDA0"]]],
    [["gpu-0", "gpu-1"], [["gpu-0", "gpu-1"], ["gpu-1"]], 2, [["gpu-0", "gpu-1"], ["gpu-1"]]],
  ];
  test.each(table)("%j by %j among %d: %j", (devices, replicaDevices, replicas, dealt) => {
    const pool = { devices, replicaDevices, replicas };
    expect(dealingProblem(pool)).toBeNull();
    expect(dealt.map((_, at) => devicesOfReplica(pool, at))).toEqual(dealt);
  });

  test("what cannot be dealt out says what to do", () => {
    const three = { devices: ["gpu-0", "gpu-1", "gpu-2"], replicas: 2 };
    expect(dealingProblem(three)).toMatch(/3 cards for 2 replicas.*replica_devices/);
    expect(dealingProblem({ ...three, replicaDevices: [["gpu-0"], ["gpu-1", "gpu-2"]] })).toBeNull();
    expect(dealingProblem({ ...three, replicaDevices: [["gpu-0"]] })).toMatch(/1 lists for 2 replicas/);
  });

  test("a replica's number is the end of its id, also of a reload's second set", () => {
    expect(["chat-0", "chat-12", "my-2-pool-3b"].map(replicaNumberOf)).toEqual([0, 12, 3]);
  });

  test("cards and an engine's own names do not go together", () => {
    expect([["gpu-0", "CUDA1"], ["gpu-0", "host"], ["CUDA0", "RPC1", "host"], []].map(mixesNames)).toEqual([
      true,
      false,
      false,
      false,
    ]);
  });
});

const card = (number: number, more: Partial<Card> = {}): Card => ({
  name: `gpu-${number}`,
  vendor: "nvidia",
  number,
  uuid: null,
  model: "NVIDIA GeForce RTX 4090",
  totalBytes: 24 * GiB,
  freeBytes: 20 * GiB,
  ...more,
});
const amd = (name: string, number: number, uuid: string | null = null): Card =>
  card(number, { name, vendor: "amd", uuid });
const plan = (devices: string[], cards: Card[], more: Partial<DevicePlanInput> = {}): DevicePlan => {
  const planned = planDevices({ devices, cards: () => cards, args: [], modelBytes: null, ...more });
  if ("problem" in planned) throw new Error(planned.problem);
  return planned;
};

describe("what the engine is told", () => {
  test("nothing where nothing is named, and nobody asks the cards", () => {
    const cards = () => {
      throw new Error("nobody asks");
    };
    expect(planDevices({ devices: [], cards, args: [], modelBytes: 1 })).toEqual({
      env: {},
      args: [],
      hostOnly: false,
    });
  });

  test("the cards of a mask, in its order; the other vendor's are hidden", () => {
    expect(plan(["gpu-1", "gpu-0"], [card(0), card(1)])).toEqual({
      env: {
        CUDA_DEVICE_ORDER: "PCI_BUS_ID",
        CUDA_VISIBLE_DEVICES: "1,0",
        ROCR_VISIBLE_DEVICES: "",
        HIP_VISIBLE_DEVICES: "-1",
      },
      args: [],
      hostOnly: false,
    });
    expect(plan(["gpu-2", "host"], [card(0), card(1), amd("gpu-2", 0), amd("gpu-3", 1)]).env).toMatchObject({
      CUDA_VISIBLE_DEVICES: "",
      ROCR_VISIBLE_DEVICES: "0",
      HIP_VISIBLE_DEVICES: "0",
    });
    expect(plan(["gpu-3", "gpu-2"], [amd("gpu-2", 0), amd("gpu-3", 1)]).env).toMatchObject({
      ROCR_VISIBLE_DEVICES: "1,0",
      HIP_VISIBLE_DEVICES: "0,1",
    });
  });

  test("by UUID where all of them have one: a runtime may count fewer cards than the driver", () => {
    const uuid = "GPU-8f3e2a10-7c4b-11ee-b962-0242ac120002";
    const other = "GPU-11112222-3333-4444-5555-666677778888";
    const cards = [card(0, { uuid }), card(1, { uuid: other }), card(2, { uuid: "0000:65:00.0" })];
    const seen = (...devices: string[]) => plan(devices, cards).env.CUDA_VISIBLE_DEVICES;
    expect(seen("gpu-1", "gpu-0")).toBe(`${other},${uuid}`);
    expect(seen("gpu-0", "gpu-2")).toBe("0,2");
    const radeons = [amd("gpu-0", 0, "7ae87fe1cd3a9f21"), amd("gpu-1", 1, "0000:03:00.0")];
    expect(plan(["gpu-0"], radeons).env.ROCR_VISIBLE_DEVICES).toBe("GPU-7ae87fe1cd3a9f21");
    expect(plan(["gpu-1"], radeons).env.ROCR_VISIBLE_DEVICES).toBe("1");
  });

  test("host alone: no card of any kind, whatever the build", () => {
    expect(plan(["host"], [])).toEqual({
      env: {
        CUDA_DEVICE_ORDER: "PCI_BUS_ID",
        CUDA_VISIBLE_DEVICES: "",
        ROCR_VISIBLE_DEVICES: "",
        HIP_VISIBLE_DEVICES: "-1",
        GGML_VK_VISIBLE_DEVICES: "",
      },
      args: ["--device", "none"],
      hostOnly: true,
    });
  });

  test("an engine's own names go to the engine", () => {
    expect(plan(["RPC1", "RPC0"], [])).toEqual({
      env: { CUDA_DEVICE_ORDER: "PCI_BUS_ID" },
      args: ["--device", "RPC1,RPC0"],
      hostOnly: false,
    });
  });

  test.each([
    ["host", ["--device", "CUDA0"]],
    ["CUDA0", ["--device=CUDA1"]],
    ["Vulkan0", ["-dev", "Vulkan1"]],
  ])("what the pool's flags say wins: %s with %j", (name, args) => {
    expect(plan([name], [], { args }).args).toEqual([]);
  });

  test("a card that is not there: the sentence says which are", () => {
    const problem = (devices: string[], cards: Card[]) =>
      planDevices({ devices, cards: () => cards, args: [], modelBytes: null });
    expect(problem(["gpu-0", "gpu-4", "gpu-5"], [card(0), card(1, { model: null })])).toEqual({
      problem:
        "there is no gpu-4, gpu-5 here: there are gpu-0 (NVIDIA GeForce RTX 4090, 24 GiB), gpu-1 (24 GiB) and host",
    });
    expect(problem(["gpu-0"], [])).toMatchObject({ problem: expect.stringMatching(/is its driver loaded/) });
  });
});

describe("a model over several cards", () => {
  const small = card(0, { totalBytes: 12 * GiB, freeBytes: 10 * GiB });
  const large = card(1);
  const share = ["--tensor-split", `${20 * 1024},${10 * 1024}`];
  const cases: [
    name: string,
    devices: string[],
    cards: Card[],
    more: Partial<DevicePlanInput>,
    args: string[],
  ][] = [
    [
      "of different sizes: by what is free, in the mask's order",
      ["gpu-1", "gpu-0"],
      [small, large],
      {},
      share,
    ],
    ["of one size: the engine's own", ["gpu-1", "gpu-2"], [large, card(2, { freeBytes: GiB })], {}, []],
    [
      "of one size but for what the driver keeps",
      ["gpu-1", "gpu-2"],
      [large, card(2, { totalBytes: 23.5 * GiB })],
      {},
      [],
    ],
    ["one card", ["gpu-0"], [small, large], {}, []],
    [
      "a size that is not told",
      ["gpu-0", "gpu-1"],
      [card(0, { totalBytes: null, freeBytes: null }), large],
      {},
      [],
    ],
    [
      "free is not told: by the whole",
      ["gpu-0", "gpu-1"],
      [
        { ...small, freeBytes: null },
        { ...large, freeBytes: null },
      ],
      {},
      ["--tensor-split", `${12 * 1024},${24 * 1024}`],
    ],
    [
      "a model that may not fit is left to the engine, which puts the rest on the host",
      ["gpu-0", "gpu-1"],
      [small, large],
      { modelBytes: 16 * GiB },
      [],
    ],
    ["a model of unknown size too", ["gpu-0", "gpu-1"], [small, large], { modelBytes: null }, []],
    [
      "by the names that CUDA counts by",
      ["CUDA1", "CUDA0"],
      [small, large],
      {},
      ["--device", "CUDA1,CUDA0", ...share],
    ],
    [
      "Vulkan counts in its own way",
      ["Vulkan1", "Vulkan0"],
      [small, large],
      {},
      ["--device", "Vulkan1,Vulkan0"],
    ],
    ...(
      [
        ["-ts", "1,1"],
        ["--tensor-split=3,1"],
        ["-sm", "none"],
        ["--split-mode", "row"],
        ["--fit", "on"],
      ] as const
    ).map((args): [string, string[], Card[], Partial<DevicePlanInput>, string[]] => [
      `${args.join(" ")} of the pool wins`,
      ["gpu-0", "gpu-1"],
      [small, large],
      { args },
      [],
    ]),
  ];
  test.each(cases)("%s", (_, devices, cards, more, args) => {
    expect(plan(devices, cards, { modelBytes: 4 * GiB, ...more }).args).toEqual(args);
  });
});
