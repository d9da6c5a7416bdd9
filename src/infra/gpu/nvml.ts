/**
 * NVIDIA cards through the driver's own library, NVML, called in this process. app/bootstrap.ts opens it.
 *
 * Always: without the library or the driver there are no devices, one line in the log says so, and nothing else
 * happens. Every answer of the library is looked at: what a card does not have is null; what fails is null and named;
 * a card that is lost is asked nothing more in that sample. Struct layouts are those of nvml.h (NVIDIA's NVML API
 * Reference); which of them a driver uses is told by the functions that it has.
 */
import type { GpuDevice, GpuProcess, GpuSample, GpuState, GpuTelemetry } from "../../ports/gpu.ts";
import type { Log } from "../../ports/telemetry.ts";
import { type NvmlCall, type NvmlLibrary, openLibrary } from "./nvml-library.ts";

/** nvmlReturn_t, as far as something depends on it. */
const ok = 0;
const notSupported = 3;
const noPermission = 4;
const notFound = 6;
const insufficientSize = 7;
const functionNotFound = 13;
const gpuIsLost = 15;
const resetRequired = 16;
const noData = 21;
/** The card or its driver has no such figure, or not for us: nothing failed. */
const untold: ReadonlySet<number> = new Set([notSupported, noPermission, notFound, functionNotFound, noData]);

const names = {
  characters: 96,
  temperatureGpu: 0,
  eccCorrected: 0,
  eccUncorrected: 1,
  eccVolatile: 0,
} as const;
/** NVML_VALUE_NOT_AVAILABLE */
const notAvailable = 0xffff_ffff_ffff_ffffn;
/** Devices beyond are not asked: a label budget ends there too. */
const devicesMax = 64;
/** Processes on one device; what comes on top is not told apart. */
const processesMax = 1024;
/** nvmlMemory_v2_t: 40 bytes, version 2. */
const memoryV2 = { bytes: 40, version: 40 | (2 << 24) } as const;

interface OpenDevice {
  readonly device: GpuDevice;
  /** nvmlDevice_t; null: it was lost already when it was looked for. */
  readonly handle: bigint | null;
}

/** What one device said to one sample so far. */
interface Asked {
  readonly handle: bigint;
  readonly failed: string[];
  state: GpuState;
}

export interface NvmlOptions {
  readonly log: Log;
  /** The library's file; default: the system's loader finds it. */
  readonly library?: string;
}

export class NvmlTelemetry implements GpuTelemetry {
  #open: readonly OpenDevice[] = [];
  #driver: string | null = null;
  #running = false;
  #processBytes = 24;

  private constructor(
    private readonly library: NvmlLibrary,
    private readonly log: Log,
  ) {}

