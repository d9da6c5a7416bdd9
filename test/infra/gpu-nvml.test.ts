/** NVML through bun:ffi, over a stand-in library that a C compiler made of the structs of nvml.h. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { NvmlTelemetry } from "../../src/infra/gpu/nvml.ts";
import { NvmlStandIn } from "../support/nvml-stand-in.ts";
import { RecordingLog } from "../support/test-app.ts";

const GiB = 2 ** 30;
const big = {
  percent: 37,
  total: 24 * GiB,
  reserved: GiB / 2,
  used: 6 * GiB,
  milliwatts: 251_500,
  celsius: 61,
};
const idle = { percent: 0, total: 8 * GiB, reserved: 0, used: 0, milliwatts: 9_000, celsius: 33 };
const [notSupported, noPermission, gpuIsLost, resetRequired, unknown] = [3, 4, 15, 16, 999];

const library = new NvmlStandIn(3);
let log: RecordingLog;
beforeEach(() => {
  log = new RecordingLog();
  library.reset(big, idle);
});
afterAll(() => library.remove());

async function opened(path = library.path): Promise<NvmlTelemetry> {
  const telemetry = await NvmlTelemetry.open({ log, library: path });
  if (telemetry === null) throw new Error("the stand-in has cards");
  return telemetry;
}
const events = () => log.lines.map(({ level, event }) => `${level} ${event}`);

describe("cards", () => {
  test("are told with all their figures", async () => {
    library.ecc(0, 12, 3);
    library.process(0, 4711, 5 * GiB);
    library.process(0, 4712, null);
    const telemetry = await opened();
    expect(telemetry.devices()).toEqual([
      { id: "nvidia0", vendor: "nvidia", model: "Stand-in GPU", uuid: "GPU-0", driverVersion: "580.65.06" },
      { id: "nvidia1", vendor: "nvidia", model: "Stand-in GPU", uuid: "GPU-1", driverVersion: "580.65.06" },
    ]);
    expect(telemetry.sample()).toEqual([
      {
        deviceId: "nvidia0",
        state: "ok",
        utilization: 0.37,
        memory: { usedBytes: 6 * GiB, freeBytes: 17.5 * GiB, totalBytes: 24 * GiB },
        powerWatts: 251.5,
        temperatureCelsius: 61,
        eccErrors: { corrected: 12, uncorrected: 3 },
        processes: [
          { pid: 4711, usedBytes: 5 * GiB },
          { pid: 4712, usedBytes: null },
        ],
        failed: [],
      },
      {
        deviceId: "nvidia1",
        state: "ok",
        utilization: 0,
        memory: { usedBytes: 0, freeBytes: 8 * GiB, totalBytes: 8 * GiB },
        powerWatts: 9,
        temperatureCelsius: 33,
        eccErrors: { corrected: 0, uncorrected: 0 },
        processes: [],
        failed: [],
      },
    ]);
    expect(log.lines).toEqual([]);
    telemetry.close();
    expect(library.open).toBe(0);
    expect(telemetry.sample()).toEqual([]);
    telemetry.close();
  });

  test("are read anew each time", async () => {
    const telemetry = await opened();
    telemetry.sample();
    library.process(1, 7, GiB);
    expect(telemetry.sample()[1]?.processes).toEqual([{ pid: 7, usedBytes: GiB }]);
    telemetry.close();
  });

  test("of many processes tell each, and add up what one process has on several instances", async () => {
    for (let pid = 1; pid <= 40; pid += 1) library.process(0, pid, pid * 1000);
    library.process(0, 40, 500);
    const telemetry = await opened();
    const processes = telemetry.sample()[0]?.processes ?? [];
    expect(processes).toHaveLength(40);
    expect(processes.at(0)).toEqual({ pid: 1, usedBytes: 1000 });
    expect(processes.at(-1)).toEqual({ pid: 40, usedBytes: 40_500 });
    telemetry.close();
  });
});

describe("drivers of other years", () => {
  for (const [generation, freeBytes, usedBytes] of [
    // The oldest function counts what is reserved as used.
    [1, 17.5 * GiB, 6.5 * GiB],
    [2, 17.5 * GiB, 6 * GiB],
    [32, 17.5 * GiB, 6 * GiB],
  ] as const)
    test(`generation ${generation} is read by its own structs`, async () => {
      const old = new NvmlStandIn(generation);
      try {
        old.reset(big);
        for (const pid of [11, 12, 13]) old.process(0, pid, pid * GiB);
        const telemetry = await opened(old.path);
        const [sample] = telemetry.sample();
        expect(sample?.memory).toEqual({ usedBytes, freeBytes, totalBytes: 24 * GiB });
        expect(sample?.processes).toEqual([11, 12, 13].map((pid) => ({ pid, usedBytes: pid * GiB })));
        telemetry.close();
      } finally {
        old.remove();
      }
    });
});

describe("what is not told", () => {
  test("is null without being a failure", async () => {
    for (const call of ["power", "ecc", "temperature"] as const) library.answers(call, notSupported, 0);
    library.answers("processes", noPermission, 0);
    const telemetry = await opened();
    expect(telemetry.sample()[0]).toMatchObject({
      state: "ok",
      utilization: 0.37,
      powerWatts: null,
      eccErrors: null,
      temperatureCelsius: null,
      processes: null,
      failed: [],
    });
    telemetry.close();
  });

  test("because it failed is null, and named", async () => {
    library.answers("memory", unknown, 0);
    const telemetry = await opened();
    const [first, second] = telemetry.sample();
    expect(first).toMatchObject({ state: "ok", memory: null, failed: ["nvmlDeviceGetMemoryInfo_v2 999"] });
    expect(second).toMatchObject({ memory: { totalBytes: 8 * GiB }, failed: [] });
    telemetry.close();
  });
});

describe("a card that is lost", () => {
  test("is asked nothing more in that sample and shows no figure of it; the others go on", async () => {
    library.answers("temperature", gpuIsLost, 0);
    const telemetry = await opened();
    const before = library.calls;
    const [first, second] = telemetry.sample();
    expect(first).toEqual({
      deviceId: "nvidia0",
      state: "lost",
      utilization: null,
      memory: null,
      powerWatts: null,
      temperatureCelsius: null,
      eccErrors: null,
      processes: null,
      failed: [],
    });
    expect(second).toMatchObject({ state: "ok", temperatureCelsius: 33 });
    // Utilization, memory, power, temperature of the first; those, twice ECC and the processes of the second.
    expect(library.calls - before).toBe(4 + 7);
    telemetry.close();
  });

  test("keeps its name when the driver is asked anew, and so do those that moved up", async () => {
    const telemetry = await opened();
    library.counts(1);
    telemetry.reopen();
    expect(library.open).toBe(1);
    expect(telemetry.devices().map(({ id, uuid }) => `${id} ${uuid}`)).toEqual([
      "nvidia0 GPU-0",
      "nvidia1 GPU-1",
    ]);
    expect(telemetry.sample().map(({ state, memory }) => [state, memory?.totalBytes])).toEqual([
      ["lost", undefined],
      ["ok", 8 * GiB],
    ]);
    library.counts(0, 1);
    telemetry.reopen();
    expect(telemetry.sample().map(({ state, memory }) => [state, memory?.totalBytes])).toEqual([
      ["ok", 24 * GiB],
      ["ok", 8 * GiB],
    ]);
    expect(library.starts).toBe(3);
    telemetry.close();
  });

  test("and a driver that went away: all are lost, none is forgotten", async () => {
    const telemetry = await opened();
    library.answers("init", 9);
    telemetry.reopen();
    const asked = library.calls;
    expect(telemetry.sample().map(({ state }) => state)).toEqual(["lost", "lost"]);
    expect(library.calls).toBe(asked);
    library.answers("init", 0);
    telemetry.reopen();
    expect(telemetry.sample().map(({ state }) => state)).toEqual(["ok", "ok"]);
    telemetry.close();
  });

  test("at the start already is there, and says so", async () => {
    library.answers("handle", gpuIsLost, 1);
    const telemetry = await opened();
    expect(telemetry.sample().map(({ deviceId, state }) => `${deviceId} ${state}`)).toEqual([
      "nvidia0 ok",
      "nvidia1 lost",
    ]);
    expect(events()).toEqual(["warn gpu_unusable"]);
    telemetry.close();
  });

  test("one that needs a reset still tells what it can", async () => {
    library.answers("utilization", resetRequired, 0);
    const telemetry = await opened();
    expect(telemetry.sample()[0]).toMatchObject({
      state: "reset_required",
      utilization: null,
      powerWatts: 251.5,
    });
    telemetry.close();
  });
});

describe("without a card", () => {
  test("no library: nothing, and one quiet line", async () => {
    expect(await NvmlTelemetry.open({ log, library: "/nonexistent/libnvidia-ml.so.1" })).toBeNull();
    expect(events()).toEqual(["debug nvml_absent"]);
  });

  test("a library that is another one: the same", async () => {
    expect(await NvmlTelemetry.open({ log, library: "libc.so.6" })).toBeNull();
    expect(events()).toEqual(["debug nvml_absent"]);
  });

  test("a library of that name in the working folder is not the system's", () => {
    const nvml = resolve(import.meta.dir, "../../src/infra/gpu/nvml.ts");
    const log = "{ debug() {}, info() {}, warn() {}, error() {} }";
    const script = `
      import { NvmlTelemetry } from ${JSON.stringify(nvml)};
      const telemetry = await NvmlTelemetry.open({ log: ${log} });
      console.log(JSON.stringify(telemetry?.devices().map(({ model }) => model) ?? []));`;
    const run = Bun.spawnSync([process.execPath, "-e", script], { cwd: dirname(library.path) });
    expect(run.exitCode).toBe(0);
    // The machine may have cards of its own.
    expect(JSON.parse(run.stdout.toString())).not.toContain("Stand-in GPU");
  });

  test("a library without a driver: one line, and it is let go", async () => {
    library.answers("init", 9);
    expect(await NvmlTelemetry.open({ log, library: library.path })).toBeNull();
    expect(events()).toEqual(["info nvml_unusable"]);
    expect(library.open).toBe(0);
  });

  test("a driver that counts none, or cannot count: nothing stays open", async () => {
    library.reset();
    expect(await NvmlTelemetry.open({ log, library: library.path })).toBeNull();
    expect(log.lines).toEqual([]);
    library.reset(big);
    library.answers("count", unknown);
    expect(await NvmlTelemetry.open({ log, library: library.path })).toBeNull();
    expect(events()).toEqual(["warn nvml_unusable"]);
    expect(library.open).toBe(0);
  });
});

test("works in a compiled program", async () => {
  const folder = mkdtempSync(join(tmpdir(), "orchd-nvml-"));
  try {
    const nvml = resolve(import.meta.dir, "../../src/infra/gpu/nvml.ts");
    const log = "{ debug() {}, info() {}, warn() {}, error() {} }";
    writeFileSync(
      join(folder, "main.ts"),
      `import { NvmlTelemetry } from ${JSON.stringify(nvml)};
       const telemetry = await NvmlTelemetry.open({ log: ${log}, library: process.argv[2] });
       console.log(JSON.stringify([telemetry?.devices(), telemetry?.sample()]));`,
    );
    const build = [
      "build",
      "--compile",
      "--minify",
      "--outfile",
      join(folder, "main"),
      join(folder, "main.ts"),
    ];
    const built = Bun.spawnSync([process.execPath, ...build], { cwd: folder });
    expect({ code: built.exitCode, err: built.exitCode === 0 ? "" : built.stderr.toString() }).toEqual({
      code: 0,
      err: "",
    });
    // A new process has the stand-in as it is built: with one card.
    const run = Bun.spawnSync([join(folder, "main"), library.path]);
    expect(JSON.parse(run.stdout.toString())).toEqual([
      [{ id: "nvidia0", vendor: "nvidia", model: "Stand-in GPU", uuid: "GPU-0", driverVersion: "580.65.06" }],
      [
        {
          deviceId: "nvidia0",
          state: "ok",
          utilization: 0.5,
          memory: { usedBytes: 2 * GiB, freeBytes: 6 * GiB, totalBytes: 8 * GiB },
          powerWatts: 75,
          temperatureCelsius: 44,
          eccErrors: { corrected: 0, uncorrected: 0 },
          processes: [{ pid: 4711, usedBytes: GiB }],
          failed: [],
        },
      ],
    ]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, 60_000);
