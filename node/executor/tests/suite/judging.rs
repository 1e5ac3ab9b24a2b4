//! What every executor must do with checkers that are programs, and with the files that a job is to leave.

macro_rules! judging {
    ($with:path) => {
        use quorun_ledger::job::{Checker, CheckerProgram, JobResult};

        /// A task whose cases are judged by a program.
        fn judged(
            task: quorun_executor::Task,
            language: Language,
            source: &str,
            cases: &[(&str, Option<&str>)],
        ) -> quorun_executor::Task {
            let mut task = task;
            let file = SourceFile {
                name: "main".into(),
                content: Bytes::copy_from_slice(source.as_bytes()),
            };
            task.spec.tests = common::cases(cases);
            task.spec.checker = Checker::Program(Box::new(CheckerProgram {
                language: language.name.clone(),
                files: vec![file],
                entrypoint: "main".into(),
                limits: common::limits(),
            }));
            task.checker = Some(language);
            task
        }

        fn verdicts(result: &JobResult) -> Vec<Verdict> {
            result.output.tests.iter().map(|test| test.outcome.verdict).collect()
        }

        #[test]
        fn a_checker_sees_the_case_and_its_exit_code_decides() {
            $with(|executor| async move {
                let checker = "import sys\n\
                    given, printed, expected = (open(name).read() for name in sys.argv[1:])\n\
                    print(f'{given!r} {printed!r} {expected!r}')\n\
                    sys.exit(0 if sorted(printed.split()) == sorted(expected.split()) else 1)\n";
                let program = common::task(common::bash(), "read line; echo $line");
                let cases = [("a b\n", Some("b a")), ("c\n", Some("d")), ("e", None)];
                let task = judged(program, common::python(), checker, &cases);
                let result = common::run(&executor, task).await;
                use Verdict::{Accepted, WrongAnswer};
                assert_eq!(verdicts(&result), [Accepted, WrongAnswer, WrongAnswer], "{result:?}");
                let said: Vec<_> = result.output.tests.iter().map(|t| t.checker.as_deref()).collect();
                assert_eq!(said, [
                    Some("'a b\\n' 'a b\\n' 'b a'"),
                    Some("'c\\n' 'c\\n' 'd'"),
                    // The program ended with 0 all the same: what it had read was a line.
                    Some("'e' 'e\\n' ''"),
                ]);
                assert_eq!(result.outcome.verdict, WrongAnswer);
                assert_eq!(result.outcome.message.as_deref(), Some("test 2 of 3"));
                let judged = result.outcome.judged.unwrap();
                assert_eq!((judged.passed, judged.total), (1, 3));
                assert_eq!(judged.score.millionths(), 333_333);
                assert_eq!(executor.sandboxes()["discarded"], 0);
            });
        }

        #[test]
        fn a_checker_is_compiled_once_and_finds_a_clean_folder_each_time() {
            $with(|executor| async move {
                // Notes when it is compiled, where no sandbox is wiped: in what it is started from.
                let language = common::language(
                    "noting",
                    Some(&["bash", "-c", "ls -A > seen; date +%s%N > compiled"]),
                    &["bash", "{source}"],
                );
                let checker = "cat compiled; cat seen; ls -A; echo x > left; echo $* >&2";
                let program = common::task(common::c(), "int main(void) { return 0; }");
                let cases = [("1", Some("1")), ("2", Some("2")), ("3", Some("3"))];
                let task = judged(program, language, checker, &cases);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::Accepted, "{result:?}");
                let said: Vec<_> = result.output.tests.iter().map(|t| t.checker.clone().unwrap()).collect();
                assert_eq!(said[0], said[1]);
                assert_eq!(said[0], said[2]);
                // Its compiler did not see the case.
                let lines: Vec<_> = said[0].lines().skip(1).collect();
                assert_eq!(lines, ["main", "seen", "compiled", "expected", "input", "main", "output", "seen"]);
            });
        }

        #[test]
        fn the_program_sees_nothing_of_the_checker() {
            $with(|executor| async move {
                let program = common::task(
                    common::bash(),
                    "cat input output expected 2>/dev/null; ls -A; cat main | grep -c secret",
                );
                let checker = "test \"$(cat output)\" = \"$(printf 'main\\n1')\" # secret";
                let cases = [("", Some("secret")), ("", Some("secret"))];
                let task = judged(program, common::bash(), checker, &cases);
                let result = common::run(&executor, task).await;
                assert_eq!(verdicts(&result), [Verdict::Accepted; 2], "{result:?}");
            });
        }

        #[test]
        fn a_checker_gives_part_of_the_score() {
            $with(|executor| async move {
                let checker = "echo \"score $(cat output)\"; echo well; exit $(cat input)";
                let program = common::task(common::bash(), "read n; case $n in 0) echo 0.5;; 7) echo 0.25;; 1) echo 0;; esac");
                let task = judged(program, common::bash(), checker, &[("0\n", None), ("7\n", None), ("1\n", None)]);
                let result = common::run(&executor, task).await;
                use Verdict::{Accepted, WrongAnswer};
                assert_eq!(verdicts(&result), [Accepted, WrongAnswer, WrongAnswer], "{result:?}");
                let judged = result.outcome.judged.unwrap();
                assert_eq!((judged.passed, judged.score.millionths()), (1, 250_000));
                assert!(result.output.tests.iter().all(|t| t.checker.as_deref() == Some("well")));
            });
        }

        #[test]
        fn a_checker_that_fails_is_named_and_the_program_is_not_blamed() {
            $with(|executor| async move {
                for (checker, words) in [
                    ("exit 3", "the checker ended with exit code 3"),
                    ("kill -9 $$", "the checker: ended by signal 9"),
                    ("while :; do :; done", "the checker: more than 200 ms of CPU time"),
                    ("yes", "the checker: printed more than"),
                    ("echo score 7", "the checker gave the score 7"),
                ] {
                    let program = common::task(common::bash(), "echo on");
                    let mut task = judged(program, common::bash(), checker, &[("", None), ("", None)]);
                    let Checker::Program(program) = &mut task.spec.checker else { unreachable!() };
                    if words.contains("200 ms") {
                        program.limits.cpu_ms = 200;
                    }
                    let result = common::run(&executor, task).await;
                    assert_eq!(result.outcome.verdict, Verdict::InternalError, "{result:?}");
                    let message = result.outcome.message.unwrap();
                    assert!(message.starts_with("test 1 of 2: ") && message.contains(words), "{message}");
                    assert_eq!(result.output.tests.len(), 1);
                }
                let program = common::task(common::bash(), "echo on");
                let task = judged(program, common::c(), "int main(", &[("", None)]);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::InternalError, "{result:?}");
                assert!(result.outcome.message.unwrap().contains("the checker cannot be compiled"));
                assert!(result.output.tests[0].checker.as_ref().unwrap().contains("error"));
                // It is not asked about a program that failed by itself.
                let program = common::task(common::bash(), "exit 9");
                let task = judged(program, common::bash(), "exit 3", &[("", None)]);
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                assert_eq!(result.outcome.exit_code, Some(9));
            });
        }

        #[test]
        fn a_job_and_its_checker_find_room_beside_what_others_have_left() {
            $with(|executor| async move {
                // One slot has room for two sandboxes: each job finds both taken by one that still cleans up, or by
                // idle ones of another owner, or of another size.
                for n in 0..6 {
                    let program = common::task(common::bash(), "echo on");
                    let cases = [("", None), ("", None)];
                    let mut task = judged(program, common::bash(), "exit 0", &cases);
                    task.spec.isolation_key = (n % 3 > 0).then(|| format!("key {n}"));
                    let Checker::Program(program) = &mut task.spec.checker else { unreachable!() };
                    program.limits.memory_kb = if n % 2 == 0 { 128 << 10 } else { 256 << 10 };
                    let result = common::run(&executor, task).await;
                    assert_eq!(verdicts(&result), [Verdict::Accepted; 2], "{result:?}");
                    let counts = executor.sandboxes();
                    assert!(counts["warm"] + counts["busy"] + counts["starting"] <= 2, "{counts:?}");
                }
            });
        }

        #[test]
        fn a_job_can_be_cancelled_while_its_checker_runs() {
            $with(|executor| async move {
                let program = common::task(common::bash(), "echo on");
                let task = judged(program, common::bash(), "sleep 600", &[("", None), ("", None)]);
                let cancel = CancellationToken::new();
                let (output, _) = mpsc::channel(1);
                let job = executor.execute(task, output, cancel.clone());
                let stop = async {
                    // The program and its checker have a sandbox each: when both are busy, the checker is about to run.
                    common::sandboxes(&executor, |counts| counts["busy"] == 2).await;
                    cancel.cancel();
                };
                let (result, ()) = tokio::time::timeout(common::PATIENCE, async {
                    tokio::join!(job, stop)
                })
                .await
                .unwrap();
                let result = result.unwrap();
                assert_eq!(result.outcome.verdict, Verdict::Cancelled, "{result:?}");
                let next = common::run(&executor, common::task(common::bash(), "echo on")).await;
                common::assert_prints(&next, b"on\n");
            });
        }

        #[test]
        fn a_case_may_have_times_of_its_own() {
            $with(|executor| async move {
                let source = "read n; while [ $n = 1 ]; do :; done; echo on";
                let mut task = common::task(common::bash(), source);
                task.spec.tests = common::cases(&[("0\n", Some("on")), ("1\n", Some("on")), ("0\n", Some("on"))]);
                task.spec.tests[1].cpu_ms = Some(100);
                let result = common::run(&executor, task).await;
                use Verdict::{Accepted, TimeLimit};
                assert_eq!(verdicts(&result), [Accepted, TimeLimit, Accepted], "{result:?}");
                let message = result.outcome.message.unwrap();
                assert_eq!(message, "test 2 of 3: more than 100 ms of CPU time");
            });
        }

        #[test]
        fn what_is_not_kept_whole_is_not_compared() {
            $with(|executor| async move {
                let mut task = common::task(common::bash(), "printf '%1024s' x; echo y");
                task.spec.limits.output_kb = 1;
                let kept = format!("{:>1024}", "x");
                task.spec.tests = common::cases(&[("", Some(&kept)), ("", None)]);
                let result = common::run(&executor, task).await;
                assert_eq!(verdicts(&result), [Verdict::WrongAnswer, Verdict::Accepted], "{result:?}");
                assert!(result.outcome.message.unwrap().contains("more than the 1 KiB"));
            });
        }

        #[test]
        fn files_come_back_as_they_are_and_what_is_none_is_said() {
            $with(|executor| async move {
                let source = "mkdir -p d/e; printf text > d/e/text; printf '\\377\\0' > bytes; : > empty;\
                    ln -s /etc/passwd link; ln -s / root; mkfifo fifo; truncate -s 100M sparse;\
                    head -c 3000 /dev/zero > large; exit 3";
                let mut task = common::task(common::bash(), source);
                task.spec.limits.output_kb = 2;
                let names = ["d/e/text", "bytes", "empty", "missing", "link", "root/etc/passwd", "fifo",
                    "d/e", "large", "main", "sparse"];
                task.spec.outputs = names.iter().map(|name| (*name).to_owned()).collect();
                let result = common::run(&executor, task.clone()).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError, "{result:?}");
                let files = &result.output.files;
                assert!(files.iter().map(|file| &file.name[..]).eq(names), "{files:?}");
                let content = |n: usize| (&files[n].content[..], files[n].size, files[n].truncated);
                assert_eq!(content(0), (&b"text"[..], 4, false));
                assert_eq!(content(1), (&b"\xff\0"[..], 2, false));
                assert_eq!(content(2), (&b""[..], 0, false));
                assert!(files[..3].iter().all(|file| file.missing.is_none()));
                for (n, words) in [(3, "no such file"), (4, "link"), (5, "link"), (6, "no regular file"), (7, "folder")] {
                    assert!(files[n].missing.as_ref().unwrap().contains(words), "{:?}", files[n]);
                    assert!(files[n].content.is_empty());
                }
                // All of them together have what one stream has.
                assert_eq!((files[8].size, files[8].content.len(), files[8].truncated), (3000, 2048 - 6, true));
                assert!(files[9].truncated && files[9].content.is_empty());
                assert_eq!((files[10].size, files[10].truncated), (100 << 20, true));
                let held: usize = files.iter().map(|file| file.content.len()).sum();
                assert_eq!(held, 2048);
                // Nothing of it stays, and a program that does not compile leaves nothing.
                let next = common::run(&executor, common::task(common::bash(), "ls -A")).await;
                common::assert_prints(&next, b"main\n");
                task.language = common::c();
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::CompileError, "{result:?}");
                assert!(result.output.files.is_empty());
            });
        }

        #[test]
        fn files_come_back_of_a_program_that_was_ended_too() {
            $with(|executor| async move {
                let mut task = common::task(common::bash(), "echo kept > f; while :; do echo more >> g; done");
                task.spec.limits.cpu_ms = 300;
                task.spec.outputs = vec!["f".into(), "g".into()];
                let result = common::run(&executor, task).await;
                assert_eq!(result.outcome.verdict, Verdict::TimeLimit, "{result:?}");
                let files = &result.output.files;
                assert_eq!(files[0].content, &b"kept\n"[..]);
                assert!(files[1].content.starts_with(b"more\n"));
            });
        }
    };
}
