/**
 * The house rules as a test: five floors with imports going down only, no cycles, no barrels, each library in
 * its one place, nothing that asks the machine for time or chance outside infra, files that own one thing.
 * A rule that fails here is mended in the code, not here.
 */
import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

const root = resolve(import.meta.dir, "..");
const filesBelow = (folder: string): string[] =>
  readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|mjs)$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));

const sources = filesBelow("src").filter((file) => !file.endsWith(".d.ts"));
const everything = [...sources, ...filesBelow("test"), ...filesBelow("scripts"), ...filesBelow("features")];
const textOf = (file: string): string => readFileSync(join(root, file), "utf8");
/** Comments and strings may name what code may not use. */
const codeOf = (file: string): string =>
  textOf(file)
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/(^|[^:])\/\/.*$/gm, "$1");

const importPattern =
  /(?:^|\n)\s*(?:import|export)\s[^;]*?\sfrom\s+"([^"]+)"|import\("([^"]+)"\)|(?:^|\n)import\s+"([^"]+)"/g;
function importsOf(file: string): { specifier: string; target: string | null }[] {
  return [...codeOf(file).matchAll(importPattern)].map((match) => {
    const specifier = match[1] ?? match[2] ?? match[3] ?? "";
    const target = specifier.startsWith(".") ? relative(root, resolve(root, dirname(file), specifier)) : null;
    return { specifier, target };
  });
}

type Floor = "domain" | "ports" | "services" | "infra" | "api" | "app" | "cli" | "main";
const floorOf = (file: string): Floor =>
  file === "src/main.ts" ? "main" : ((file.split("/")[1] ?? "main") as Floor);

/** Which floors a floor may import besides itself. */
const allowed: Readonly<Record<Floor, readonly Floor[]>> = {
  domain: [],
  ports: ["domain"],
  services: ["domain", "ports"],
  infra: ["domain", "ports"],
  api: ["services", "domain", "ports"],
  app: ["domain", "ports", "services", "api", "infra"],
  // infra: the guard alone, which the rule on adapters sees to.
  cli: ["app", "domain", "infra"],
  main: ["cli", "app"],
};
const compositionRoots = [
  "src/app/bootstrap.ts",
  "src/app/bootstrap-models.ts",
  "src/app/bootstrap-pools.ts",
  "src/app/bootstrap-residency.ts",
  "src/app/bootstrap-stores.ts",
];
/** The guard runs before there is an application; it is infra's own entry. */
const guardEntry = "src/cli/guard.ts";

