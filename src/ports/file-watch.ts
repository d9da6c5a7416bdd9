/** Whether a file, or what lies in a folder, has changed. infra/file-watch.ts implements it; app/config-watch.ts asks. */

export interface Watched {
  /** Absolute path; null: none. */
  readonly file: string | null;
  /** Absolute path of a folder with models; null: none is looked at. */
  readonly modelsDir: string | null;
}

export interface Following {
  /** A text that differs where the file's bytes do, or names or sizes of the models; it reads them now. */
  print(): string;
  /** Nothing is told any more. Idempotent. */
  close(): void;
}

export interface FileWatch {
  /**
   * `stirred` is told, often more than once, when something happens near what is watched: it may have changed. Where the
   * system tells nothing, nothing is told: whoever needs to know looks from time to time.
   */
  follow(watched: Watched, stirred: () => void): Following;
}
