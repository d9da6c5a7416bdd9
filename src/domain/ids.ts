/** Shapes of the identifiers that cross the HTTP edge. Randomness comes through ports/clock.ts. */
import { limits } from "./limits.ts";

const poolId = /^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$/;
const correlationId = new RegExp(`^[A-Za-z0-9._:-]{1,${limits.correlationIdCharsMax}}$`);

/** Lower-case letters, digits and `. _ -`, 1 to 64 characters, alphanumeric at both ends. */
export const isPoolId = (text: string): boolean => poolId.test(text);
export const isCorrelationId = (text: string): boolean => correlationId.test(text);
export const poolIdPattern = poolId.source;
/** RFC 9562 text form, any version. */
export const uuidPattern = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