  /** Null: there is no library, or it finds no driver or no card. */
  static async open({ log, library = "libnvidia-ml.so.1" }: NvmlOptions): Promise<NvmlTelemetry | null> {
    const opened = await openLibrary(library);
    if (typeof opened === "string") {
      log.debug("nvml_absent", { human: `no NVIDIA card is asked: ${opened}` });
      return null;
    }
    const telemetry = new NvmlTelemetry(opened, log);
    telemetry.#open = telemetry.#start();
    if (telemetry.#open.length > 0) return telemetry;
    telemetry.close();
    return null;
  }

  devices(): readonly GpuDevice[] {
    return this.#open.map(({ device }) => device);
  }

  sample(): readonly GpuSample[] {
    return this.#open.map(({ device, handle }) => this.#sampleOf(device.id, handle));
  }

  reopen(): void {
    const before = this.#open;
    this.#stop();
    const found = this.#start();
    // Numbers move up where a card is gone, and a driver that does not answer has not taken its cards away.
    this.#open = before.map(({ device }) => {
      const at = found.findIndex((one) => sameCard(device, one.device));
      const [back] = at < 0 ? [] : found.splice(at, 1);
      return { device: { ...(back?.device ?? device), id: device.id }, handle: back?.handle ?? null };
    });
  }

  close(): void {
    this.#stop();
    this.#open = [];
    this.library.close();
  }

  #start(): OpenDevice[] {
    const { library, log } = this;
    const started = library.call("nvmlInit_v2");
    if (started !== ok) {
      log.info("nvml_unusable", {
        human: `the NVIDIA library is there and finds no driver (nvmlInit_v2 answers ${started}): no card is asked`,
      });
      return [];
    }
    this.#running = true;
    this.#driver = this.#text("nvmlSystemGetDriverVersion", []);
    this.#processBytes = processBytes(library);
    const count = new Uint32Array(1);
    const counted = library.call("nvmlDeviceGetCount_v2", count);
    if (counted !== ok) {
      const human = `NVIDIA cards cannot be counted: nvmlDeviceGetCount_v2 answers ${counted}`;
      log.warn("nvml_unusable", { human });
      return [];
    }
    return Array.from({ length: Math.min(count[0] ?? 0, devicesMax) }, (_, index) => this.#find(index));
  }

  #stop(): void {
    if (!this.#running) return;
    this.#running = false;
    const stopped = this.library.call("nvmlShutdown");
    if (stopped !== ok) this.log.debug("nvml_unusable", { human: `nvmlShutdown answers ${stopped}` });
  }

  #find(index: number): OpenDevice {
    const handles = new BigUint64Array(1);
    const found = this.library.call("nvmlDeviceGetHandleByIndex_v2", index, handles);
    const handle = found === ok ? (handles[0] ?? null) : null;
    const id = `nvidia${index}`;
    const driverVersion = this.#driver;
    if (handle === null) {
      this.log.warn("gpu_unusable", {
        device: id,
        human: `${id} is there and cannot be asked: nvmlDeviceGetHandleByIndex_v2 answers ${found}`,
      });
      return { device: { id, vendor: "nvidia", model: null, uuid: null, driverVersion }, handle };
    }
    const model = this.#text("nvmlDeviceGetName", [handle]);
    const uuid = this.#text("nvmlDeviceGetUUID", [handle]);
    return { device: { id, vendor: "nvidia", model, uuid, driverVersion }, handle };
  }

  #text(call: NvmlCall, before: readonly bigint[]): string | null {
    const bytes = new Uint8Array(names.characters);
    if (this.library.call(call, ...before, bytes, names.characters) !== ok) return null;
    const end = bytes.indexOf(0);
    const text = new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
    return text === "" ? null : text;
  }

  #sampleOf(deviceId: string, handle: bigint | null): GpuSample {
    const asked: Asked = { handle: handle ?? 0n, failed: [], state: handle === null ? "lost" : "ok" };
    const figures = {
      utilization: this.#utilization(asked),
      memory: this.#memory(asked),
      powerWatts: this.#number(asked, "nvmlDeviceGetPowerUsage", 1000),
      temperatureCelsius: this.#number(asked, "nvmlDeviceGetTemperature", 1, names.temperatureGpu),
      eccErrors: this.#eccErrors(asked),
      processes: this.#processes(asked),
    };
    const { state, failed } = asked;
    // Half of a lost card's figures would be from before it was.
    return state === "lost" ? lost(deviceId, failed) : { deviceId, state, ...figures, failed };
  }

  /** Whether the call gave something. */
  #asked(
    asked: Asked,
    call: NvmlCall,
    ...more: readonly (number | bigint | NodeJS.TypedArray | null)[]
  ): boolean {
    return this.#answer(asked, call, ...more) === ok;
  }

  #answer(
    asked: Asked,
    call: NvmlCall,
    ...more: readonly (number | bigint | NodeJS.TypedArray | null)[]
  ): number {
    if (asked.state === "lost") return gpuIsLost;
    const answer = this.library.call(call, asked.handle, ...more);
    if (answer === gpuIsLost) asked.state = "lost";
    else if (answer === resetRequired) asked.state = "reset_required";
    else if (answer !== ok && answer !== insufficientSize && !untold.has(answer))
      asked.failed.push(`${call} ${answer}`);
    return answer;
  }

  #utilization(asked: Asked): number | null {
    // nvmlUtilization_t: per cent of time in which a kernel ran, and in which memory was accessed.
    const rates = new Uint32Array(2);
    if (!this.#asked(asked, "nvmlDeviceGetUtilizationRates", rates)) return null;
    return Math.min(1, (rates[0] ?? 0) / 100);
  }

  #memory(asked: Asked): GpuSample["memory"] {
    if (this.library.has("nvmlDeviceGetMemoryInfo_v2")) {
      const info = new BigUint64Array(memoryV2.bytes / 8);
      new Uint32Array(info.buffer)[0] = memoryV2.version;
      if (!this.#asked(asked, "nvmlDeviceGetMemoryInfo_v2", info)) return null;
      const [, total, , free, used] = info;
      return memoryOf(total, free, used);
    }
    const info = new BigUint64Array(3);
    if (!this.#asked(asked, "nvmlDeviceGetMemoryInfo", info)) return null;
    const [total, free, used] = info;
    return memoryOf(total, free, used);
  }

  #number(asked: Asked, call: NvmlCall, divisor: number, ...before: readonly number[]): number | null {
    const value = new Uint32Array(1);
    return this.#asked(asked, call, ...before, value) ? (value[0] ?? 0) / divisor : null;
  }

  #eccErrors(asked: Asked): GpuSample["eccErrors"] {
    const corrected = this.#eccCount(asked, names.eccCorrected);
    const uncorrected = this.#eccCount(asked, names.eccUncorrected);
    return corrected === null || uncorrected === null ? null : { corrected, uncorrected };
  }

  #eccCount(asked: Asked, kind: number): number | null {
    const count = new BigUint64Array(1);
    const told = this.#asked(asked, "nvmlDeviceGetTotalEccErrors", kind, names.eccVolatile, count);
    return told ? Number(count[0]) : null;
  }

  #processes(asked: Asked): GpuSample["processes"] {
    const call = processCalls.find((name) => this.library.has(name));
    if (call === undefined) return null;
    const bytes = call === "nvmlDeviceGetComputeRunningProcesses" ? 16 : this.#processBytes;
    const count = new Uint32Array(1);
    const sized = this.#answer(asked, call, count, null);
    if (sized === ok) return [];
    if (sized !== insufficientSize) return null;
    // Some more: others start meanwhile.
    const room = Math.min((count[0] ?? 0) * 2 + 8, processesMax);
    count[0] = room;
    const list = new Uint8Array(room * bytes);
    if (!this.#asked(asked, call, count, list)) return null;
    return processesOf(list, Math.min(count[0] ?? 0, room), bytes);
  }
}

