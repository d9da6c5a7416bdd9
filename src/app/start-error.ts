/**
 * Why the daemon cannot start although its configuration is valid: the message is for the operator and says
 * what to do. Thrown by what runs at start, printed by cli/serve.ts, which exits with 1.
 */

export class StartError extends Error {
  readonly startErrorKind: "locked" | "state_dir" | "key_file" | "address";

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
