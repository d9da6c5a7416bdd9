/**
 * Credentials that the configuration refers to: a file that holds one, or a variable. Called by the parts of app/config
 * that have some (artifacts, pools of remote servers).
 *
 * Always holds: a secret comes from a file or a variable, never from the configuration's text, and no dump of the
 * Config shows it.
 */
import type { ConfigFiles } from "./config-files.ts";
import type { Problems, Segments } from "./config-problems.ts";

/** A text that only who asks for it sees: JSON, the inspector and the log show none of it. */
export class Secret {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  reveal(): string {
    return this.#text;
  }
}

export interface Credential {
  readonly from: "file" | "env";
  /** Absolute path, or the variable's name. */
  readonly name: string;
  readonly secret: Secret;
}

const credentialCharsMax = 512;

export interface CredentialDeps {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly files: ConfigFiles;
  readonly absolute: (path: string) => string;
  readonly problems: Problems;
  readonly warnings: string[];
}

/** `what`_file or `what`_env as the section at `at` has them: one of the two. Null: reported as a problem. */
export function compileCredential(
  at: Segments,
  what: string,
  { file, variable }: { readonly file: string | null; readonly variable: string | null },
  { env, files, absolute, problems, warnings }: CredentialDeps,
): Credential | null {
  if ((file === null) === (variable === null)) {
    const found = file === null ? "neither" : "both";
    problems.atPath(at, `found ${found} of ${what}_file and ${what}_env, expected one of them`);
    return null;
  }
  const path = [...at, file === null ? `${what}_env` : `${what}_file`];
  const name = file === null ? (variable ?? "") : absolute(file);
  const text = (file === null ? env[name] : files.readText(name, 64 * 1024))?.trim();
  if (text === undefined || (file === null && text === "")) {
    problems.atPath(path, file === null ? `the variable ${name} is not set` : `cannot read the file ${name}`);
    return null;
  }
  if (text.length > credentialCharsMax || !/^[\x21-\x7e]+$/.test(text)) {
    const place = file === null ? `the variable ${name}` : `the file ${name}`;
    const expected = `1 to ${credentialCharsMax} visible ASCII characters without blanks`;
    problems.atPath(path, `${place} holds ${text.length} characters, expected ${expected}`);
    return null;
  }
  if (file !== null && ((files.facts(name)?.mode ?? 0) & 0o004) !== 0)
    warnings.push(`the file ${name} with credentials can be read by everyone; chmod 600 it`);
  return { from: file === null ? "env" : "file", name, secret: new Secret(text) };
}
