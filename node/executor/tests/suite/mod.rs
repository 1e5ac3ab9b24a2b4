//! What every executor must do, as a macro: each kind gets the same tests.

macro_rules! suite {
    ($with:path) => {
        use bytes::Bytes;
        use quorun_ledger::job::Verdict;

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
        fn exit_code_is_kept() {
            $with(|executor| async move {
                let result = common::run(&executor, common::task(common::bash(), "exit 42")).await;
                assert_eq!(result.outcome.verdict, Verdict::RuntimeError);
                assert_eq!(result.outcome.exit_code, Some(42));
            });
        }
    };
}
