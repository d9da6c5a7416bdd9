/**
 * What the configuration file says of devices and of the pools that share them: the sections `devices` and `residency`,
 * and the keys of a pool that have to do with memory. Called by app/config-schema*.ts only.
 */
import { Type } from "@sinclair/typebox";
import { byteSizePattern, deviceNamePattern } from "../domain/devices.ts";
import { limits } from "../domain/limits.ts";
import { milliseconds, msMax, nullable, optional, section } from "./config-schema-kinds.ts";

const deviceId = () =>
  Type.String({
    pattern: deviceNamePattern,
    "x-expected": "host, gpu-0, gpu-1 and so on, or an engine's name for one such as CUDA0",
  });

const size = () =>
  Type.Union(
    [Type.Integer({ minimum: 0, maximum: limits.deviceBytesMax }), Type.String({ pattern: byteSizePattern })],
    { "x-expected": "bytes, or a size such as 24GiB" },
  );

const device = Type.Object(
  {
    id: deviceId(),
    memory_bytes: nullable(size(), "What it has, in bytes or as 24GiB; null: what is measured."),
    reserve_bytes: nullable(size(), "Kept free of models; null: a share that engines and others need."),
  },
  { additionalProperties: false },
);

export const devicesSchema = optional(
  Type.Array(device, {
    maxItems: limits.devicesMax,
    default: [],
    description:
      "Whose memory models share. Graphics cards are found by themselves; without any card the host's memory counts.",
  }),
);

export const residencySchema = section(
  {
    swap_max_wait_ms: milliseconds(
      0,
      limits.swapMaxWaitMsDefault,
      "A pool whose tasks have waited so long takes the memory of one that is in use.",
    ),
    swap_turn_max_ms: milliseconds(
      0,
      limits.swapTurnMaxMsDefault,
      "What waited when a pool was loaded is started before it goes, for so long at most.",
    ),
  },
  "Which pools stay loaded where they do not all fit.",
);

/** Keys of a pool. */
export const poolDevicesSchema = nullable(
  Type.Array(deviceId(), { maxItems: limits.devicesMax, uniqueItems: true }),
  "Where its model lies; null or empty: every graphics card there is, else host.",
);

export const replicaDevicesSchema = nullable(
  Type.Array(Type.Array(deviceId(), { minItems: 1, maxItems: limits.devicesMax, uniqueItems: true }), {
    minItems: 1,
    maxItems: limits.replicasPerPoolMax,
  }),
  "A list for each replica; null: the cards of devices are dealt out among the replicas.",
);

export const idleUnloadSchema = nullable(
  Type.Integer({ minimum: 0, maximum: msMax }),
  "With preload: false: unloaded after so long without a task; null: never for that.",
);

/** Of the mock engine. */
export const mockMemorySchema = optional(
  Type.Union(size().anyOf, { default: 0, description: "Memory that it counts as, on each of its devices." }),
);
