/**
 * /v1/devices: whose memory models share, and lending it to other programs. Parse, ask services/device-lending.ts, shape the
 * answer. Lending is for admins. The wire models are in schema/devices.ts.
 */
import { Elysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { DeviceLending, DeviceView } from "../services/device-lending.ts";
import type { RequestContexts } from "./request-context.ts";
import { type DeviceBody, DeviceIdParams, DeviceInfo, DeviceList, LendRequest } from "./schema/devices.ts";

export interface DevicesRoutesDeps {
  readonly lending: Pick<DeviceLending, "list" | "lend" | "giveBack">;
  readonly contexts: RequestContexts;
}

export function devicesRoutes({ lending, contexts }: DevicesRoutesDeps) {
  const assertAdmin = (request: Request): void => {
    if (!contexts.caller(request).admin)
      throw new OrchestratorError("FORBIDDEN", "devices are lent by admins only: use an admin's key");
  };
  return new Elysia({ name: "devices" })
    .get("/v1/devices", () => ({ devices: lending.list().map(bodyOf) }), {
      response: { 200: DeviceList },
      detail: { tags: ["devices"], summary: "Devices whose memory models share" },
    })
    .post(
      "/v1/devices/:id/lend",
      ({ params, body, request, status }) => {
        assertAdmin(request);
        const deadlineMs = body.deadline_ms ?? limits.drainDeadlineMsDefault;
        return status(202, bodyOf(lending.lend(params.id, body.bytes ?? null, deadlineMs)));
      },
      {
        params: DeviceIdParams,
        body: LendRequest,
        response: { 202: DeviceInfo },
        detail: { tags: ["devices"], summary: "Give the memory of a device to another program" },
      },
    )
    .post(
      "/v1/devices/:id/return",
      ({ params, request, status }) => {
        assertAdmin(request);
        return status(202, bodyOf(lending.giveBack(params.id)));
      },
      {
        params: DeviceIdParams,
        response: { 202: DeviceInfo },
        detail: { tags: ["devices"], summary: "Take a lent device back" },
      },
    );
}

const bodyOf = (device: DeviceView): DeviceBody => ({
  id: device.id,
  total_bytes: device.totalBytes,
  free_bytes: device.freeBytes,
  reserved_bytes: device.reservedBytes,
  lent_bytes: device.lentBytes,
  lent:
    device.lent === null
      ? null
      : { since_ms: Math.round(device.lent.sinceMs), deadline_ms: Math.round(device.lent.deadlineMs) },
  pools: device.pools.map(({ id, residence, needsBytes }) => ({ id, residence, needs_bytes: needsBytes })),
});
