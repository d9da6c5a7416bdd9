/**
 * Which devices each replica of a pool computes on, and how an engine is told: the environment that hides the other cards,
 * and flags. Pure; the configuration checks with it, the llama.cpp adapter plans each start with it, pool health shows it.
 *
 * A replica's devices are "gpu-N" (cards as telemetry counts them) or names as the engine has them (CUDA0), not both;
 * "host" alone keeps it off all cards, beside others it says that memory of the host is used too. None: whatever there is.
 *
 * Always holds: what the pool's own flags and environment say of devices wins, and is not said a second time.
 */
import { assert } from "./assert.ts";
import { gpuDevice, hostDevice, memoryDeviceOf } from "./devices.ts";
import type { PoolSpec } from "./pool.ts";

/** A graphics card as the daemon sees it now. */
export interface Card {
  /** gpu-0 … */
  readonly name: string;
  readonly vendor: "nvidia" | "amd";
  /** Among the cards of its vendor, in the order of the PCI bus. */
  readonly number: number;
  readonly uuid: string | null;
  readonly model: string | null;
  /** Bytes; null: not told. What the operator keeps free is none of either. */
  readonly totalBytes: number | null;
  readonly freeBytes: number | null;
}

type Placed = Pick<PoolSpec, "devices" | "replicas"> & {
  readonly replicaDevices?: readonly (readonly string[])[] | null | undefined;
};

/**
 * Of the replica of that number. Each has its own list in `replicaDevices`. Else the pool's cards are dealt out where it
 * has several replicas: one card each in turn where there are as many replicas as cards or more, else as many to each.
 */
export function devicesOfReplica(pool: Placed, replica: number): readonly string[] {
  assert(Number.isInteger(replica) && replica >= 0, `a replica has a number: ${replica}`);
  const own = pool.replicaDevices?.[replica];
  if (own !== undefined) return own;
  const { devices, replicas } = pool;
  const cards = devices.filter((name) => name !== hostDevice);
  const host = devices.filter((name) => name === hostDevice);
  if (replicas === 1 || cards.length === 0) return devices;
  const [first] = cards.slice(replica % cards.length);
  assert(first !== undefined, "a list that is not empty has one");
  if (replicas >= cards.length) return [first, ...host];
  const each = cards.length / replicas;
  return [...cards.slice(replica * each, (replica + 1) * each), ...host];
}

/** Why the replicas cannot be dealt out like that, as the end of a sentence; null: they can. */
export function dealingProblem({ devices, replicaDevices, replicas }: Placed): string | null {
  if (replicaDevices != null) {
    if (replicaDevices.length === replicas) return null;
    return `found ${replicaDevices.length} lists for ${replicas} replicas, expected one for each`;
  }
  const cards = devices.filter((name) => name !== hostDevice).length;
  if (cards <= replicas || cards % replicas === 0) return null;
  return `found ${cards} cards for ${replicas} replicas, which is no whole number for each: say which takes which in replica_devices`;
}

/** Names of two kinds in one list: the numbers of an engine count only the cards that it is shown. */
export function mixesNames(devices: readonly string[]): boolean {
  const cards = devices.filter((name) => name !== hostDevice);
  return cards.some(isCardName) && !cards.every(isCardName);
}

const isCardName = (name: string): boolean => name.startsWith(gpuDevice(0).slice(0, -1));

/** `${pool}-${number}`, with a letter where a reload's two sets of names take turns (services/supervisor.ts). */
export function replicaNumberOf(replicaId: string): number {
  const [, number] = /(\d+)[a-z]?$/.exec(replicaId) ?? [];
  assert(number !== undefined, `${replicaId} ends with its number`);
  return Number(number);
}

export interface DevicePlan {
  readonly env: Readonly<Record<string, string>>;
  /** Before the pool's own. */
  readonly args: readonly string[];
  /** It computes on no card. */
  readonly hostOnly: boolean;
}

export interface DevicePlanInput {
  /** Of the replica. */
  readonly devices: readonly string[];
  /** Asked only where devices are named. */
  readonly cards: () => readonly Card[];
  /** The pool's own flags. */
  readonly args: readonly string[];
  /** Null: not known. */
  readonly modelBytes: number | null;
}

