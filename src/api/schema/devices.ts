/** Wire models of /v1/devices; contracts/openapi/control.yaml says the same. Used by api/devices.ts. */
import { type Static, Type } from "@sinclair/typebox";
import { deviceNamePattern } from "../../domain/devices.ts";
import { limits } from "../../domain/limits.ts";
import { residences } from "../../services/pool-memory.ts";
import { count, epochMs, nullable, oneOf, poolId, strict } from "./wire.ts";

export const Residence = oneOf(residences, {
  description:
    "Whether its engines are in memory. waiting_for_memory: tasks wait until there is room; unloaded: it is loaded when a task comes.",
});

export const DeviceInfo = strict(
  {
    id: Type.String({ description: "host, gpu-0, gpu-1 and so on." }),
    total_bytes: nullable(count("What it has."), "Null: nobody tells it, so it bounds nothing."),
    free_bytes: nullable(count("What pools could take now."), "Null where total_bytes is."),
    reserved_bytes: count("Kept free, and taken by other programs."),
    lent_bytes: count("What another program was given."),
    lent: nullable(
      strict({
        since_ms: epochMs("When it was lent"),
        deadline_ms: epochMs("When what runs is cut, or was"),
      }),
      "Null: it is not lent.",
    ),
    pools: Type.Array(
      strict({
        id: poolId("The pool's id."),
        residence: Residence,
        needs_bytes: count("What it takes of this device when it is loaded, as far as that is known."),
      }),
    ),
  },
  { description: "A device whose memory models share." },
);
export type DeviceBody = Static<typeof DeviceInfo>;

export const DeviceList = strict({ devices: Type.Array(DeviceInfo) });

export const DeviceIdParams = strict({
  id: Type.String({ pattern: deviceNamePattern, description: "The device's id." }),
});

export const LendRequest = strict(
  {
    bytes: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: limits.deviceBytesMax,
        description: "How much of it; all where absent.",
      }),
    ),
    deadline_ms: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.deadlineMsMax,
        description: `After so long what still runs on pools that have to go is cut, and goes on when they are back; ${limits.drainDeadlineMsDefault} where absent.`,
      }),
    ),
  },
  { description: "How a device is lent." },
);