/** The newest first. */
const processCalls = [
  "nvmlDeviceGetComputeRunningProcesses_v3",
  "nvmlDeviceGetComputeRunningProcesses_v2",
  "nvmlDeviceGetComputeRunningProcesses",
] as const satisfies readonly NvmlCall[];

/**
 * Bytes of one nvmlProcessInfo_t: pid, memory, two MIG instances, and in the drivers of one half year (530 and early
 * 535) the protected memory too. Those have the function on confidential memory and not yet the list of details,
 * which took that field over: so nvitop's libnvml.py tells them apart.
 */
const processBytes = (library: NvmlLibrary): number =>
  library.has("nvmlDeviceGetComputeRunningProcesses_v3") &&
  library.has("nvmlDeviceGetConfComputeMemSizeInfo") &&
  !library.has("nvmlDeviceGetRunningProcessDetailList")
    ? 32
    : 24;

function processesOf(list: Uint8Array, count: number, bytes: number): GpuProcess[] {
  const view = new DataView(list.buffer);
  const memory = new Map<number, number | null>();
  for (let at = 0; at < count; at += 1) {
    const pid = view.getUint32(at * bytes, true);
    const used = view.getBigUint64(at * bytes + 8, true);
    const before = memory.get(pid);
    // One process on several MIG instances of a device stands there several times.
    const known = used === notAvailable || before === null ? null : Number(used) + (before ?? 0);
    memory.set(pid, known);
  }
  return [...memory].map(([pid, usedBytes]) => ({ pid, usedBytes }));
}

const memoryOf = (total = 0n, free = 0n, used = 0n) => ({
  usedBytes: Number(used),
  freeBytes: Number(free),
  totalBytes: Number(total),
});

const lost = (deviceId: string, failed: readonly string[]): GpuSample => ({
  deviceId,
  state: "lost",
  utilization: null,
  memory: null,
  powerWatts: null,
  temperatureCelsius: null,
  eccErrors: null,
  processes: null,
  failed,
});

const sameCard = (a: GpuDevice, b: GpuDevice): boolean =>
  a.uuid === null ? a.id === b.id : a.uuid === b.uuid;
