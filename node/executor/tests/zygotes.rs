//! Jobs in containers where interpreters are started ahead: everything is as it otherwise is.
//!
//! The whole suite of the executors runs here too, after a first job, so that an interpreter waits. What follows it
//! compares programs that begin in one that waited with the same programs in one that was started for them.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod suite;
mod common;

use common::engine::{with_options, with_two};
use quorun_executor::{Executor, Task};
use quorun_ledger::job::JobResult;

fn with<F>(test: impl FnOnce(Executor) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    with_options(
        |options| options.zygotes = true,
        |executor| async move {
            let first = common::run(&executor, common::task(common::python(), "")).await;
            common::assert_prints(&first, b"");
            test(executor).await;
        },
    );
}

suite!(with);

/// Runs a task until it has begun in an interpreter that waited. A run that comes at the very moment in which that would
/// have been started does without.
async fn in_zygote(executor: &Executor, task: &Task) -> JobResult {
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        // The one before it may have been of another kind, or the last of its sandbox.
        let mut ahead = common::task(task.language.clone(), "");
        ahead.spec.files[0].name.clone_from(&task.language.source);
        ahead.spec.entrypoint.clone_from(&task.language.source);
        ahead.spec.limits = task.spec.limits;
        common::assert_prints(&common::run(executor, ahead).await, b"");
        common::sandboxes(executor, |counts| counts["busy"] == 0).await;
        let before = executor.sandboxes()["zygotes"];
        let result = common::run(executor, task.clone()).await;
        if executor.sandboxes()["zygotes"] > before {
            return result;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never began in a zygote"
        );
    }
}

/// What a program may not tell by, whether its interpreter had waited.
fn seen(result: &JobResult) -> String {
    let outcome = &result.outcome;
    format!(
        "{:?}, exit code {:?}, signal {:?}, {:?}\n--- stdout, truncated: {}\n{}\n--- stderr, truncated: {}\n{}",
        outcome.verdict,
        outcome.exit_code,
        outcome.signal,
        outcome.message,
        result.output.stdout_truncated,
        String::from_utf8_lossy(&result.output.stdout),
        result.output.stderr_truncated,
        String::from_utf8_lossy(&result.output.stderr),
    )
}

/// That two texts are the same but for the addresses in them, which differ from run to run.
#[track_caller]
fn assert_same(name: &str, left: &str, right: &str) {
    let plain = |text: &str| {
        let mut parts = text.split("0x");
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            plain += "0x…";
            plain += part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        }
        plain
    };
    let (left, right) = (plain(left), plain(right));
    for (left, right) in left.lines().zip(right.lines()) {
        assert_eq!(left, right, "{name}");
    }
    assert_eq!(left, right, "{name}");
}

/// A program of the comparison.
struct Program {
    name: &'static str,
    source: &'static [u8],
    stdin: &'static [u8],
    files: &'static [(&'static str, &'static str)],
    limit: fn(&mut quorun_ledger::Limits),
}

const fn program(name: &'static str, source: &'static str) -> Program {
    Program {
        name,
        source: source.as_bytes(),
        stdin: b"",
        files: &[],
        limit: |_| {},
    }
}

/// Runs each program in both ways. With `contains` a program's output must hold something, or the comparison proves little.
fn compare(
    language: fn() -> Language,
    source: &'static str,
    programs: &'static [(Program, &'static str)],
) {
    with_two(
        |options| options.zygotes = true,
        move |zygotes, plain| async move {
            for (program, contains) in programs {
                let mut language = language();
                language.source = source.into();
                let mut task = common::task(language, program.source);
                task.spec.files[0].name = source.into();
                task.spec.entrypoint = source.into();
                task.spec.stdin = Bytes::from_static(program.stdin);
                (program.limit)(&mut task.spec.limits);
                for (name, content) in program.files {
                    task.spec.files.push(SourceFile {
                        name: (*name).into(),
                        content: Bytes::from_static(content.as_bytes()),
                    });
                }
                let ordinary = seen(&common::run(&plain, task.clone()).await);
                assert!(ordinary.contains(contains), "{}: {ordinary}", program.name);
                let ahead = seen(&in_zygote(&zygotes, &task).await);
                assert_same(program.name, &ahead, &ordinary);
            }
            assert_eq!(
                zygotes.sandboxes()["discarded"],
                plain.sandboxes()["discarded"]
            );
        },
    );
}

