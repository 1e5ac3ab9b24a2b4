"use strict";
// Makes the snapshot behind warm/tsc: Debian's own compiler, unchanged but for three things. It is handed to us instead
// of running at once, it does not remember its working folder, and files of the image's libraries are parsed once, here,
// and never again.
const fs = require("fs");
const path = require("path");
const v8 = require("v8");
const vm = require("vm");

const packages = "/usr/share/nodejs/";
const folder = packages + "typescript/lib";
const file = folder + "/tsc.js";
const start = "ts.executeCommandLine(ts.sys, ts.noop, ts.sys.args);";
const source = fs.readFileSync(file, "utf8");
// The compiler and node both remember the working folder, and the snapshot would remember that of today.
const remember = "ts.memoize(function () { return process.cwd(); })";
for (const part of [start, remember]) {
  if (!source.includes(part)) throw new Error(`${file} does not have ${part}`);
}
const holder = { exports: null };
vm.compileFunction(
  source.replace(start, "holder.exports = ts;").replace(remember, "function () { return process.cwd(); }"),
  ["holder", "require", "__filename", "__dirname"],
  { filename: file },
)(holder, require, file, folder);
const ts = holder.exports;

const parsed = new Map();
let learning = true;
const parse = ts.createSourceFile;
ts.createSourceFile = (name, text, options, ...rest) => {
  if (!name.startsWith(packages)) return parse(name, text, options, ...rest);
  const key = JSON.stringify([name, options]);
  const known = parsed.get(key);
  if (known !== undefined) return known;
  const result = parse(name, text, options, ...rest);
  if (learning) parsed.set(key, result);
  return result;
};

const run = (args) => ts.executeCommandLine(ts.sys, ts.noop, args);

// The compiler ends the process when it is done; while warming up its exit code is only looked at.
const exit = ts.sys.exit;
for (let round = 0; round < 3; round++) {
  let code = -1;
  ts.sys.exit = (value) => { code = value; };
  run(["--types", "node", "--lib", "es2022", "--target", "es2022", "--module", "commonjs", "--esModuleInterop",
    "--skipLibCheck", path.resolve("sample.ts")]);
  if (code !== 0) throw new Error(`the sample does not compile (exit code ${code})`);
}
ts.sys.exit = exit;
learning = false;

v8.startupSnapshot.setDeserializeMainFunction(() => {
  process.chdir("."); // makes node forget
  run(process.argv.slice(2));
});
