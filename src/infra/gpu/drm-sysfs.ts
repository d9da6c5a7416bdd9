/**
 * AMD cards as the kernel shows them: the files of the amdgpu driver below /sys/class/drm, and of its compute side
 * (KFD) for what each process holds. app/bootstrap.ts opens it.
 *
 * Always: files are read and nothing is written; a file that is not there is a figure that is not known; on a machine
 * without such a card one look at one folder is all that happens. Names and units of the files: the kernel's
 * documentation, "AMDGPU driver: thermal and power, memory, RAS", and hwmon's sysfs interface.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { GpuDevice, GpuProcess, GpuSample, GpuTelemetry } from "../../ports/gpu.ts";

const cardPattern = /^card(\d+)$/;
const devicesMax = 64;
/** Of one device; what comes on top is not told apart. */
const processesMax = 1024;

/** The card, its driver or this process's rights do not have it. EBUSY: not now, as while its power is off. */
const untold = new Set(["ENOENT", "ENOTDIR", "EACCES", "EPERM", "EOPNOTSUPP", "ENODATA", "EINVAL", "EBUSY"]);
/** The driver is no longer bound to a card that answers. */
const gone = new Set(["ENODEV", "ENXIO"]);

interface OpenDevice {
  readonly device: GpuDevice;
  /** Its folder `device`. */
  readonly folder: string;
  readonly hwmon: string | null;
  /** What KFD calls it; null: it computes nothing. */
  readonly kfdId: string | null;
}

/** What one device's files said to one sample so far. */
interface Asked {
  readonly failed: string[];
  lost: boolean;
}

export class DrmSysfsTelemetry implements GpuTelemetry {
  #open: readonly OpenDevice[];

  /** `root`: where sysfs is mounted. */
  constructor(private readonly root = "/sys") {
    this.#open = this.#find();
  }

  devices(): readonly GpuDevice[] {
    return this.#open.map(({ device }) => device);
  }

  sample(): readonly GpuSample[] {
    return this.#open.map((one) => this.#sampleOf(one));
  }

  reopen(): void {
    const found = this.#find();
    this.#open = this.#open.map((one) => found.find(({ device }) => device.id === one.device.id) ?? one);
  }

  close(): void {
    this.#open = [];
  }

  #find(): OpenDevice[] {
    const drm = join(this.root, "class/drm");
    const numbers = listed(drm).flatMap((name) => cardPattern.exec(name)?.[1] ?? []);
    return numbers
      .map(Number)
      .sort((a, b) => a - b)
      .flatMap((number) => this.#opened(number, join(drm, `card${number}`, "device")))
      .slice(0, devicesMax);
  }

  #opened(number: number, folder: string): OpenDevice[] {
    const uevent = plainText(join(folder, "uevent")) ?? "";
    if (!/^DRIVER=amdgpu$/m.test(uevent)) return [];
    const [, slot = null] = /^PCI_SLOT_NAME=(.+)$/m.exec(uevent) ?? [];
    const [monitor] = listed(join(folder, "hwmon"));
    const device: GpuDevice = {
      id: `amd${number}`,
      vendor: "amd",
      model: plainText(join(folder, "product_name")),
      uuid: plainText(join(folder, "unique_id")) ?? slot,
      driverVersion: plainText(join(this.root, "module/amdgpu/version")),
    };
    const hwmon = monitor === undefined ? null : join(folder, "hwmon", monitor);
    return [{ device, folder, hwmon, kfdId: slot === null ? null : this.#kfdIdOf(slot) }];
  }

  /** `slot`: 0000:03:00.0. A node of KFD names its card by domain and location, which is bus, device and function. */
  #kfdIdOf(slot: string): string | null {
    const [, domain, bus, dev, fn] = /^([0-9a-f]+):([0-9a-f]+):([0-9a-f]+)\.([0-7])$/i.exec(slot) ?? [];
    if (domain === undefined || bus === undefined || dev === undefined || fn === undefined) return null;
    const location = (parseInt(bus, 16) << 8) | (parseInt(dev, 16) << 3) | Number(fn);
    const nodes = join(this.root, "class/kfd/kfd/topology/nodes");
    for (const node of listed(nodes)) {
      const properties = plainText(join(nodes, node, "properties")) ?? "";
      const property = (name: string) =>
        Number(new RegExp(`^${name} (\\d+)$`, "m").exec(properties)?.[1] ?? -1);
      if (property("location_id") !== location || property("domain") !== parseInt(domain, 16)) continue;
      const id = plainText(join(nodes, node, "gpu_id"));
      // A node of the processor has none.
      if (id !== null && id !== "0") return id;
    }
    return null;
  }

