// Lets an interpreter that was started ahead wait for its program (`zygote` in languages.toml).
//
// NODE_OPTIONS has node load this at the end of its start, before it looks for the program. Nothing of it stays. Worker
// threads of the program load it again, and have nothing to wait for.
'use strict';
delete require.cache[__filename];
process._preload_modules.length = 0;
if (process.env.QUORUN_ZYGOTE) {
  delete process.env.QUORUN_ZYGOTE;
  delete process.env.NODE_OPTIONS;
  const fs = require('fs');
  fs.writeSync(4, '!');
  fs.closeSync(4);
  if (fs.readSync(3, Buffer.alloc(1)) !== 1) process.reallyExit(1);
  fs.closeSync(3);
}