#[test]
fn a_python_program_cannot_tell_that_its_interpreter_waited() {
    compare(common::python, "main.py", PYTHON);
}

#[test]
fn a_node_program_cannot_tell_that_its_interpreter_waited() {
    compare(common::node, "main.js", NODE);
}

#[rustfmt::skip]
const PYTHON: &[(Program, &str)] = &[
    (program("hello", "print('hello')"), "hello"),
    (program("both streams, unbuffered or not", "import sys\nfor n in range(3): print(n); print(-n, file=sys.stderr)"), "-2"),
    (program("an exit code", "import sys; print('x'); sys.exit(3)"), "Some(3)"),
    (program("an exit message", "import sys; sys.exit('gone wrong')"), "gone wrong"),
    (program("an exit without ceremony", "import os; print('lost?'); os._exit(7)"), "Some(7)"),
    (program("an exception", "def f(x):\n    return 1 / x\n\ndef g():\n    f(0)\n\ng()\n"), "line 2, in f"),
    (program("a chain of exceptions", "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e\n"), "direct cause"),
    (program("a syntax error", "print('never')\nif True\n    pass\n"), "SyntaxError"),
    (program("wrong indentation", "def f():\nreturn 1\n"), "IndentationError"),
    (Program { source: b"# -*- coding: latin-1 -*-\nprint(ascii('\xe4\xf6'))\n", ..program("another encoding", "") }, "\\xe4\\xf6"),
    (Program { source: b"print('\xe4')\n", ..program("no encoding", "") }, "SyntaxError"),
    (Program { source: b"\xef\xbb\xbfprint('mark')\n", ..program("a byte order mark", "") }, "mark"),
    (Program { source: b"print(1)\0print(2)\n", ..program("a null byte", "") }, "null bytes"),
    (program("a program without a last newline", "if 1:\n  print(1)\n  # end"), "1"),
    (program("the main module", "\
import sys
for name, value in list(globals().items()):
    print(name, type(value), value if isinstance(value, (str, dict, type(None))) and name != '__builtins__' else '')
print(__loader__.name, __loader__.path, __file__, sys.modules['__main__'].__dict__ is globals())
"), "/box/main.py"),
    (program("the interpreter's state", "\
import sys
print(sys.argv, sys.orig_argv, sys.path, sys.flags, sys.executable, sys.prefix, sys.base_prefix)
print(sorted(sys.modules), sorted(sys.path_importer_cache), sys.meta_path, sys.path_hooks, sys._xoptions, sys.warnoptions)
print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.dont_write_bytecode, sys.gettrace(), sys.getprofile())
print(sys.excepthook, sys.displayhook, hasattr(sys, 'ps1'), hasattr(sys, 'last_exc'), sys.getdlopenflags())
import gc, threading, warnings, atexit, builtins
print(gc.isenabled(), gc.get_threshold(), [t.name for t in threading.enumerate()], warnings.filters, atexit._ncallbacks(), sorted(dir(builtins)))
for stream in sys.stdin, sys.stdout, sys.stderr:
    print(stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.isatty(), stream.fileno(), stream.mode)
import site
print(site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE, site.PREFIXES)
"), "['main.py']"),
    (program("the process", "\
import os, posix, resource, signal, sys
print(sorted(os.environ.items()), sorted(posix.environ.items()))
print(os.getcwd(), os.umask(0), os.getpid() == os.getsid(0) == os.getpgrp(), os.getppid())
print(os.getuid() == os.geteuid() == os.getgid() == os.getegid() and os.getuid() > 9999, os.getgroups(), os.nice(0))
print([(n, signal.getsignal(n)) for n in range(1, 65) if n not in (9, 19, 32, 33)], signal.pthread_sigmask(signal.SIG_BLOCK, []))
print([resource.getrlimit(n) for n in range(16)], os.sched_getaffinity(0) and True)
print(sorted(os.listdir('/proc/self/fd')), sorted(n for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())))
status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines())
print([(n, status[n]) for n in ('Name', 'Umask', 'Threads', 'SigQ', 'SigBlk', 'SigIgn', 'SigCgt', 'CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters') if n in status and n != 'SigQ'])
print(open('/proc/self/cmdline').read().split('\\0'), open('/proc/self/oom_score_adj').read(), sorted(os.listdir('.')), os.listdir('/tmp'))
print(open('/proc/net/unix').read().count('\\n'))
"), "main.py"),
    (Program { stdin: b"one\ntwo\nrest\nof it", ..program("stdin", "import sys\nprint(repr(input('? ')), sys.stdin.readline(), sys.stdin.read())") }, "rest"),
    (Program { stdin: b"", ..program("no stdin", "print(input())") }, "EOFError"),
    (program("ended by SIGINT", "import os, signal, time\nprint('x')\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"), "KeyboardInterrupt"),
    (program("ended by SIGTERM", "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"), "SIGTERM"),
    (program("ended by SIGSEGV", "import ctypes\nctypes.string_at(0)"), "SIGSEGV"),
    (program("aborted", "import os\nos.abort()"), "SIGABRT"),
    (program("handlers of signals", "import signal, os\nsignal.signal(signal.SIGUSR1, lambda n, f: print('got', n))\nos.kill(os.getpid(), signal.SIGUSR1)\nprint('on')"), "got 10"),
    (program("at the end", "import atexit, threading, time\natexit.register(print, 'a')\natexit.register(print, 'b')\nthreading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nclass D:\n    def __del__(self): print('del')\nd = D()\nprint('main')"), "thread\nb\na\ndel"),
    (program("an exception in a thread", "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t'); t.start(); t.join(); print('on')"), "ZeroDivisionError"),
    (program("processes by fork", "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    m.set_start_method('fork')\n    with m.Pool(2) as p: print(p.map(f, range(5)))"), "[0, 1, 4, 9, 16]"),
    (program("processes by spawn", "import multiprocessing as m\nprint('imported', __name__, flush=True)\ndef f(x): return x * x\nif __name__ == '__main__':\n    m.set_start_method('spawn')\n    with m.Pool(1) as p: print(p.map(f, range(5)))"), "imported __mp_main__"),
    (program("processes by forkserver", "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n    m.set_start_method('forkserver')\n    with m.Pool(1) as p: print(p.map(f, range(5)))"), "[0, 1, 4, 9, 16]"),
    (program("another python", "import subprocess, sys\ncode = 'import sys, os; print(sys.argv, sys.path, sorted(sys.modules), sorted(os.environ.items()), sorted(os.listdir(\"/proc/self/fd\")))'\nprint(subprocess.run([sys.executable, '-c', code, 'x'], capture_output=True, text=True, close_fds=False))\nsys.stdout.flush()\nsubprocess.run(['env'])"), "returncode=0"),
    (Program { files: &[("helper.py", "import __main__\nprint(__file__, __name__, hasattr(__main__, 'x'))\ndef fail(): raise RuntimeError('in helper')\n"), ("pack/__init__.py", ""), ("pack/part.py", "from . import __name__ as n\nprint(n)\n")],
        ..program("modules beside it", "x = 1\nimport helper, pack.part, sys\nprint(sorted(sys.path_importer_cache))\nhelper.fail()\n") }, "in helper"),
    (Program { files: &[("os.py", "raise SystemExit('not this')"), ("random.py", "print('mine')"), ("sitecustomize.py", "print('no')"), ("usercustomize.py", "print('no')")],
        ..program("modules of the names of others", "import os, random\nprint(os.__file__)\nimport usercustomize") }, "mine"),
    (Program { files: &[("usercustomize.py", "x = 1\n"), ("quorun.py", "")], ..program("a late customization", "import usercustomize as u, sitecustomize as s\nprint(u.__file__)\nprint(s.__file__)") }, "/box/usercustomize.py"),
    (program("the depth of recursion", "import sys\ndef f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(f(0))\ndef g(): g()\ng()"), "RecursionError"),
    (program("frames", "import sys, inspect, traceback\nframe = sys._getframe()\nprint(frame.f_back, frame.f_code, len(inspect.stack()), inspect.getsource(sys.modules['__main__'])[:20])\ntraceback.print_stack()"), "main.py"),
    (program("warnings", "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)\nassert False, 'end'"), "careful"),
    (program("pickles and data classes", "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nprint(pickle.loads(pickle.dumps(P(3))), P.__module__, pickle.dumps(P(3)))"), "__main__"),
    (program("annotations and docs", "'''What this is'''\nx: int = 3\nprint(__doc__, __annotations__, __spec__, __package__, __builtins__)"), "What this is"),
    (program("asyncio", "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    p = await asyncio.create_subprocess_exec('echo', 'child', stdout=-1)\n    print(await p.communicate())\nasyncio.run(f())"), "child"),
    (Program { limit: |limits| limits.processes = 10, ..program("as many threads as allowed", "import threading\nend = threading.Event()\nn = 0\ntry:\n    while True: threading.Thread(target=end.wait).start(); n += 1\nexcept RuntimeError as e: print(n, e)\nend.set()") }, "9 "),
    (Program { limit: |limits| limits.open_files = 40, ..program("as many files as allowed", "import os\nfds = []\ntry:\n    while True: fds.append(os.open('/dev/null', 0))\nexcept OSError as e: print(len(fds), fds[0], fds[-1], e)") }, "37 3 39"),
    (Program { limit: |limits| limits.file_kb = Some(10), ..program("as large a file as allowed", "import os\nf = open('x', 'wb', 0)\ntry:\n    while True: f.write(bytes(1024))\nexcept OSError as e: print(os.path.getsize('x'), e)") }, "10240"),
    (Program { limit: |limits| limits.output_kb = 2, ..program("more than is kept", "print('x' * 5000)") }, "stdout, truncated: true"),
    (Program { limit: |limits| limits.output_kb = 1, ..program("far more than is kept", "while True: print('x' * 1000)") }, "OutputLimit"),
    (Program { limit: |limits| limits.cpu_ms = 200, ..program("an endless loop", "while True: pass") }, "200 ms of CPU"),
    (Program { limit: |limits| limits.wall_ms = 200, ..program("an endless sleep", "import time\nprint('x', flush=True)\ntime.sleep(60)") }, "200 ms of wall"),
    (Program { limit: |limits| limits.stack_kb = 512 << 10, ..program("a large stack", "import resource, threading, sys\nprint(resource.getrlimit(resource.RLIMIT_STACK), threading.stack_size())\nsys.setrecursionlimit(60000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000), sorted([(0, 1)] * 3, key=lambda x: x))") }, "50000"),
    (program("time goes on from here", "import time\nprint(time.process_time() < 2, time.time() > 1.6e9, time.thread_time() < 2)"), "True True True"),
];

#[rustfmt::skip]
const NODE: &[(Program, &str)] = &[
    (program("hello", "console.log('hello'); console.error('there')"), "hello"),
    (program("an exit code", "process.exitCode = 3; console.log('x')"), "Some(3)"),
    (program("an exception", "function f() { throw new Error('thrown') }\nf()"), "thrown"),
    (program("a rejection", "Promise.reject(new Error('rejected'))"), "rejected"),
    (program("a syntax error", "let let = 1"), "SyntaxError"),
    (program("the process", "\
const fs = require('fs');
console.log(process.argv, process.execArgv, process.execPath, process.title, process.cwd(), process.config.variables.napi_build_version);
console.log(Object.entries(process.env).sort(), Object.keys(process).sort(), process._preload_modules);
console.log(Object.keys(require.cache), module.paths, module.id, module.parent, module.children, require.main === module, __filename, __dirname);
console.log(fs.readdirSync('/proc/self/fd').sort().slice(0, 3), fs.readdirSync('.'), fs.readdirSync('/tmp'), process.ppid, process.umask().toString(8));
console.log(fs.readdirSync('/proc').filter((n) => /^[0-9]+$/.test(n) && n != 1 && n != process.pid), fs.readFileSync('/proc/self/cmdline', 'utf8').split('\\0'));
console.log(Object.getOwnPropertyNames(globalThis).sort(), process.listenerCount('exit'), process.memoryUsage().rss > 0, process.resourceUsage !== undefined);
console.log(fs.readdirSync('/proc/self/task').length, process.stdout.constructor.name, process.stdin.constructor.name, process.stdin.readableFlowing);
"), "/box/main.js"),
    (Program { stdin: b"some\ninput", ..program("stdin", "process.stdin.on('data', (d) => console.log(String(d))).on('end', () => console.log('end'))") }, "input"),
    (Program { stdin: b"some\ninput", ..program("stdin at once", "console.log(require('fs').readFileSync(0, 'utf8'))") }, "input"),
    (Program { files: &[("package.json", "{\"type\": \"module\"}"), ("other.js", "export const x = 42")], ..program("a module", "import { x } from './other.js'; import fs from 'fs';\nconsole.log(x, import.meta.url, typeof fs.readFileSync, typeof require); await 1; console.log('after')") }, "file:///box/main.js"),
    (Program { files: &[("other.js", "module.exports = { parent: module.parent.id, file: __filename }"), ("node_modules/pack/index.js", "module.exports = 'pack'")], ..program("modules beside it", "console.log(require('./other'), require('pack'), Object.keys(require.cache))") }, "pack"),
    (program("a worker", "const { Worker, isMainThread, parentPort } = require('worker_threads');\nif (isMainThread) new Worker(__filename).on('message', (m) => console.log(m)).on('exit', (c) => console.log('exit', c));\nelse parentPort.postMessage([process.argv.length, Object.keys(require.cache), Object.keys(process.env).sort()])"), "exit 0"),
    (program("a child", "const { fork } = require('child_process');\nif (process.argv[2]) process.send([process.argv, process.execArgv, Object.keys(process.env).sort()]);\nelse fork(__filename, ['x']).on('message', (m) => console.log(m)).on('exit', (c) => console.log('exit', c))"), "exit 0"),
    (program("ended by a signal", "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 60000)"), "SIGTERM"),
    (program("handlers of signals", "process.on('SIGUSR2', () => { console.log('got it'); process.exit(4) }); process.kill(process.pid, 'SIGUSR2'); setTimeout(() => {}, 60000)"), "got it"),
    (program("at the end", "process.on('exit', (c) => console.log('exit', c)); setImmediate(() => { console.log('immediate'); setTimeout(() => console.log('timer'), 20) }); process.nextTick(() => console.log('tick')); Promise.resolve().then(() => console.log('then'))"), "tick\nthen\nimmediate\ntimer\nexit 0"),
    (Program { limit: |limits| limits.cpu_ms = 300, ..program("an endless loop", "for (;;);") }, "300 ms of CPU"),
];

#[test]
fn what_a_job_brings_for_its_interpreter_is_heeded() {
    with(|executor| async move {
        let run = async |change: &(dyn Fn(&mut Task) + Sync)| {
            let source = "import sys, os; print(sys.argv[1:], sys.flags.hash_randomization, 'late' in sys.modules, os.environ.get('A'))";
            let mut task = common::task(common::python(), source);
            change(&mut task);
            let before = executor.sandboxes()["zygotes"];
            let result = common::run(&executor, task).await;
            assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
            // An interpreter that waited has not seen what this job has of its own: it is not for it.
            assert_eq!(executor.sandboxes()["zygotes"], before);
            String::from_utf8(result.output.stdout.to_vec()).unwrap()
        };
        for _ in 0..3 {
            let printed = run(&|task| task.spec.args = vec!["a".into()]).await;
            assert_eq!(printed, "['a'] 1 False None\n");
            let variable = |name: &'static str, value: &'static str| {
                move |task: &mut Task| {
                    task.spec.env.insert(name.into(), value.into());
                }
            };
            assert_eq!(run(&variable("A", "x")).await, "[] 1 False x\n");
            assert_eq!(
                run(&variable("PYTHONHASHSEED", "0")).await,
                "[] 0 False None\n"
            );
            assert_eq!(
                run(&variable("QUORUN_ZYGOTE", "1")).await,
                "[] 1 False None\n"
            );
            let hidden = |task: &mut Task| {
                for (name, content) in [
                    (".local/lib/python3.13/site-packages/late.py", ""),
                    (
                        ".local/lib/python3.13/site-packages/usercustomize.py",
                        "import late",
                    ),
                ] {
                    task.spec.files.push(SourceFile {
                        name: name.into(),
                        content: Bytes::from_static(content.as_bytes()),
                    });
                }
            };
            assert_eq!(run(&hidden).await, "[] 1 True None\n");
        }
    });
}

#[test]
fn an_interpreter_that_ends_instead_of_waiting_is_no_harm() {
    with(|executor| async move {
        let mut language = common::python();
        // Without its hook it looks for a program that is not there.
        language
            .zygote
            .insert("PYTHONPATH".into(), "/nowhere".into());
        for number in 0..4 {
            let task = common::task(language.clone(), format!("print({number})"));
            let result = common::run(&executor, task).await;
            common::assert_prints(&result, format!("{number}\n").as_bytes());
            common::sandboxes(&executor, |counts| counts["busy"] == 0).await;
        }
        assert_eq!(executor.sandboxes()["discarded"], 0);
    });
}

#[test]
fn a_program_that_does_not_wait_is_no_harm() {
    with(|executor| async move {
        // It would never end by itself, and takes the first job's place only if it was started for it.
        let mut language = common::language("sleep", None, &["sleep", "1000"]);
        language.zygote.insert("A".into(), "1".into());
        for _ in 0..3 {
            let mut task = common::task(language.clone(), "");
            task.spec.limits.wall_ms = 200;
            let result = common::run(&executor, task).await;
            assert_eq!(result.outcome.verdict, Verdict::TimeLimit, "{result:?}");
            common::sandboxes(&executor, |counts| counts["busy"] == 0).await;
        }
        let result = common::run(&executor, common::task(common::bash(), "echo on")).await;
        common::assert_prints(&result, b"on\n");
        assert_eq!(executor.sandboxes()["zygotes"], 0);
        assert_eq!(executor.sandboxes()["discarded"], 0);
    });
}

#[test]
fn test_cases_begin_in_zygotes_too() {
    with(|executor| async move {
        let expected: Vec<String> = (0..20).map(|n| format!("{}\n", n * n)).collect();
        let stdin: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut task = common::task(common::python(), "print(int(input()) ** 2)");
        let cases: Vec<_> = stdin
            .iter()
            .zip(&expected)
            .map(|(stdin, expected)| (stdin.as_str(), Some(expected.as_str())))
            .collect();
        task.spec.tests = common::cases(&cases);
        let result = common::run(&executor, task).await;
        assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
        assert_eq!(result.output.tests.len(), 20);
    });
}

#[test]
fn cpu_and_wall_clock_time_are_the_program_s() {
    with(|executor| async move {
        let task = common::task(common::python(), "print('x')");
        let result = in_zygote(&executor, &task).await;
        // The interpreter waited for as long as the other jobs took; none of that is here.
        let source = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(0.2)";
        let busy = in_zygote(&executor, &common::task(common::python(), source)).await;
        assert!(
            (300_000..20_000_000).contains(&busy.outcome.cpu_us),
            "{busy:?}"
        );
        assert!(busy.outcome.wall_us >= 500_000, "{busy:?}");
        assert!(
            result.outcome.cpu_us > 0 && result.outcome.wall_us > 0,
            "{result:?}"
        );
        assert!(
            (4000..200_000).contains(&result.outcome.memory_kb),
            "{result:?}"
        );
    });
}
