//! What every executor must do, as a macro: each kind gets the same tests.

macro_rules! suite {
    ($with:path) => {
        use bytes::Bytes;
        use quorun_executor::Stream;
        use quorun_ledger::job::{SourceFile, Verdict};
        use quorun_ledger::language::Language;
        use tokio::sync::mpsc;
        use tokio_util::sync::CancellationToken;

        #[test]
        fn hello() {
            $with(|executor| async move {
                let result =
                    common::run(&executor, common::task(common::python(), "print('hello')")).await;
                common::assert_prints(&result, b"hello\n");
                assert_eq!(result.outcome.exit_code, Some(0));
                assert!(result.outcome.cpu_us > 0);
                assert!(result.outcome.wall_us > 0);
                assert!(result.outcome.memory_kb > 1000);
                let result =
                    common::run(&executor, common::task(common::node(), "console.log('hello')"))
                        .await;
                common::assert_prints(&result, b"hello\n");
            });
        }

        #[test]
        fn many_jobs_share_few_sandboxes() {
            $with(|executor| async move {
                let jobs = (0..12).map(|number| {
                    let executor = executor.clone();
                    async move {
                        let task = common::task(common::bash(), format!("echo {number}"));
                        let result = common::run(&executor, task).await;
                        common::assert_prints(&result, format!("{number}\n").as_bytes());
                    }
                });
                futures::future::join_all(jobs).await;
                let counts = executor.sandboxes();
                assert!(counts["warm"] + counts["busy"] <= 2, "{counts:?}");
            });
        }

        #[test]
        fn stdin_is_read() {
            $with(|executor| async move {
                let mut task = common::task(common::perl(), "print scalar reverse <STDIN>");
                task.spec.stdin = Bytes::from_static(b"abc");
                common::assert_prints(&common::run(&executor, task).await, b"cba");
            });
        }

        #[test]
        fn files_arguments_and_environment_arrive() {
            $with(|executor| async move {
                let source = "open F, '<', 'data/in.txt' or die; print <F>, \"@ARGV\", $ENV{A}, $ENV{B}";
                let mut task = common::task(common::perl(), source);
                task.spec.files.push(SourceFile {
                    name: "data/in.txt".into(),
                    content: Bytes::from_static(b"file "),
                });
                task.spec.args = vec!["one".into(), "two words".into()];
                task.language.env.insert("A".into(), " a".into());
                task.language.env.insert("B".into(), " b".into());
                task.spec.env.insert("B".into(), " changed".into());
                let result = common::run(&executor, task).await;
                common::assert_prints(&result, b"file one two words a changed");
            });
        }

        #[test]
        fn the_environment_is_cleared_and_no_descriptor_leaks() {
            $with(|executor| async move {
                let source = "print join(',', sort keys %ENV), \"\\n\";\
                              opendir D, '/proc/self/fd'; my $own = fileno(D) // 3;\
                              print join(',', grep { /^\\d+$/ && $_ != $own } sort readdir D)";
                let result = common::run(&executor, common::task(common::perl(), source)).await;
                // perl keeps its script open as 3, and the folder as 4.
                let stdout = String::from_utf8(result.output.stdout.to_vec()).unwrap();
                let (names, descriptors) = stdout.split_once('\n').unwrap();
                assert_eq!(names, "HOME,LANG,PATH,TMPDIR");
                assert!(["0,1,2", "0,1,2,3", "0,1,2,3,4"].contains(&descriptors), "{descriptors}");
            });
        }

        #[test]
        fn exit_codes_are_kept() {
            $with(|executor| async move {
                for code in [1, 42, 127, 255] {
                    let task = common::task(common::bash(), format!("exit {code}"));
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::RuntimeError);
                    assert_eq!(result.outcome.exit_code, Some(code));
                    assert_eq!(result.outcome.signal, None);
                }
            });
        }

        #[test]
        fn signals_are_kept() {
            $with(|executor| async move {
                for signal in [1, 6, 9, 11, 13, 15] {
                    let task = common::task(common::perl(), format!("kill {signal}, $$; sleep 60"));
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                    assert_eq!(result.outcome.signal, Some(signal));
                    assert_eq!(result.outcome.exit_code, None);
                    assert!(result.outcome.message.unwrap().contains("SIG"));
                }
            });
        }

        #[test]
        fn an_endless_loop_is_a_time_limit() {
            $with(|executor| async move {
                let mut task = common::task(common::perl(), "print 'on'; $| = 1; 1 while 1");
                task.spec.limits.cpu_ms = 300;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::TimeLimit, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("300 ms of CPU"));
                assert!(result.outcome.cpu_us >= 290_000, "{}", result.outcome.cpu_us);
                assert!(result.outcome.cpu_us <= 1_000_000, "{}", result.outcome.cpu_us);
                assert_eq!(result.outcome.signal, Some(9));
            });
        }

        #[test]
        fn cpu_time_counts_over_all_processes() {
            $with(|executor| async move {
                // The first process itself uses next to none.
                let source = "for (1..3) { fork or do { 1 while 1 } } sleep 600";
                let mut task = common::task(common::perl(), source);
                task.spec.limits.cpu_ms = 600;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::TimeLimit, "{result:?}");
                assert!(result.outcome.cpu_us >= 550_000, "{}", result.outcome.cpu_us);
            });
        }

        #[test]
        fn sleeping_for_ever_is_a_time_limit() {
            $with(|executor| async move {
                let mut task = common::task(common::perl(), "$SIG{TERM} = 'IGNORE'; sleep 600");
                task.spec.limits.wall_ms = 300;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::TimeLimit, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("300 ms of wall-clock"));
                assert!(result.outcome.wall_us >= 300_000);
            });
        }

        #[test]
        fn too_much_memory_is_a_memory_limit() {
            $with(|executor| async move {
                let source = "$x = 'x' x (300 << 20); sleep 600";
                let mut task = common::task(common::perl(), source);
                task.spec.limits.memory_kb = 64 << 10;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::MemoryLimit, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("65536 KiB"));
                assert!(result.outcome.memory_kb > 20 << 10, "{}", result.outcome.memory_kb);
                // And the next one is not affected.
                let mut task = common::task(common::bash(), "echo on");
                task.spec.limits.memory_kb = 64 << 10;
                common::assert_prints(&common::run(&executor, task).await, b"on\n");
            });
        }

        #[test]
        fn output_over_its_cap_is_dropped_and_the_exit_code_kept() {
            $with(|executor| async move {
                let source = "print 'a' x 20_000; print STDERR 'b' x 10_240; exit 3";
                let mut task = common::task(common::perl(), source);
                task.spec.limits.output_kb = 10;
                let (result, chunks) = common::run_watched(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                assert_eq!(result.outcome.exit_code, Some(3));
                assert_eq!(result.output.stdout, vec![b'a'; 10_240]);
                assert_eq!(result.output.stderr, vec![b'b'; 10_240]);
                assert!(result.output.stdout_truncated);
                assert!(!result.output.stderr_truncated);
                let sent: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
                assert_eq!(sent, 20_480);
            });
        }

        #[test]
        fn printing_on_and_on_is_an_output_limit() {
            $with(|executor| async move {
                for stream in ["STDOUT", "STDERR"] {
                    let source = format!("while (1) {{ print {stream} 'y' x 65536 }}");
                    let mut task = common::task(common::perl(), source);
                    task.spec.limits.output_kb = 64;
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::OutputLimit, "{result:?}");
                    let kept = result.output.stdout.len() + result.output.stderr.len();
                    assert_eq!(kept, 64 << 10);
                }
            });
        }

        #[test]
        fn a_program_is_compiled_and_run() {
            $with(|executor| async move {
                let source = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n";
                let result = common::run(&executor, common::task(common::c(), source)).await;
                common::assert_prints(&result, b"hello\n");
                let compile = result.output.compile.unwrap();
                assert_eq!(compile.exit_code, Some(0));
                assert!(compile.cpu_us > 0 && compile.memory_kb > 1000);
            });
        }

        #[test]
        fn a_program_that_does_not_compile_is_a_compile_error() {
            $with(|executor| async move {
                let result = common::run(&executor, common::task(common::c(), "int main(")).await;
                assert_eq!(result.outcome.verdict, Verdict::CompileError, "{result:?}");
                assert_eq!(result.outcome.exit_code, None);
                assert!(result.output.stdout.is_empty());
                let compile = result.output.compile.unwrap();
                assert_eq!(compile.exit_code, Some(1));
                assert!(String::from_utf8_lossy(&compile.stderr).contains("error"));
            });
        }

        #[test]
        fn a_compiler_that_takes_too_long_is_a_compile_error() {
            $with(|executor| async move {
                let mut language =
                    common::language("slow", Some(&["sleep", "600"]), &["./program"]);
                language.compile_limits.wall_ms = 200;
                let result = common::run(&executor, common::task(language, "")).await;
                assert_eq!(result.outcome.verdict, Verdict::CompileError, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("200 ms of wall-clock"));
            });
        }

        #[test]
        fn what_the_compiler_starts_does_not_reach_the_program() {
            $with(|executor| async move {
                let compile = "setsid sleep 600 & echo $! > pid; echo compiled";
                let language: Language = common::language(
                    "sneaky",
                    Some(&["bash", "-c", compile]),
                    &["bash", "{source}"],
                );
                let source = "read pid < pid; [ -d /proc/$pid ] && echo alive || echo gone";
                let result = common::run(&executor, common::task(language, source)).await;
                common::assert_prints(&result, b"gone\n");
                assert_eq!(result.output.compile.unwrap().stdout, &b"compiled\n"[..]);
            });
        }

        #[test]
        fn a_program_that_is_not_there_is_named() {
            $with(|executor| async move {
                let language = common::language("none", None, &["no-such-program", "{source}"]);
                let result = common::run(&executor, common::task(language, "")).await;
                assert_eq!(result.outcome.verdict, Verdict::InternalError);
                let message = result.outcome.message.unwrap();
                assert!(message.contains("no-such-program"), "{message}");
                // What the job itself was to bring is its own business.
                let language = common::language("none", None, &["./program"]);
                let result = common::run(&executor, common::task(language, "")).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError);
                assert!(result.outcome.message.unwrap().contains("./program"));
            });
        }

        #[test]
        fn names_that_lead_out_of_the_box_are_refused() {
            $with(|executor| async move {
                for name in ["../out", "/etc/out", "a/../../out", ""] {
                    let mut task = common::task(common::bash(), "echo ran");
                    task.spec.files.push(SourceFile {
                        name: name.into(),
                        content: Bytes::new(),
                    });
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                    assert!(result.outcome.message.unwrap().contains("name"));
                    assert!(result.output.stdout.is_empty());
                }
            });
        }

        #[test]
        fn forking_is_held_down_and_nobody_is_left() {
            $with(|executor| async move {
                // At most 200, and they end by themselves: nothing to fear if it is not held down.
                let source = "for (1..200) { my $p = fork; \
                              if (!defined $p) { print \"refused\\n\"; exit 9 } \
                              if (!$p) { setpgrp(0, 0); sleep 30; exit 0 } } sleep 30";
                let mut task = common::task(common::perl(), source);
                task.spec.limits.processes = 20;
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                let refused = result.output.stdout == &b"refused\n"[..];
                let stopped = result.outcome.message.is_some_and(|m| m.contains("20 processes"));
                assert!(refused || stopped);
                let next = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&next, b"on\n");
            });
        }

        #[test]
        fn what_a_job_leaves_behind_is_gone_for_the_next() {
            $with(|executor| async move {
                let source = "use POSIX; $| = 1;\
                    mkdir 'd'; mkdir 'd/e'; chmod 0, 'd/e'; chmod 0500, 'd'; symlink '/', 'root';\
                    if (!fork) { POSIX::setsid(); if (!fork) { POSIX::setsid(); $SIG{$_} = 'IGNORE' for keys %SIG;\
                      open P, '>', \"$ENV{TMPDIR}/left\"; print P 'left'; close P; print \"$$ \", (POSIX::uname())[1], \":$ENV{HOME}\\n\";\
                      while (1) { open F, '>', \"again$$\"; close F; } } exit 0 }\
                    wait; sleep 1 until -e \"$ENV{TMPDIR}/left\"; exit 0";
                let result = common::run(&executor, common::task(common::perl(), source)).await;
                assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
                let printed = String::from_utf8(result.output.stdout.to_vec()).unwrap();
                let (pid, sandbox) = printed.trim().split_once(' ').unwrap();
                let look = format!(
                    "echo $(uname -n):$HOME; ls -A; ls -A $TMPDIR; [ -d /proc/{pid} ] && echo alive; exit 0"
                );
                // Another sandbox may be warm as well, and a process with that number means nothing there.
                for _ in 0..50 {
                    let next = common::run(&executor, common::task(common::bash(), look.clone())).await;
                    let seen = String::from_utf8(next.output.stdout.to_vec()).unwrap();
                    if seen.starts_with(&format!("{sandbox}\n")) {
                        assert_eq!(seen, format!("{sandbox}\nmain\n"), "{next:?}");
                        assert_eq!(executor.sandboxes()["discarded"], 0);
                        return;
                    }
                }
                panic!("no other job came to {sandbox}");
            });
        }

        #[test]
        fn a_source_and_a_stdin_of_one_mebibyte() {
            $with(|executor| async move {
                let source = format!(
                    "import sys; s = '{}'; print(len(s), len(sys.stdin.read()))",
                    "x".repeat(1 << 20)
                );
                let mut task = common::task(common::python(), source);
                task.spec.stdin = vec![b'y'; 1 << 20].into();
                common::assert_prints(&common::run(&executor, task).await, b"1048576 1048576\n");
            });
        }

        #[test]
        fn a_stdin_that_is_never_read_and_much_output_do_not_block_each_other() {
            $with(|executor| async move {
                let source = "print 'a' x 5_000_000; print STDERR 'b' x 5_000_000;";
                let mut task = common::task(common::perl(), source);
                task.spec.stdin = vec![b'y'; 1 << 20].into();
                task.spec.limits.output_kb = 5000;
                let (result, chunks) = common::run_watched(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::Accepted, "{:?}", result.outcome);
                assert_eq!(result.output.stdout.len(), 5_000_000);
                assert_eq!(result.output.stderr.len(), 5_000_000);
                let mut streams = [Vec::new(), Vec::new()];
                for chunk in chunks {
                    let stream = &mut streams[usize::from(chunk.stream == Stream::Stderr)];
                    assert_eq!(chunk.offset, stream.len() as u64);
                    stream.extend_from_slice(&chunk.data);
                }
                assert!(streams[0] == result.output.stdout && streams[1] == result.output.stderr);
            });
        }

        #[test]
        fn a_cancelled_job_ends() {
            $with(|executor| async move {
                let (output, mut chunks) = mpsc::channel(4);
                let cancel = CancellationToken::new();
                let task = common::task(common::bash(), "echo started; sleep 600");
                let job = executor.execute(task, output, cancel.clone());
                let stop = async {
                    let chunk = chunks.recv().await.expect("the program prints");
                    assert_eq!(chunk.data, &b"started\n"[..]);
                    cancel.cancel();
                };
                let (result, ()) = tokio::time::timeout(common::PATIENCE, async {
                    tokio::join!(job, stop)
                })
                .await
                .unwrap();
                let result = result.unwrap();
                assert_eq!(result.outcome.verdict, Verdict::Cancelled, "{result:?}");
                assert_eq!(result.output.stdout, &b"started\n"[..]);
                // The sandbox survives it.
                let next = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&next, b"on\n");
                assert_eq!(executor.sandboxes()["discarded"], 0);
            });
        }

        #[test]
        fn a_job_that_is_given_up_takes_its_sandbox_along() {
            $with(|executor| async move {
                let (output, mut chunks) = mpsc::channel(4);
                let task = common::task(common::bash(), "echo started; sleep 600");
                let handle = executor.clone();
                let job = tokio::spawn(async move {
                    handle.execute(task, output, CancellationToken::new()).await
                });
                chunks.recv().await.expect("the program prints");
                job.abort();
                common::sandboxes(&executor, |counts| counts["discarded"] == 1).await;
                let next = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&next, b"on\n");
            });
        }

        #[test]
        fn closing_its_output_does_not_end_a_job() {
            $with(|executor| async move {
                let source = "print 'x'; close STDOUT; close STDERR; close STDIN; select(undef, undef, undef, 0.1); exit 7";
                let result = common::run(&executor, common::task(common::perl(), source)).await;
                assert_eq!(result.outcome.exit_code, Some(7), "{result:?}");
                assert_eq!(result.output.stdout, &b"x"[..]);
            });
        }

        #[test]
        fn a_program_may_open_its_own_streams() {
            $with(|executor| async move {
                let source = "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr";
                let mut task = common::task(common::bash(), source);
                task.spec.stdin = Bytes::from_static(b"in\n");
                let result = common::run(&executor, task).await;
                common::assert_prints(&result, b"in\nout\n");
                assert_eq!(result.output.stderr, &b"err\n"[..]);
            });
        }

        #[test]
        fn output_is_kept_byte_for_byte() {
            $with(|executor| async move {
                let source = "binmode STDOUT; print map { chr } 0..255";
                let result = common::run(&executor, common::task(common::perl(), source)).await;
                let all: Vec<u8> = (0..=255).collect();
                common::assert_prints(&result, &all);
            });
        }

        #[test]
        fn the_same_source_is_compiled_once() {
            $with(|executor| async move {
                // The program spoils its own box: the next one must not notice.
                let source = "#include <stdio.h>\n#include <unistd.h>\n#warning first\n\
                    int main(void) { puts(access(\"spoilt\", F_OK) ? \"fresh\" : \"spoilt\");\
                    fclose(fopen(\"spoilt\", \"w\")); unlink(\"program\"); return 0; }\n";
                let first = common::run(&executor, common::task(common::c(), source)).await;
                common::assert_prints(&first, b"fresh\n");
                let compiled = first.output.compile.unwrap();
                assert!(!compiled.cached);
                let again = common::until_cached(&executor, common::task(common::c(), source)).await;
                common::assert_prints(&again, b"fresh\n");
                let cached = again.output.compile.unwrap();
                // What the compiler said is said again.
                assert!(String::from_utf8_lossy(&cached.stderr).contains("first"));
                assert_eq!(cached.exit_code, Some(0));
                // What the compile step depends on makes a difference.
                let other = source.replace("first", "second");
                let result = common::run(&executor, common::task(common::c(), other)).await;
                assert!(!result.output.compile.unwrap().cached);
                let mut language = common::c();
                language.env.insert("LANGUAGE".into(), "en".into());
                let result = common::run(&executor, common::task(language, source)).await;
                assert!(!result.output.compile.unwrap().cached);
                for args in [&["-DA", "-w"][..], &["-DA-w"], &[]] {
                    let mut task = common::task(common::c(), source);
                    task.spec.compile_args = args.iter().map(|arg| (*arg).to_owned()).collect();
                    let result = common::run(&executor, task).await;
                    common::assert_prints(&result, b"fresh\n");
                    let compile = result.output.compile.unwrap();
                    assert_eq!(compile.cached, args.is_empty(), "{args:?}");
                    let warned = String::from_utf8_lossy(&compile.stderr).contains("first");
                    assert_eq!(warned, !args.contains(&"-w"), "{args:?}");
                }
            });
        }

        #[test]
        fn a_large_artefact_is_kept_as_well() {
            $with(|executor| async move {
                // More than the warden has waiting for the node at one time.
                let compile = "head -c 30000000 /dev/urandom > data; sha256sum data > sum";
                let language = common::language(
                    "large",
                    Some(&["bash", "-c", compile]),
                    &["sha256sum", "-c", "sum"],
                );
                let task = common::task(language, "");
                let result = common::run(&executor, task.clone()).await;
                common::assert_prints(&result, b"data: OK\n");
                let result = common::until_cached(&executor, task).await;
                common::assert_prints(&result, b"data: OK\n");
                assert_eq!(executor.sandboxes()["discarded"], 0);
            });
        }

        #[test]
        fn an_artefact_that_a_sandbox_cannot_hold_is_not_used() {
            $with(|executor| async move {
                // Beside the box it would take more than a third of the small sandbox's memory.
                let language = common::language(
                    "large",
                    Some(&["bash", "-c", "head -c 24M /dev/zero > data; echo compiled >&2"]),
                    &["bash", "-c", "wc -c < data"],
                );
                let mut task = common::task(language, "");
                task.spec.limits.memory_kb = 1 << 20;
                common::until_cached(&executor, task.clone()).await;
                // It came at once, however much it is.
                assert_eq!(executor.sandboxes()["discarded.hung"], 0);
                task.spec.limits.memory_kb = 64 << 10;
                let result = common::run(&executor, task).await;
                common::assert_prints(&result, b"25165824\n");
                assert!(!result.output.compile.unwrap().cached);
            });
        }

        #[test]
        fn a_program_that_does_not_compile_is_not_cached() {
            $with(|executor| async move {
                for _ in 0..3 {
                    let result = common::run(&executor, common::task(common::c(), "int main(")).await;
                    assert_eq!(result.outcome.verdict, Verdict::CompileError);
                    assert!(!result.output.compile.unwrap().cached);
                }
            });
        }

        #[test]
        fn test_cases_are_compiled_once_and_each_is_run_in_a_clean_state() {
            $with(|executor| async move {
                // Each case finds the box as the compiler left it, and nothing of the one before.
                let compile = "echo compiled >> log; mkdir d; echo kept > d/data; ln -s d/data link";
                let language = common::language(
                    "cases",
                    Some(&["bash", "-c", compile]),
                    &["bash", "{source}"],
                );
                let source = "read line; cat log link; ls -A . $TMPDIR | tr '\\n' ' '; echo; echo \"$line\";\
                    (setsid sleep 600 &); echo spoilt > d/data; echo more >> log; echo x > $TMPDIR/x; exit $line";
                let mut task = common::task(language, source);
                task.spec.tests = common::cases(&[("0", None), ("3", None), ("0", Some("no")), ("0", None)]);
                let result = common::run(&executor, task.clone()).await;
                let tests = &result.output.tests;
                assert_eq!(tests.len(), 4, "{result:?}");
                let verdicts: Vec<_> = tests.iter().map(|test| test.outcome.verdict).collect();
                let expected = [
                    Verdict::Accepted,
                    Verdict::RuntimeError,
                    Verdict::WrongAnswer,
                    Verdict::Accepted,
                ];
                assert_eq!(verdicts, expected, "{result:?}");
                assert_eq!(tests[1].outcome.exit_code, Some(3));
                assert_eq!(tests[0].stdout, tests[3].stdout);
                let text = String::from_utf8_lossy(&tests[0].stdout);
                assert!(text.starts_with("compiled\nkept\n"), "{text}");
                assert_eq!(text.matches("compiled").count(), 1);
                // The first that was not accepted stands for all, with the most that any took.
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError);
                assert_eq!(result.outcome.exit_code, Some(3));
                assert_eq!(result.outcome.message.as_deref(), Some("test 2 of 4"));
                let most = tests.iter().map(|test| test.outcome.wall_us).max();
                assert_eq!(Some(result.outcome.wall_us), most);
                task.spec.stop_on_failure = true;
                let result = common::run(&executor, task).await;
                assert_eq!(result.output.tests.len(), 2, "{result:?}");
                assert_eq!(executor.sandboxes()["discarded"], 0);
                let next = common::run(&executor, common::task(common::bash(), "ls -A . $TMPDIR | wc -l")).await;
                assert_eq!(next.outcome.verdict, Verdict::Accepted);
            });
        }

        #[test]
        fn what_the_compiler_leaves_outside_the_box_is_there_for_no_run() {
            $with(|executor| async move {
                let language = common::language(
                    "odd",
                    Some(&["bash", "-c", "echo x > $TMPDIR/left; echo y > kept"]),
                    &["bash", "-c", "ls $TMPDIR; cat kept"],
                );
                let mut task = common::task(language, "");
                task.spec.tests = common::cases(&[("", Some("y\n")), ("", Some("y\n"))]);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
            });
        }

        #[test]
        fn test_cases_need_no_compiler_and_what_is_expected_never_reaches_them() {
            $with(|executor| async move {
                let source = "import os, sys\n\
                    n = int(input())\n\
                    if n == 9:\n    print(open(sys.argv[0]).read().count('secret'), 'secret' in str(os.environ))\n\
                    else:\n    print(n * n)\n";
                let mut task = common::task(common::python(), source);
                task.spec.tests = common::cases(&[
                    ("2", Some("4\n")),
                    ("3", Some("9  \n\n")),
                    ("9", Some("secret")),
                    ("4", Some("17")),
                ]);
                let result = common::run(&executor, task.clone()).await;
                let verdicts: Vec<_> =
                    result.output.tests.iter().map(|test| test.outcome.verdict).collect();
                use Verdict::{Accepted, WrongAnswer};
                assert_eq!(verdicts, [Accepted, Accepted, WrongAnswer, WrongAnswer], "{result:?}");
                // Its own source says it twice, and nothing else does.
                assert_eq!(result.output.tests[2].stdout, &b"2 False\n"[..]);
                assert_eq!(result.outcome.verdict, WrongAnswer);
                task.spec.tests.truncate(2);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Accepted, "{result:?}");
                assert_eq!(result.outcome.message, None);
                assert_eq!(result.outcome.exit_code, Some(0));
            });
        }

        #[test]
        fn a_test_case_that_uses_its_sandbox_up_does_not_end_the_others() {
            $with(|executor| async move {
                let source = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
                    int main(void) { int n; if (scanf(\"%d\", &n) != 1) return 1;\
                    if (n) { size_t size = (size_t)n << 20; char *p = malloc(size); memset(p, 1, size); sleep(60); }\
                    puts(\"ok\"); return 0; }\n";
                let mut task = common::task(common::c(), source);
                task.spec.limits.memory_kb = 64 << 10;
                task.spec.tests =
                    common::cases(&[("0", Some("ok")), ("300", Some("ok")), ("0", Some("ok"))]);
                let result = common::run(&executor, task).await;
                let verdicts: Vec<_> =
                    result.output.tests.iter().map(|test| test.outcome.verdict).collect();
                use Verdict::{Accepted, MemoryLimit};
                assert_eq!(verdicts, [Accepted, MemoryLimit, Accepted], "{result:?}");
                assert_eq!(result.outcome.verdict, MemoryLimit);
            });
        }

        #[test]
        fn a_compile_error_has_no_test_results() {
            $with(|executor| async move {
                let mut task = common::task(common::c(), "int main(");
                task.spec.tests = common::cases(&[("", None), ("", None)]);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::CompileError, "{result:?}");
                assert!(result.output.tests.is_empty());
                assert!(!result.output.compile.unwrap().stderr.is_empty());
            });
        }

        #[test]
        fn a_box_that_cannot_be_kept_for_the_other_cases_is_a_compile_error() {
            $with(|executor| async move {
                let language = common::language(
                    "fifo",
                    Some(&["mkfifo", "pipe"]),
                    &["bash", "{source}"],
                );
                let mut task = common::task(language, "echo on");
                // One run needs nothing kept.
                common::assert_prints(&common::run(&executor, task.clone()).await, b"on\n");
                task.spec.tests = common::cases(&[("", None), ("", None)]);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::CompileError, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("pipe"));
            });
        }

        #[test]
        fn a_program_can_be_talked_to() {
            $with(|executor| async move {
                let (output, mut chunks) = mpsc::channel(4);
                let (to_stdin, stdin) = mpsc::channel(4);
                let (to_signals, signals) = mpsc::channel(4);
                // Not print: the signal may come in the middle of one.
                let source = "import os, signal, sys\n\
                    def heard(number, frame):\n    os.write(1, b'signal %d\\n' % number)\n\
                    signal.signal(signal.SIGUSR1, heard)\n\
                    for line in sys.stdin:\n    print('got', line.strip(), flush=True)\n\
                    print('end')\n";
                let mut task = common::task(common::python(), source);
                task.spec.stdin = Bytes::from_static(b"first\n");
                let interaction = quorun_executor::Interaction {
                    stdin,
                    signals,
                    sizes: common::no_size(),
                };
                let job = executor.execute_interactive(task, output, interaction, CancellationToken::new());
                let talk = async {
                    let mut seen = String::new();
                    // Each word is said only when the one before was answered.
                    for (answer, stdin, signal) in [
                        ("got first\n", Some("second\n"), None),
                        ("got second\n", None, Some(10)),
                        ("signal 10\n", Some("third\n"), None),
                    ] {
                        while !seen.ends_with(answer) {
                            let chunk = chunks.recv().await.expect("an answer");
                            seen.push_str(std::str::from_utf8(&chunk.data).unwrap());
                        }
                        if let Some(text) = stdin {
                            to_stdin.send(Bytes::from(text)).await.unwrap();
                        }
                        if let Some(signal) = signal {
                            to_signals.send(signal).await.unwrap();
                        }
                    }
                    // The end of the channel is the end of stdin.
                    drop(to_stdin);
                    while chunks.recv().await.is_some() {}
                };
                let (result, ()) = tokio::time::timeout(common::PATIENCE, async {
                    tokio::join!(job, talk)
                })
                .await
                .unwrap();
                common::assert_prints(
                    &result.unwrap(),
                    b"got first\ngot second\nsignal 10\ngot third\nend\n",
                );
            });
        }

        #[test]
        fn whoever_talks_to_a_program_that_does_not_listen_waits() {
            $with(|executor| async move {
                let (output, mut chunks) = mpsc::channel(4);
                let (to_stdin, stdin) = mpsc::channel(1);
                let (to_signals, signals) = mpsc::channel(1);
                let task = common::task(common::perl(), "$| = 1; print 'on'; sleep 600");
                let interaction = quorun_executor::Interaction {
                    stdin,
                    signals,
                    sizes: common::no_size(),
                };
                let job = executor.execute_interactive(task, output, interaction, CancellationToken::new());
                let talk = async {
                    chunks.recv().await.expect("it runs");
                    // More than is taken on its way: at the end somebody waits, and a signal passes by.
                    let piece = Bytes::from(vec![b'x'; 64 << 10]);
                    let mut sent = 0;
                    while let Ok(Ok(())) = tokio::time::timeout(
                        std::time::Duration::from_millis(500),
                        to_stdin.send(piece.clone()),
                    )
                    .await
                    {
                        sent += piece.len();
                        assert!(sent < 4 << 20, "nobody waits");
                    }
                    to_signals.send(15).await.unwrap();
                    while chunks.recv().await.is_some() {}
                };
                let (result, ()) = tokio::time::timeout(common::PATIENCE, async {
                    tokio::join!(job, talk)
                })
                .await
                .unwrap();
                assert_eq!(result.unwrap().outcome.signal, Some(15));
            });
        }

        #[test]
        fn each_test_case_is_told_when_it_has_ended() {
            $with(|executor| async move {
                let mut task = common::task(common::python(), "import sys\nprint(1)\nsys.exit(int(input()))");
                task.spec.tests = ["0", "3", "0"]
                    .map(|stdin| quorun_ledger::job::TestCase {
                        stdin: Bytes::from(stdin),
                        expected: (stdin == "0").then(|| Bytes::from("nothing")),
                        name: Some(format!("exits with {stdin}")),
                        hidden: true,
                        ..Default::default()
                    })
                    .to_vec();
                let (output, _chunks) = mpsc::channel(1);
                let (cases, mut told) = mpsc::unbounded_channel();
                let watched = quorun_executor::Watched {
                    output,
                    cases,
                    interaction: None,
                };
                let result = executor
                    .execute_watched(task, watched, CancellationToken::new())
                    .await
                    .unwrap();
                let mut heard = Vec::new();
                while let Some(case) = told.recv().await {
                    assert_eq!(case.index as usize, heard.len());
                    heard.push(case.result);
                }
                let mut tests = result.output.tests;
                assert!(tests.iter().any(|test| !test.stdout.is_empty()));
                for test in &mut tests {
                    // What was printed is not told.
                    test.stdout.clear();
                    test.stderr.clear();
                }
                assert_eq!(heard, tests);
                assert_eq!(heard[1].outcome.exit_code, Some(3));
                let verdict = quorun_ledger::job::Verdict::WrongAnswer;
                assert_eq!(heard[0].outcome.verdict, verdict);
                assert_eq!(heard.len(), 3);
            });
        }

        #[test]
        fn a_program_may_have_a_terminal_and_the_next_one_has_none() {
            $with(|executor| async move {
                let source = "import os, sys\n\
                    print([os.isatty(n) for n in range(3)])\n\
                    try:\n    size = os.get_terminal_size()\n    print(size.lines, size.columns)\n\
                    \x20   open('/dev/tty', 'w').write('named\\n')\n\
                    except OSError:\n    print('none')\n\
                    for line in sys.stdin:\n    print('got', line.strip())\n";
                let size = |rows, columns| quorun_ledger::job::Terminal { rows, columns };
                let (output, mut chunks) = mpsc::channel(4);
                let (to_stdin, stdin) = mpsc::channel(4);
                let (_to_signals, signals) = mpsc::channel(4);
                let (_to_sizes, sizes) = tokio::sync::watch::channel(size(1, 1));
                let interaction = quorun_executor::Interaction {
                    stdin,
                    signals,
                    sizes,
                };
                let mut task = common::task(common::python(), source);
                task.spec.terminal = Some(size(12, 34));
                let job = executor.execute_interactive(task, output, interaction, CancellationToken::new());
                let talk = async {
                    to_stdin.send(Bytes::from("typed\n")).await.unwrap();
                    drop(to_stdin);
                    while chunks.recv().await.is_some() {}
                };
                let (result, ()) = tokio::time::timeout(common::PATIENCE, async {
                    tokio::join!(job, talk)
                })
                .await
                .unwrap();
                let result = result.unwrap();
                let shown = String::from_utf8_lossy(&result.output.stdout);
                // What is typed is shown when it comes, before or behind what the program prints.
                for line in ["[True, True, True]\r\n", "12 34\r\n", "named\r\n", "typed\r\n", "got typed\r\n"] {
                    assert!(shown.contains(line), "{line:?} in {shown:?} {:?}", result.outcome);
                }
                assert!(result.output.stderr.is_empty(), "{result:?}");
                assert_eq!(result.outcome.exit_code, Some(0));
                let (output, _chunks) = mpsc::channel(1);
                let plain = common::task(common::python(), source);
                let result = executor.execute(plain, output, CancellationToken::new()).await;
                common::assert_prints(&result.unwrap(), b"[False, False, False]\nnone\n");
            });
        }

        #[test]
        fn open_files_are_limited() {
            $with(|executor| async move {
                let source = "while (open my $file, '<', '/dev/null') { push @files, $file } \
                              print fileno $files[-1], \" $!\"";
                let mut task = common::task(common::perl(), source);
                task.spec.limits.open_files = 40;
                let result = common::run(&executor, task).await;
                common::assert_prints(&result, b"39 Too many open files");
            });
        }

        #[test]
        fn the_size_of_a_file_is_limited() {
            $with(|executor| async move {
                let run = async |source: &str| {
                    let mut task = common::task(common::perl(), source.to_owned());
                    task.spec.limits.file_kb = Some(100);
                    common::run(&executor, task).await
                };
                let fits = "open F, '>', 'f'; syswrite F, 'x' x 102_400; print -s 'f';";
                common::assert_prints(&run(fits).await, b"102400");
                // One byte more, also where it is a hole that makes the file so large, or another folder.
                for more in [
                    "syswrite F, 'y'",
                    "truncate F, 1 << 40",
                    "open G, '>', \"$ENV{TMPDIR}/g\"; seek G, 102_400, 0; syswrite G, 'z'",
                ] {
                    let result = run(&format!("{fits} {more}; exit 7")).await;
                    assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{more}: {result:?}");
                    assert_eq!(result.outcome.signal, Some(25), "{more}: {result:?}");
                    assert!(result.outcome.message.unwrap().contains("SIGXFSZ"));
                    let ignored = format!("$SIG{{XFSZ}} = 'IGNORE'; {fits} {more} or print \" $!\"");
                    common::assert_prints(&run(&ignored).await, b"102400 File too large");
                }
                // What the program may not, its compiler may.
                let mut task = common::task(common::c(), "int main(void) { return 0; }");
                task.spec.limits.file_kb = Some(1);
                common::assert_prints(&common::run(&executor, task).await, b"");
            });
        }

        #[test]
        fn a_stack_that_overflows_is_a_runtime_error_and_a_larger_one_does_not() {
            $with(|executor| async move {
                let source = "#include <stdio.h>\n#include <string.h>\n\
                    static int down(int depth) {\n\
                      char frame[1024]; memset(frame, depth, sizeof frame);\n\
                      return depth == 0 ? 0 : down(depth - 1) + (frame[depth % 1024] == (char)depth);\n\
                    }\n\
                    int main(void) { printf(\"%d\\n\", down(8192)); return 0; }\n";
                let run = async |stack_kb| {
                    let mut task = common::task(common::c(), source);
                    task.spec.limits.stack_kb = stack_kb;
                    common::run(&executor, task).await
                };
                let small = run(4 << 10).await;
                assert_eq!(small.outcome.verdict, Verdict::RuntimeError, "{small:?}");
                assert_eq!((small.outcome.exit_code, small.outcome.signal), (None, Some(11)));
                assert!(small.outcome.message.unwrap().contains("SIGSEGV"));
                common::assert_prints(&run(16 << 10).await, b"8192\n");
            });
        }

        #[test]
        fn as_many_processes_and_threads_as_allowed_and_not_one_more() {
            $with(|executor| async move {
                // Long enough for whoever counts them from outside to see them all together; those of too many wait for
                // their end.
                let processes = "my $most = shift; pipe R, W; \
                    for (2..$most) { my $p = fork; if (!defined $p) { print 'refused'; exit 9 } \
                      if (!$p) { close W; <R>; exit } } \
                    select undef, undef, undef, $most > 10 ? 60 : 0.3; print 'all'";
                let threads = "import sys, threading, time\n\
                    most = int(sys.argv[1])\ndone = threading.Event()\n\
                    try:\n  for n in range(1, most): threading.Thread(target=done.wait).start()\n\
                    except RuntimeError: print('refused', end='', flush=True); done.set(); sys.exit(9)\n\
                    time.sleep(60 if most > 10 else 0.3)\nprint('all', end='')\ndone.set()\n";
                for (language, source) in [(common::perl(), processes), (common::python(), threads)] {
                    let run = async |number: u32| {
                        let mut task = common::task(language.clone(), source);
                        task.spec.limits.processes = 10;
                        task.spec.args = vec![number.to_string()];
                        common::run(&executor, task).await
                    };
                    common::assert_prints(&run(10).await, b"all");
                    let result = run(11).await;
                    assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                    let refused = result.output.stdout == &b"refused"[..]
                        && result.outcome.exit_code == Some(9);
                    let stopped = result.outcome.message.as_ref().is_some_and(|m| m.contains("10 processes"));
                    assert!(refused || stopped, "{result:?}");
                }
            });
        }
    };
}
