/**
 * Devices by name, as configuration, residency and engines call them: "host" is the memory of the machine, "gpu-0" the first
 * graphics card, and an engine has names of its own (CUDA0, Vulkan1). Pure.
 */

export const hostDevice = "host";

/** What the configuration may name. */
export const deviceNamePattern = "^(?:host|gpu-[0-9]{1,2}|[A-Z][A-Za-z]{1,15}[0-9]{1,2})$";

/** The device whose memory it is: an engine's name for a card is the card of that number. */
export function memoryDeviceOf(name: string): string {
  const [, number] = /^[A-Za-z]+(\d+)$/.exec(name) ?? [];
  return number === undefined ? name : gpuDevice(Number(number));
}

export const gpuDevice = (number: number): string => `gpu-${number}`;

/** Null: it is no graphics card. */
export function gpuNumberOf(name: string): number | null {
  const [, number] = /^gpu-(\d+)$/.exec(memoryDeviceOf(name)) ?? [];
  return number === undefined ? null : Number(number);
}

const units: Readonly<Record<string, number>> = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

/** What `24GiB`, `1.5 GiB` look like. */
export const byteSizePattern = "^[0-9]{1,9}(?:\\.[0-9]{1,3})? ?(?:KiB|MiB|GiB|TiB)$";

/** Whole bytes of a number, or of a text in that form. */
export function bytesOf(size: number | string): number {
  if (typeof size === "number") return size;
  const [, count = "0", unit = ""] = /^([0-9.]+) ?([A-Za-z]+)$/.exec(size) ?? [];
  return Math.floor(Number(count) * (units[unit] ?? 1));
}
