//! Compilers: programs with the job's rights, that read what a source tells them to and may be kept busy by it.
//!
//! Whatever they are told to include, no more is in their messages than the job could have read and printed by itself.

use quorun_ledger::job::{JobResult, Verdict};

use crate::fixture::{
    After, Job, assert_message, assert_verdict, compiler_text, large, show, small, text,
};

/// That the compile step failed, and that nothing of what was to be included is in its messages or anywhere else.
#[track_caller]
fn assert_nothing_learned(result: &JobResult) {
    assert_verdict(result, Verdict::CompileError);
    let printed = compiler_text(result) + &text(result);
    // What a line of each of the files has in it.
    for secret in [
        "HOSTNAME", "PATH=", "HOME=", "root:", ":0:", "daemon", "::", "7ff", "rw-p",
    ] {
        assert!(!printed.contains(secret), "{secret}: {}", show(result));
    }
}

/// Files that only root may read.
const UNREADABLE: [&str; 4] = [
    "/etc/shadow",
    "/proc/1/environ",
    "/proc/1/maps",
    "/proc/1/root/etc/passwd",
];

#[test]
fn including_in_c_what_only_root_may_read() {
    large(|sandbox| {
        for path in UNREADABLE {
            let source = format!("#include \"{path}\"\nint main(void) {{ return 0; }}\n");
            let result = sandbox.attack(After::Kept, &Job::c(source));
            assert_nothing_learned(&result);
            assert!(
                compiler_text(&result).contains("Permission denied"),
                "{}",
                show(&result)
            );
        }
    });
}

#[test]
fn assembling_what_only_root_may_read() {
    large(|sandbox| {
        for path in UNREADABLE {
            for directive in ["incbin", "include"] {
                let source = format!(
                    "__asm__(\".globl secret\\nsecret: .{directive} \\\"{path}\\\"\\n.byte 0\\n\");
                     #include <stdio.h>
                     extern char secret[];
                     int main(void) {{ puts(secret); return 0; }}"
                );
                let result = sandbox.attack(After::Kept, &Job::c(source));
                assert_nothing_learned(&result);
            }
        }
    });
}

#[test]
fn including_in_rust_what_only_root_may_read() {
    large(|sandbox| {
        for (number, path) in UNREADABLE.into_iter().enumerate() {
            let source = match number % 2 {
                0 => format!("fn main() {{ println!(\"{{:?}}\", include_bytes!(\"{path}\")); }}"),
                _ => format!("fn main() {{ print!(\"{{}}\", include_str!(\"{path}\")); }}"),
            };
            let result = sandbox.attack(After::Kept, &Job::rust(source));
            assert_verdict(&result, Verdict::CompileError);
            let printed = compiler_text(&result);
            assert!(printed.contains("Permission denied"), "{}", show(&result));
            assert!(!printed.contains("HOSTNAME="), "{}", show(&result));
        }
    });
}

#[test]
fn the_environment_of_a_compiler_is_the_languages() {
    // It may read its own; there is nothing of the warden's or the node's in it.
    large(|sandbox| {
        let source = "fn main() { print!(\"{}\", include_str!(\"/proc/self/environ\").replace('\\0', \"\\n\")); }";
        let result = sandbox.attack(After::Kept, &Job::rust(source));
        if result.outcome.verdict == Verdict::Accepted {
            let text = text(&result);
            let mut names: Vec<&str> = text
                .lines()
                .filter_map(|line| Some(line.split_once('=')?.0))
                .collect();
            names.sort_unstable();
            names.dedup();
            // Added by the compiler itself for its own programs.
            names.retain(|name| !["LD_LIBRARY_PATH", "VSLANG", "LC_ALL"].contains(name));
            assert_eq!(names, ["HOME", "LANG", "PATH", "TMPDIR"], "{text}");
        } else {
            assert_verdict(&result, Verdict::CompileError);
        }
    });
}

#[test]
fn including_a_file_without_an_end() {
    large(|sandbox| {
        // Zeroes for ever, noise for ever, and a pipe that nobody else writes to.
        for path in ["/dev/zero", "/dev/urandom", "/proc/self/fd/1"] {
            let source = format!("#include \"{path}\"\nint main(void) {{ return 0; }}\n");
            let job = Job::c(source).compile_cpu_ms(1000).compile_wall_ms(3000);
            let result = sandbox.attack(After::Either, &job);
            assert_verdict(&result, Verdict::CompileError);
        }
    });
}

#[test]
fn including_the_standard_input() {
    large(|sandbox| {
        // The job's input is for the program; a compiler has an empty one.
        let source = "#include \"/dev/stdin\"\nint main(void) { return 0; }\n";
        let job = Job::c(source).stdin("#error read\n");
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::Accepted);
    });
}