/** What the engine is told, or why it cannot be started like that: a sentence that says what there is. */
export function planDevices(input: DevicePlanInput): DevicePlan | { readonly problem: string } {
  const named = input.devices.filter((name) => name !== hostDevice);
  if (input.devices.length === 0) return { env: {}, args: [], hostOnly: false };
  const ownDevice = says(input.args, ["-dev", "--device"]);
  if (named.length === 0)
    return {
      env: { ...masks([]), ...hiddenFromVulkan },
      args: ownDevice ? [] : ["--device", "none"],
      hostOnly: true,
    };
  const all = input.cards();
  const cards = named.flatMap((name) => all.find((card) => card.name === memoryDeviceOf(name)) ?? []);
  if (!named.every(isCardName)) {
    // By the number of a CUDA device its memory is looked up: CUDA is to count as NVML does.
    const known = named.every((name) => /^(?:CUDA|ROCm)\d/.test(name)) ? cards : [];
    return {
      env: { CUDA_DEVICE_ORDER: "PCI_BUS_ID" },
      args: [...(ownDevice ? [] : ["--device", named.join(",")]), ...tensorSplit(named, known, input)],
      hostOnly: false,
    };
  }
  const missing = named.filter((name) => !all.some((card) => card.name === name));
  if (missing.length > 0) return { problem: `there is no ${missing.join(", ")} here: ${inventory(all)}` };
  return { env: masks(cards), args: tensorSplit(named, cards, input), hostOnly: false };
}

/**
 * In their order. A vendor of which none is named shows none. ROCm numbers anew what ROCR leaves, and takes CUDA's variable
 * for its own where it has none.
 */
function masks(cards: readonly Card[]): Record<string, string> {
  const nvidia = cards.filter(({ vendor }) => vendor === "nvidia");
  const amd = cards.filter(({ vendor }) => vendor === "amd");
  return {
    CUDA_DEVICE_ORDER: "PCI_BUS_ID",
    CUDA_VISIBLE_DEVICES: namesOf(nvidia, /^GPU-[0-9a-f]{8}-[0-9a-f-]+$/i, ""),
    ROCR_VISIBLE_DEVICES: namesOf(amd, /^[0-9a-f]{16}$/i, "GPU-"),
    // An empty value counts as none said.
    HIP_VISIBLE_DEVICES: amd.length === 0 ? "-1" : amd.map((_, at) => at).join(","),
  };
}

/** Which of Vulkan's devices is which card nobody tells; that there is to be none can be said. */
const hiddenFromVulkan = { GGML_VK_VISIBLE_DEVICES: "" };

/** By what names the card on every machine where each has that: a runtime may count fewer cards than the driver. */
function namesOf(cards: readonly Card[], form: RegExp, prefix: string): string {
  const named = cards.every(({ uuid }) => uuid !== null && form.test(uuid));
  return cards.map(({ uuid, number }) => (named ? `${prefix}${uuid}` : number)).join(",");
}

/** Cards differ in size when the largest has that much more than the smallest. */
const mixedSizes = 1.1;
/** The weights, and as much again for context and compute buffers: such a model fits for sure. */
const surelyFits = 2;

/**
 * A model over cards of different sizes lies on them in proportion to what is free. Only where it fits for sure: with
 * shares that it is told, llama-server does no fitting of its own (seen in 0.7.0), which leaves on the host what the
 * cards cannot take.
 */
function tensorSplit(named: readonly string[], cards: readonly Card[], input: DevicePlanInput): string[] {
  if (named.length < 2 || cards.length < named.length || input.modelBytes === null) return [];
  if (says(input.args, ["-ts", "--tensor-split", "-sm", "--split-mode", "-fit", "--fit", "-dev", "--device"]))
    return [];
  const sizes = cards.flatMap(({ totalBytes }) => totalBytes ?? []);
  const free = cards.flatMap(({ freeBytes, totalBytes }) => freeBytes ?? totalBytes ?? []);
  if (sizes.length < cards.length || free.length < cards.length) return [];
  if (Math.max(...sizes) <= mixedSizes * Math.min(...sizes)) return [];
  const sum = free.reduce((total, bytes) => total + bytes, 0);
  if (surelyFits * input.modelBytes > sum) return [];
  return ["--tensor-split", free.map((bytes) => Math.floor(bytes / 2 ** 20)).join(",")];
}

const says = (args: readonly string[], flags: readonly string[]): boolean =>
  args.some((arg) => flags.some((flag) => arg === flag || arg.startsWith(`${flag}=`)));

function inventory(cards: readonly Card[]): string {
  if (cards.length === 0)
    return `no graphics card of NVIDIA or AMD answers (is its driver loaded?); there is ${hostDevice}, and what the engine names with --list-devices`;
  const each = cards.map(({ name, model, totalBytes }) => {
    const size = totalBytes === null ? null : `${Math.round(totalBytes / 2 ** 30)} GiB`;
    const said = [model, size].filter((part) => part !== null).join(", ");
    return said === "" ? name : `${name} (${said})`;
  });
  return `there are ${each.join(", ")} and ${hostDevice}`;
}
