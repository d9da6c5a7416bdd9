/** What is told of memory, in words: sizes, what never fits, what does not fit now. For logs, failures and refusals. */
import type { Bytes } from "../domain/eviction.ts";

const units = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** 1536 -> 1.5 KiB */
export function sizeText(bytes: number): string {
  let value = Math.max(0, bytes);
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toFixed(value < 10 && unit > 0 ? 2 : 1))} ${units[unit]}`;
}

export const bytesText = (needs: Bytes): string =>
  needs.size === 0
    ? "nothing that is counted"
    : [...needs].map(([deviceId, bytes]) => `${sizeText(bytes)} of ${deviceId}`).join(", ");

/** Of devices where that is too much. */
const lacking = (needs: Bytes, missing: Bytes, has: (deviceId: string) => number): string =>
  [...missing.keys()]
    .map((id) => `${sizeText(needs.get(id) ?? 0)} of ${id}, which has ${sizeText(has(id))} for models`)
    .join(", and ");

export const neverFits = (
  poolId: string,
  needs: Bytes,
  missing: Bytes,
  has: (deviceId: string) => number,
): string =>
  `pool ${poolId} does not fit: it needs ${lacking(needs, missing, has)}; take a smaller model, fewer slots or less ctx, or give it other devices`;

export function noRoomBeside(poolId: string, needs: Bytes, free: (deviceId: string) => number): string {
  const told = [...needs]
    .filter(([id, bytes]) => bytes > free(id))
    .map(([id, bytes]) => `${sizeText(bytes)} of ${id}, where ${sizeText(free(id))} are free`)
    .join(", and ");
  return `there is no room for the new engines of pool ${poolId} beside what is loaded: they need ${told}; use the strategy recreate`;
}

export function noRoomInstead(poolId: string, needs: Bytes, available: (deviceId: string) => number): string {
  const told = [...needs]
    .filter(([id, bytes]) => bytes > available(id))
    .map(([id, bytes]) => `${sizeText(bytes)} of ${id}, which has ${sizeText(available(id))} for models`)
    .join(", and ");
  return `the new engines of pool ${poolId} do not fit: they need ${told}; take a smaller model, or return what is lent`;
}