#[test]
fn a_source_that_includes_itself() {
    large(|sandbox| {
        let job = Job::c("#include \"main.c\"\n#include \"main.c\"\n").compile_cpu_ms(1000);
        let result = sandbox.attack(After::Either, &job);
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn macros_that_double_again_and_again() {
    large(|sandbox| {
        let mut source = String::from("#define A0 1 +\n");
        for level in 1..=40 {
            let below = level - 1;
            source += &format!("#define A{level} A{below} A{below}\n");
        }
        source += "int main(void) { return A40 1; }\n";
        let result = sandbox.attack(After::Either, &Job::c(source).compile_cpu_ms(1000));
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn templates_without_end() {
    large(|sandbox| {
        let source = "
            template<int N, int M> struct A { A<N - 1, M * 2> left; A<N - 1, M * 2 + 1> right; };
            template<int M> struct A<0, M> {};
            A<28, 1> a;
            int main() {}";
        let result = sandbox.attack(After::Either, &Job::cpp(source).compile_cpu_ms(1000));
        assert_verdict(&result, Verdict::CompileError);
        let source = "
            template<int N> struct B { static constexpr int value = B<N + 1>::value + 1; };
            int main() { return B<0>::value; }";
        let result = sandbox.attack(After::Either, &Job::cpp(source).compile_cpu_ms(5000));
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn computing_without_end_while_compiling() {
    large(|sandbox| {
        let source = "
            constexpr long count(long n) { long sum = 0; for (long i = 0; i < n; i++) sum += i; return sum; }
            static_assert(count(200000000) != 1);
            int main() {}";
        let result = sandbox.attack(After::Either, &Job::cpp(source).compile_cpu_ms(1000));
        assert_verdict(&result, Verdict::CompileError);
        let source = "
            const fn count(n: u64) -> u64 { let mut i = 0; while i < n { i += 1; } i }
            #[allow(long_running_const_eval)]
            const LONG: u64 = count(1 << 40);
            fn main() { println!(\"{LONG}\"); }";
        let result = sandbox.attack(After::Either, &Job::rust(source).compile_cpu_ms(1000));
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn a_gigantic_constant() {
    large(|sandbox| {
        for size in ["1u << 30", "1ul << 40"] {
            let source = format!("char a[{size}] = {{ 1 }};\nint main(void) {{ return a[0]; }}\n");
            let result = sandbox.attack(After::Either, &Job::c(source).compile_cpu_ms(2000));
            assert_verdict(&result, Verdict::CompileError);
        }
        let source = "__asm__(\".fill 1 << 40, 1, 7\"); int main(void) { return 0; }";
        let result = sandbox.attack(After::Either, &Job::c(source).compile_cpu_ms(2000));
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn messages_without_end() {
    large(|sandbox| {
        // Each line is a mistake that quotes itself.
        let source = format!("#pragma GCC error \"{}\"\n", "x".repeat(100)).repeat(10_000);
        let result = sandbox.attack(After::Kept, &Job::c(source));
        assert_verdict(&result, Verdict::CompileError);
        let kept = result.output.compile.as_ref().expect("a compile step");
        assert!(kept.truncated, "{}", show(&result));
        assert!(kept.stderr.len() <= 64 << 10, "{}", show(&result));
    });
}

#[test]
fn a_folder_in_the_place_of_the_compiled_program() {
    large(|sandbox| {
        let source = "int main(void) { return 0; }";
        let job = Job::c(source).file("main/main", "in the way");
        let result = sandbox.attack(After::Kept, &job);
        assert_verdict(&result, Verdict::CompileError);
    });
}

#[test]
fn a_daemon_of_the_compile_step_does_not_reach_the_run_step() {
    small(|sandbox| {
        let build = "
            for i in 1 2 3 4; do (trap '' HUP TERM; setsid sleep 1000 &) & done
            wait
            setsid bash -c 'while :; do echo > spoiled; done' &
            echo built > built";
        let run = "for process in /proc/[0-9]*; do
                [ $process = /proc/1 ] || [ $process = /proc/$$ ] || echo $process
            done
            cat built";
        let job = Job::scripts(build, run);
        assert_eq!(sandbox.attack_prints(After::Kept, &job), "built\n");
    });
}

#[test]
fn the_compile_step_is_bounded_like_the_run_step() {
    large(|sandbox| {
        let fork_bomb = "perl -e 'fork() while 1'";
        let loud = "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done";
        let deaf = "trap '' HUP INT TERM; while :; do :; done";
        for (build, message) in [
            (fork_bomb, "of CPU time"),
            (loud, "printed far more than is kept"),
            (deaf, "of CPU time"),
        ] {
            let job = Job::scripts(build, "echo ran").compile_cpu_ms(1000);
            let result = sandbox.attack(After::Kept, &job);
            assert_verdict(&result, Verdict::CompileError);
            assert_message(&result, message);
            assert_eq!(text(&result), "");
        }
        let hungry = "perl -e 'push(@all, \"x\" x (1 << 20) . $_) for 1..1000'";
        let result = sandbox.attack(After::Discarded, &Job::scripts(hungry, "echo ran"));
        assert_verdict(&result, Verdict::CompileError);
        assert_message(&result, "KiB of memory");
    });
}

#[test]
fn a_compile_step_that_leaves_something_else_to_run() {
    small(|sandbox| {
        // The run step runs with the job's rights whatever it finds.
        for build in [
            "ln -sf /etc/shadow run.sh",
            "ln -sf /proc/1/environ run.sh",
            "rm run.sh; ln -s run.sh run.sh",
            "rm run.sh; mkfifo run.sh; chmod 0 run.sh",
            "rm -rf /box/* /box/.*",
        ] {
            let result = sandbox.attack(After::Kept, &Job::scripts(build, "echo ran"));
            assert_verdict(&result, Verdict::RuntimeError);
            assert_eq!(text(&result), "", "{build}");
        }
    });
}
