/**
 * libnvidia-ml as functions that can be called: loads the file, binds what nvml.ts calls, as far as it has it. No
 * meaning is known here.
 *
 * Always: a library that is missing, or that is none, is told as a sentence and costs nothing after that; a function
 * that this driver does not have answers as NVML itself does.
 */

/** Arguments as C has them: u32 by value, p a pointer to memory of ours, d an nvmlDevice_t. */
const signatures = {
  nvmlInit_v2: "",
  nvmlShutdown: "",
  nvmlSystemGetDriverVersion: "pu",
  nvmlDeviceGetCount_v2: "p",
  nvmlDeviceGetHandleByIndex_v2: "up",
  nvmlDeviceGetName: "dpu",
  nvmlDeviceGetUUID: "dpu",
  nvmlDeviceGetUtilizationRates: "dp",
  nvmlDeviceGetMemoryInfo: "dp",
  nvmlDeviceGetMemoryInfo_v2: "dp",
  nvmlDeviceGetPowerUsage: "dp",
  nvmlDeviceGetTemperature: "dup",
  nvmlDeviceGetTotalEccErrors: "duup",
  nvmlDeviceGetComputeRunningProcesses: "dpp",
  nvmlDeviceGetComputeRunningProcesses_v2: "dpp",
  nvmlDeviceGetComputeRunningProcesses_v3: "dpp",
  // Never called: that they are there tells which layout of a struct the driver has.
  nvmlDeviceGetConfComputeMemSizeInfo: "dp",
  nvmlDeviceGetRunningProcessDetailList: "dp",
} as const;
export type NvmlCall = keyof typeof signatures;

/** Without these there is nothing to ask. */
const needed: readonly NvmlCall[] = [
  "nvmlInit_v2",
  "nvmlShutdown",
  "nvmlDeviceGetCount_v2",
  "nvmlDeviceGetHandleByIndex_v2",
];

/** NVML_ERROR_FUNCTION_NOT_FOUND */
const functionNotFound = 13;

export type NvmlArgument = number | bigint | NodeJS.TypedArray | null;

export interface NvmlLibrary {
  has(call: NvmlCall): boolean;
  /** The nvmlReturn_t. */
  call(call: NvmlCall, ...args: readonly NvmlArgument[]): number;
  close(): void;
}

/** dlopen(3): all that the library needs is bound at once, or it is refused. */
const bindNow = 2;

/** A sentence instead: why there is none. */
export async function openLibrary(path: string): Promise<NvmlLibrary | string> {
  const { dlopen, FFIType, linkSymbols } = await import("bun:ffi");
  const { ptr, u32, u64, i32, cstring } = FFIType;
  const types = { u: u32, p: ptr, d: u64 } as const;
  // By the system's loader itself: the runtime's own dlopen goes on to look in the working folder, where anybody may
  // have put a file of that name.
  const system = dlopen("libc.so.6", {
    dlopen: { args: [ptr, i32], returns: ptr },
    dlsym: { args: [ptr, ptr], returns: ptr },
    dlerror: { args: [], returns: cstring },
    dlclose: { args: [ptr], returns: i32 },
  });
  const loader = system.symbols;
  const handle = loader.dlopen(text(path), bindNow);
  if (handle === null) {
    const why = String(loader.dlerror());
    system.close();
    return why;
  }
  const addresses = new Map(
    Object.keys(signatures).flatMap((name) => {
      const address = loader.dlsym(handle, text(name));
      return address === null ? [] : [[name, address] as const];
    }),
  );
  const release = (): void => {
    loader.dlclose(handle);
    system.close();
  };
  const missing = needed.find((name) => !addresses.has(name));
  if (missing !== undefined) {
    release();
    return `${path} has no ${missing}`;
  }
  const linked = linkSymbols(
    Object.fromEntries(
      [...addresses].map(([name, address]) => {
        const args = [...signatures[name as NvmlCall]].map((letter) => types[letter as keyof typeof types]);
        return [name, { ptr: address, args, returns: i32 }];
      }),
    ),
  );
  const bound = new Map(
    Object.entries(linked.symbols) as [string, (...args: readonly NvmlArgument[]) => number][],
  );
  const close = (): void => {
    if (bound.size === 0) return;
    bound.clear();
    linked.close();
    release();
  };
  return {
    has: (call) => bound.has(call),
    call: (call, ...args) => bound.get(call)?.(...args) ?? functionNotFound,
    close,
  };
}

const text = (value: string): Buffer => Buffer.from(`${value}\0`);