  #sampleOf({ device, folder, hwmon, kfdId }: OpenDevice): GpuSample {
    // Unplugged or unbound, it takes its folder along.
    const asked: Asked = { failed: [], lost: plainText(join(folder, "uevent")) === null };
    const number = (path: string | null, unit: number): number | null => {
      const text = path === null ? null : readFigure(path, asked);
      // Empty would be 0.
      const value = text === null || text === "" ? Number.NaN : Number(text);
      return Number.isFinite(value) ? value / unit : null;
    };
    const percent = number(join(folder, "gpu_busy_percent"), 100);
    const usedBytes = number(join(folder, "mem_info_vram_used"), 1);
    const totalBytes = number(join(folder, "mem_info_vram_total"), 1);
    const of = (name: string) => (hwmon === null ? null : join(hwmon, name));
    const figures = {
      utilization: percent === null ? null : Math.min(1, Math.max(0, percent)),
      memory:
        usedBytes === null || totalBytes === null
          ? null
          : { usedBytes, freeBytes: Math.max(0, totalBytes - usedBytes), totalBytes },
      // Newer cards have the momentary power only. Microwatts, millidegrees.
      powerWatts: number(of("power1_average"), 1e6) ?? number(of("power1_input"), 1e6),
      temperatureCelsius: number(of("temp1_input"), 1e3),
      eccErrors: eccErrors(join(folder, "ras"), asked),
      processes: kfdId === null ? null : this.#processes(kfdId, asked),
    };
    if (!asked.lost) return { deviceId: device.id, state: "ok", ...figures, failed: asked.failed };
    const nothing = Object.fromEntries(Object.keys(figures).map((name) => [name, null]));
    return {
      deviceId: device.id,
      state: "lost",
      ...(nothing as Nulls<typeof figures>),
      failed: asked.failed,
    };
  }

  #processes(kfdId: string, asked: Asked): GpuProcess[] {
    const folder = join(this.root, "class/kfd/kfd/proc");
    return listed(folder)
      .slice(0, processesMax)
      .flatMap((name) => {
        // It may just have ended.
        const text = readFigure(join(folder, name, `vram_${kfdId}`), asked);
        const usedBytes = Number(text ?? 0);
        return usedBytes > 0 ? [{ pid: Number(name), usedBytes }] : [];
      });
  }
}

type Nulls<T> = { readonly [K in keyof T]: null };

/** Each block of the card has a file with "ue: N" and "ce: N". Null: the card counts none. */
function eccErrors(folder: string, asked: Asked): GpuSample["eccErrors"] {
  let counted = false;
  let corrected = 0;
  let uncorrected = 0;
  for (const name of listed(folder)) {
    if (!name.endsWith("_err_count")) continue;
    const text = readFigure(join(folder, name), asked) ?? "";
    const [, ue] = /^ue:\s*(\d+)$/m.exec(text) ?? [];
    const [, ce] = /^ce:\s*(\d+)$/m.exec(text) ?? [];
    if (ue === undefined || ce === undefined) continue;
    counted = true;
    uncorrected += Number(ue);
    corrected += Number(ce);
  }
  return counted ? { corrected, uncorrected } : null;
}

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";

/** Null: not told; what failed otherwise is noted. */
function readFigure(path: string, asked: Asked): string | null {
  try {
    return readFileSync(path, "latin1").trim();
  } catch (error) {
    const code = codeOf(error);
    if (code === "") throw error;
    if (gone.has(code)) asked.lost = true;
    else if (!untold.has(code)) asked.failed.push(`${path.split("/").at(-1)} ${code}`);
    return null;
  }
}

/** What a card is called does not change, and what cannot be read of that is not known. */
function plainText(path: string): string | null {
  const text = readFigure(path, { failed: [], lost: false });
  return text === "" ? null : text;
}

/** In the order of their names; none where there is no such folder. */
function listed(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch (error) {
    if (codeOf(error) === "") throw error;
    return [];
  }
}