describe("imports", () => {
  test("every relative import names a file that exists, with its extension", () => {
    const broken = everything.flatMap((file) =>
      importsOf(file)
        .filter(({ target }) => target !== null && !existsSync(join(root, target)))
        .map(({ specifier }) => `${file}: ${specifier}`),
    );
    expect(broken).toEqual([]);
  });

  test("go down only (ORCHD-ARCH-1)", () => {
    const wrong = sources.flatMap((file) =>
      importsOf(file)
        .filter(({ target }) => target?.startsWith("src/"))
        .filter(({ target }) => {
          const to = floorOf(target ?? "");
          return to !== floorOf(file) && !allowed[floorOf(file)].includes(to);
        })
        .map(({ target }) => `${file} -> ${target}`),
    );
    expect(wrong).toEqual([]);
  });

  test("only the composition root names adapters, and the guard's entry the process table (ORCHD-ARCH-2)", () => {
    const wrong = sources
      .filter(
        (file) =>
          ["app", "cli", "main"].includes(floorOf(file)) &&
          !compositionRoots.includes(file) &&
          file !== guardEntry,
      )
      .filter((file) => importsOf(file).some(({ target }) => target?.startsWith("src/infra/")));
    expect(wrong).toEqual([]);
  });

  test("within infra a folder imports only itself (ORCHD-ARCH-2)", () => {
    const folderOf = (file: string) => file.split("/").slice(2, -1).join("/");
    const wrong = sources
      .filter((file) => floorOf(file) === "infra")
      .flatMap((file) =>
        importsOf(file)
          .filter(({ target }) => target?.startsWith("src/infra/") && folderOf(target) !== folderOf(file))
          .map(({ target }) => `${file} -> ${target}`),
      );
    expect(wrong).toEqual([]);
  });

  test("the application imports nothing of tests and scripts", () => {
    const wrong = sources.filter((file) =>
      importsOf(file).some(({ target }) => target !== null && /^(test|scripts|features)\//.test(target)),
    );
    expect(wrong).toEqual([]);
  });

  test("there are no cycles (ORCHD-ARCH-6)", () => {
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (file: string, path: string[]): void => {
      if (path.includes(file)) {
        cycles.push([...path.slice(path.indexOf(file)), file].join(" -> "));
        return;
      }
      if (done.has(file)) return;
      for (const { target } of importsOf(file))
        if (target?.startsWith("src/")) visit(target, [...path, file]);
      done.add(file);
    };
    for (const file of sources) visit(file, []);
    expect(cycles).toEqual([]);
  });

  test("there are no barrels (ORCHD-ARCH-6)", () => {
    expect(sources.filter((file) => /\/index\.ts$/.test(file))).toEqual([]);
    expect(sources.filter((file) => /^export \* from/m.test(codeOf(file)))).toEqual([]);
  });
});

describe("each thing in its place (ORCHD-ARCH-3, ORCHD-ARCH-4)", () => {
  const places: readonly { what: string; pattern: RegExp; where: RegExp }[] = [
    { what: "Elysia", pattern: /from "(elysia|@elysiajs\/[^"]+)"/, where: /^src\/(app|api)\// },
    {
      what: "pino and prom-client",
      pattern: /from "(pino|prom-client)[/"]/,
      where: /^src\/infra\/telemetry\//,
    },
    { what: "Bun.spawn", pattern: /Bun\.spawn/, where: /^src\/infra\/bun-process\.ts$/ },
    { what: "bun:sqlite", pattern: /from "bun:sqlite"/, where: /^src\/infra\/sqlite\// },
    { what: "process.exit", pattern: /process\.exit\b/, where: /^src\/main\.ts$/ },
    { what: "the clock", pattern: /\bDate\.now\(|\bperformance\.now\(|new Date\(\)/, where: /^src\/infra\// },
    { what: "timers", pattern: /\b(setTimeout|setInterval)\(|AbortSignal\.timeout/, where: /^src\/infra\// },
    { what: "chance", pattern: /Math\.random\(|crypto\.randomUUID|\brandomBytes\(/, where: /^src\/infra\// },
    { what: "console", pattern: /\bconsole\.\w+\(/, where: /^$/ },
  ];
  for (const { what, pattern, where } of places) {
    test(`${what} only where it belongs`, () => {
      const wrong = sources.filter((file) => !where.test(file) && pattern.test(codeOf(file)));
      expect(wrong).toEqual([]);
    });
  }

  test("the domain is pure: no I/O, no promises (ORCHD-ARCH-5)", () => {
    const impure = /from "(node|bun):|\basync\b|\bawait\b|new Promise|\bprocess\.|\bBun\./;
    expect(sources.filter((file) => floorOf(file) === "domain" && impure.test(codeOf(file)))).toEqual([]);
  });

  test("no empty catch, no class names compared", () => {
    const wrong = sources.filter((file) => /catch\s*(\([^)]*\))?\s*\{\s*\}/.test(codeOf(file)));
    expect(wrong).toEqual([]);
    expect(sources.filter((file) => /constructor\.name/.test(codeOf(file)))).toEqual([]);
  });
});

describe("files", () => {
  test("are named in kebab-case", () => {
    const kebab = /^[a-z0-9]+(-[a-z0-9]+)*(\.(test|d|steps))?\.(ts|mjs)$/;
    expect(everything.filter((file) => !kebab.test(file.split("/").pop() ?? ""))).toEqual([]);
  });

  test("own one thing: at most 450 lines in the source (ORCHD-ARCH-6)", () => {
    const long = sources
      .map((file) => ({ file, lines: textOf(file).split("\n").length }))
      .filter(({ lines }) => lines > 450);
    expect(long).toEqual([]);
  });

  test("open by saying what they own (ORCHD-ARCH-6)", () => {
    expect(sources.filter((file) => !/^(#!.*\n)?\/\*\*/.test(textOf(file)))).toEqual([]);
  });

  test("are all used: no source file that no source imports (ORCHD-ARCH-6)", () => {
    const targetsOf = (files: readonly string[]) =>
      new Set(files.flatMap((file) => importsOf(file).map(({ target }) => target)));
    const imported = targetsOf(sources);
    // The events of a stream as the contract has them: nothing validates them at run time, the tests compare them.
    const forTests = ["src/api/schema/stream.ts"];
    expect(sources.filter((file) => file !== "src/main.ts" && !imported.has(file))).toEqual(forTests);
    expect(forTests.filter((file) => !targetsOf(everything).has(file))).toEqual([]);
  });

  test("of domain, ports, services and infra stand in the list of modules, and nothing else does", () => {
    const specification = readFileSync(join(root, ".specs/10_architecture.md"), "utf8");
    const modules = /```\nsrc\/main\.ts[\s\S]*?```/.exec(specification)?.[0] ?? "";
    for (const floor of ["domain", "ports", "services", "infra"]) {
      const [, listed = ""] = new RegExp(`\nsrc/${floor}/ ([\\s\\S]*?)\n(?:src/|\`\`\`)`).exec(modules) ?? [];
      const names = listed.replace(/: interfaces by role/, "").replace(/\/ \([^)]*\)/g, "/");
      const found = sources
        .filter((file) => file.startsWith(`src/${floor}/`))
        .map((file) => file.split("/").slice(2))
        .map(([first = "", ...below]) => (below.length > 0 ? `${first}/` : first.replace(/\.ts$/, "")));
      const named = [...names.matchAll(/[a-z][a-z0-9-]*\/?/g)].map(([name]) => name);
      expect(named.sort()).toEqual([...new Set(found)].sort());
    }
  });

  test("name no place outside the project", () => {
    const outside =
      /\.\.\/shared\b|(?:^|[\s"'`(=])\/(?:work|farm)\/|\/\/(?:deb|registry)\.[a-z]+\.(?:org|com)/m;
    const tracked = Bun.spawnSync(["git", "ls-files"], { cwd: root }).stdout.toString().split("\n");
    const wrong = tracked
      .filter((file) => file !== "" && file !== "package-lock.json" && file !== "test/tidy.test.ts")
      .filter((file) => existsSync(join(root, file)) && statSync(join(root, file)).size < 1_000_000)
      .filter((file) => outside.test(textOf(file)));
    expect(wrong).toEqual([]);
  });
});

describe("tests", () => {
  const tests = everything.filter((file) => /^(test|features)\//.test(file) && file !== "test/tidy.test.ts");

  test("are all run: none focused, skipped or left to do", () => {
    const pattern = /\b(?:test|it|describe)\.(?:only|skip|todo|if|skipIf|todoIf)\b/;
    expect(tests.filter((file) => pattern.test(codeOf(file)))).toEqual([]);
  });

  test("await events and never sleep", () => {
    const pattern = /Bun\.sleep|setTimeout\(\s*(?:r|resolve|done)\b|timers\/promises/;
    // The one bounded wait, and a program that tests start and that answers late because it is told to.
    const mayWait = ["test/support/wait.ts", "test/support/lying-llama-server.ts"];
    expect(tests.filter((file) => !mayWait.includes(file) && pattern.test(codeOf(file)))).toEqual([]);
  });
});
