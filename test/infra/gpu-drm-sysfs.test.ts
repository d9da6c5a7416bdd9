/** AMD cards as a sysfs tells them that the test wrote: what is there, what is missing, what went away. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { DrmSysfsTelemetry } from "../../src/infra/gpu/drm-sysfs.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "orchd-sysfs-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function write(files: Readonly<Record<string, string>>, below = ""): void {
  for (const [name, text] of Object.entries(files)) {
    const path = join(root, below, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, `${text}\n`);
  }
}

const card = (number: number, files: Readonly<Record<string, string>>) =>
  write(files, `class/drm/card${number}/device`);

/** An RX 7900 XTX as the kernel shows it, with two of the blocks that count errors. */
function radeon(number: number, slot = "0000:03:00.0"): void {
  card(number, {
    uevent: `DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=${slot}\nMODALIAS=pci:x`,
    gpu_busy_percent: "83",
    mem_info_vram_total: "25753026560",
    mem_info_vram_used: "5368709120",
    product_name: "Radeon RX 7900 XTX",
    unique_id: "3a1f00d0c0ffee11",
    "hwmon/hwmon4/power1_average": "291000000",
    "hwmon/hwmon4/temp1_input": "66000",
    "ras/umc_err_count": "ue: 1\nce: 20",
    "ras/gfx_err_count": "ue: 2\nce: 3",
    "ras/features": "feature mask: 0x5",
  });
}

describe("a card", () => {
  test("is told with all its figures", () => {
    radeon(1);
    write({ "module/amdgpu/version": "6.12.12" });
    write(
      { gpu_id: "0", properties: "cpu_cores_count 32\nlocation_id 0\ndomain 0" },
      "class/kfd/kfd/topology/nodes/0",
    );
    write(
      { gpu_id: "51110", properties: "simd_count 192\nlocation_id 768\ndomain 0\ndrm_render_minor 128" },
      "class/kfd/kfd/topology/nodes/1",
    );
    write({ vram_51110: "4294967296", pasid: "32771" }, "class/kfd/kfd/proc/4711");
    write({ vram_51110: "0" }, "class/kfd/kfd/proc/4712");
    write({ vram_99999: "1024" }, "class/kfd/kfd/proc/4713");
    const telemetry = new DrmSysfsTelemetry(root);
    expect(telemetry.devices()).toEqual([
      {
        id: "amd1",
        vendor: "amd",
        model: "Radeon RX 7900 XTX",
        uuid: "3a1f00d0c0ffee11",
        driverVersion: "6.12.12",
      },
    ]);
    expect(telemetry.sample()).toEqual([
      {
        deviceId: "amd1",
        state: "ok",
        utilization: 0.83,
        memory: { usedBytes: 5_368_709_120, freeBytes: 20_384_317_440, totalBytes: 25_753_026_560 },
        powerWatts: 291,
        temperatureCelsius: 66,
        eccErrors: { corrected: 23, uncorrected: 3 },
        processes: [{ pid: 4711, usedBytes: 4_294_967_296 }],
        failed: [],
      },
    ]);
    card(1, { gpu_busy_percent: "0" });
    expect(telemetry.sample()[0]?.utilization).toBe(0);
  });

  test("that has little tells little: nothing is made up", () => {
    card(0, {
      uevent: "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:0c:00.0",
      mem_info_vram_total: "536870912",
      gpu_busy_percent: "",
    });
    card(0, { "hwmon/hwmon2/power1_input": "4500000" });
    const telemetry = new DrmSysfsTelemetry(root);
    expect(telemetry.devices()).toEqual([
      { id: "amd0", vendor: "amd", model: null, uuid: "0000:0c:00.0", driverVersion: null },
    ]);
    expect(telemetry.sample()).toEqual([
      {
        deviceId: "amd0",
        state: "ok",
        utilization: null,
        memory: null,
        powerWatts: 4.5,
        temperatureCelsius: null,
        eccErrors: null,
        processes: null,
        failed: [],
      },
    ]);
  });

  test("whose file cannot be read for another reason says which", () => {
    radeon(0);
    rmSync(join(root, "class/drm/card0/device/gpu_busy_percent"));
    mkdirSync(join(root, "class/drm/card0/device/gpu_busy_percent"));
    const [sample] = new DrmSysfsTelemetry(root).sample();
    expect(sample).toMatchObject({
      state: "ok",
      utilization: null,
      failed: ["gpu_busy_percent EISDIR"],
      powerWatts: 291,
    });
  });

  test("that was taken out is lost, and back after the driver was asked anew", () => {
    radeon(0);
    radeon(1, "0000:04:00.0");
    const telemetry = new DrmSysfsTelemetry(root);
    rmSync(join(root, "class/drm/card0"), { recursive: true });
    const states = () =>
      telemetry.sample().map(({ deviceId, state, memory }) => [deviceId, state, memory !== null]);
    expect(states()).toEqual([
      ["amd0", "lost", false],
      ["amd1", "ok", true],
    ]);
    telemetry.reopen();
    expect(states()[0]).toEqual(["amd0", "lost", false]);
    radeon(0);
    telemetry.reopen();
    expect(states()[0]).toEqual(["amd0", "ok", true]);
    telemetry.close();
    expect(telemetry.sample()).toEqual([]);
  });
});

test("cards stand in the order of their numbers; connectors and other drivers' cards are none", () => {
  for (const number of [10, 9, 2]) radeon(number, `0000:0${number % 9}:00.0`);
  write({ "class/drm/card2-DP-1/status": "connected", "class/drm/renderD128/dev": "226:128" });
  card(0, { uevent: "DRIVER=i915\nPCI_SLOT_NAME=0000:00:02.0", gpu_busy_percent: "5" });
  expect(new DrmSysfsTelemetry(root).devices().map(({ id }) => id)).toEqual(["amd2", "amd9", "amd10"]);
});

test("a machine without such a card has none", () => {
  expect(new DrmSysfsTelemetry(root).devices()).toEqual([]);
  expect(new DrmSysfsTelemetry(join(root, "nowhere")).sample()).toEqual([]);
});
