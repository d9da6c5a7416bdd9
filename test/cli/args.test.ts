/** The command line: what each argv means, and what is refused with which hint (ORCHD-CLI-1). */
import { describe, expect, test } from "bun:test";
import { parseArgs } from "../../src/cli/args.ts";

const none = {
  addr: undefined,
  config: undefined,
  stateDir: undefined,
  modelsDir: undefined,
  engineBin: undefined,
  logLevel: undefined,
};

describe("commands", () => {
  test.each([[[]], [["serve"]]])("%j serves", (argv) => {
    expect(parseArgs(argv)).toEqual({ command: "serve", flags: none });
  });

  test("every flag, with a blank or =, before or after the command", () => {
    const argv = [
      "--addr",
      "a:1",
      "serve",
      "--config=c",
      "--state-dir",
      "s",
      "--models-dir=m",
      "--engine-bin",
      "e",
      "--log-level=debug",
    ];
    expect(parseArgs(argv)).toEqual({
      command: "serve",
      flags: { addr: "a:1", config: "c", stateDir: "s", modelsDir: "m", engineBin: "e", logLevel: "debug" },
    });
  });

  test("the last one of a flag counts", () => {
    expect(parseArgs(["--addr", "a:1", "--addr", "b:2"])).toEqual({
      command: "serve",
      flags: { ...none, addr: "b:2" },
    });
  });

  test("--check-config and --version", () => {
    expect(parseArgs(["--check-config", "--config", "c"])).toEqual({
      command: "check-config",
      flags: { ...none, config: "c" },
    });
    expect(parseArgs(["--version"])).toEqual({ command: "version" });
    expect(parseArgs(["serve", "--version"])).toEqual({ command: "version" });
  });

  test("--help names every flag and the exit codes", () => {
    const parsed = parseArgs(["--help"]);
    if (parsed.command !== "help") throw new Error(parsed.command);
    for (const flag of [
      "--addr",
      "--config",
      "--state-dir",
      "--models-dir",
      "--engine-bin",
      "--log-level",
      "--check-config",
      "--version",
      "--help",
    ]) {
      expect(parsed.text).toContain(flag);
    }
    expect(parsed.text).toContain("Usage: orchestratord");
    expect(parsed.text).toContain("Exit codes");
  });
});

describe("usage errors", () => {
  const table: [string[], string][] = [
    [["--adr", "x"], "orchestratord: unknown flag --adr; did you mean --addr?"],
    [["--statedir=x"], "orchestratord: unknown flag --statedir; did you mean --state-dir?"],
    [["--hlep"], "orchestratord: unknown flag --hlep; did you mean --help?"],
    [["-x"], "orchestratord: unknown flag -x"],
    [["--xyzzyplugh"], "orchestratord: unknown flag --xyzzyplugh"],
    [["sevre"], "orchestratord: unknown command sevre; did you mean serve?"],
    [["serve", "now"], "orchestratord: unknown argument now"],
    [["--addr"], "orchestratord: option '--addr <host:port>' argument missing"],
    [["--check-config=yes"], "orchestratord: --check-config takes no value"],
  ];
  test.each(table)("%j", (argv, text) => {
    const parsed = parseArgs(argv);
    if (parsed.command !== "usage-error") throw new Error(parsed.command);
    expect(parsed.text.split("\n")[0]).toBe(text);
    expect(parsed.text).toEndWith("See orchestratord --help.");
  });
});
