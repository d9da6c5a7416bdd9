/**
 * Why the daemon cannot start although its configuration is valid: the message is for the operator and says
 * what to do. Thrown by what runs at start, printed by cli/serve.ts, which exits with 1.
 */

export class StartError extends Error {
  readonly startErrorKind: "locked" | "state_dir" | "key_file" | "address" | "artifacts";

  constructor(kind: StartError["startErrorKind"], message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.startErrorKind = kind;
  }
}

export function isStartError(error: unknown): error is StartError {
  return error instanceof Error && typeof (error as Partial<StartError>).startErrorKind === "string";
}

/** The operating system's code (ENOENT, EACCES …), where the error has one. */
export function systemCode(error: unknown): string | null {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return null;
  return error.code;
}

/** Why the operating system does not let us listen there, for the operator; null: the address is not to blame. */
export function addressError(
  cause: unknown,
  { host, port }: { readonly host: string; readonly port: number },
): StartError | null {
  const place = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const message = addressMessage(systemCode(cause), place, port);
  return message === null ? null : new StartError("address", message, { cause });
}

function addressMessage(code: string | null, place: string, port: number): string | null {
  if (code === "EADDRINUSE")
    return `address in use: ${place}; stop what listens there, or choose another with --addr`;
  if (code === "EADDRNOTAVAIL") return `${place} is no address of this machine; change --addr`;
  if (code === "EACCES" && port < 1024)
    return `not permitted to listen on ${place}; choose a port from 1024 on with --addr`;
  return null;
}
