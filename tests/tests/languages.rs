//! Every language says hello, through every node.

#[path = "languages/set.rs"]
mod set;

use std::path::{Path, PathBuf};

use quorun_tests::{Cluster, Engine, Executor, Plan, node, say};
use serde_json::{Value, json};

const LANGUAGES: [&str; 12] = [
    "python",
    "javascript",
    "typescript",
    "java",
    "ruby",
    "perl",
    "php",
    "c",
    "cpp",
    "go",
    "rust",
    "bash",
];

/// These are on every machine that can build the program.
const EVERYWHERE: [&str; 4] = ["python", "perl", "c", "bash"];

/// The tools that a language needs, as its entry in the file of languages has them.
fn tools(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sandbox/image/languages.toml");
    let text = std::fs::read_to_string(&path).expect("the file of languages");
    let file: toml::Value = toml::from_str(&text).expect("the file of languages");
    let entry = file["language"]
        .as_array()
        .expect("languages")
        .iter()
        .find(|entry| entry["name"].as_str() == Some(language))
        .expect("the language");
    ["compile", "run"]
        .iter()
        .filter_map(|step| entry.get(step)?.as_array()?.first()?.as_str())
        // What the job brings itself is no tool.
        .filter(|program| !program.starts_with("./"))
        .map(str::to_owned)
        .collect()
}

/// Where a program is on the path that nodes have in these tests.
fn on_path(program: &str) -> Option<PathBuf> {
    node::PATH
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
}

/// Posts the language's example through every node, both ways.
async fn says_hello(cluster: &Cluster, language: &Value) {
    let name = language["name"].as_str().expect("a name");
    let example = language["example"].as_str().expect("an example");
    for client in cluster.clients() {
        let mut job = json!({ "language": name, "source": example });
        // The machine may be busy with something else; how long it takes is not the question here.
        job["limits"] = json!({ "cpu_ms": 20_000, "wall_ms": 60_000 });
        let done = client.run(&job).await;
        assert_eq!(done["verdict"], "accepted", "{name}: {done}");
        assert_eq!(done["stdout"], "hello\n", "{name}: {done}");
        assert_eq!(done["exit_code"], 0, "{name}: {done}");
        assert_eq!(done["language"], name);
        assert_eq!(
            done["compile"].is_object(),
            language["compiled"] == true,
            "{name}: {done}"
        );
    }
}

async fn languages(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.any().get("/v1/languages").await.expect(200);
    let all = list["languages"].as_array().expect("languages").clone();
    let names: Vec<_> = all.iter().filter_map(|l| l["name"].as_str()).collect();
    assert_eq!(names, LANGUAGES);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn as_plain_processes_where_the_tools_are_here() {
    let cluster = Cluster::of_processes().await;
    for language in languages(&cluster).await {
        let name = language["name"].as_str().expect("a name");
        let missing: Vec<_> = tools(name)
            .into_iter()
            .filter(|tool| on_path(tool).is_none())
            .collect();
        if missing.is_empty() {
            says_hello(&cluster, &language).await;
        } else {
            assert!(
                !EVERYWHERE.contains(&name),
                "{name} must run here: {missing:?} is missing in {}",
                node::PATH
            );
            say(&format!(
                "SKIPPED {name} with the process executor: no {missing:?} on this machine"
            ));
        }
    }
}

/// A language of its own for each test: the report shows which one fails, and which one takes how long.
async fn in_a_container(name: &str) {
    let Some(_engine) = Engine::find(&format!("{name} in a container")).await else {
        return;
    };
    let mut cluster = Cluster::start(Plan::new(Executor::Docker)).await;
    let all = languages(&cluster).await;
    let language = all.iter().find(|language| language["name"] == name);
    says_hello(&cluster, language.expect("the language")).await;
    cluster.stop().await;
}

macro_rules! in_containers {
    ($($name:ident),+ $(,)?) => {
        mod in_a_container {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::in_a_container(stringify!($name)).await;
                }
            )+

            #[test]
            fn all_of_them() {
                assert_eq!([$(stringify!($name)),+], super::LANGUAGES);
            }
        }
    };
}

in_containers!(
    python, javascript, typescript, java, ruby, perl, php, c, cpp, go, rust, bash
);

/// Programs of several files: the entrypoint, which is not the first and has a name of its own, and what it needs.
const SEVERAL_FILES: [(&str, [(&str, &str); 2]); 6] = [
    (
        "python",
        [
            ("greeting.py", "def greet(): print('hello')"),
            ("start.py", "from greeting import greet\ngreet()"),
        ],
    ),
    (
        "typescript",
        [
            (
                "src/greeting.ts",
                "export function greet(): string { return 'hello'; }",
            ),
            (
                "start.ts",
                "import { greet } from './src/greeting';\nconsole.log(greet());",
            ),
        ],
    ),
    (
        "java",
        [
            (
                "Greeting.java",
                "class Greeting { static String text() { return \"hello\"; } }",
            ),
            (
                "Start.java",
                "public class Start { public static void main(String[] a) { System.out.println(Greeting.text()); } }",
            ),
        ],
    ),
    (
        "c",
        [
            (
                "greeting.c",
                "#include <stdio.h>\nvoid greet(void) { puts(\"hello\"); }",
            ),
            (
                "start.c",
                "void greet(void);\nint main(void) { greet(); return 0; }",
            ),
        ],
    ),
    (
        "cpp",
        [
            (
                "greeting.cpp",
                "#include <iostream>\nvoid greet() { std::cout << \"hello\\n\"; }",
            ),
            ("start.cpp", "void greet();\nint main() { greet(); }"),
        ],
    ),
    (
        "go",
        [
            (
                "greeting.go",
                "package main\nimport \"fmt\"\nfunc greet() { fmt.Println(\"hello\") }",
            ),
            ("start.go", "package main\nfunc main() { greet() }"),
        ],
    ),
];

/// For each compiled language, arguments without which its program would not say hello.
const COMPILE_ARGS: [(&str, &[&str], &str); 6] = [
    (
        "typescript",
        &["--target", "es5"],
        "class A {}\nconsole.log(String(A).startsWith('function') ? 'hello' : String(A));",
    ),
    (
        "java",
        &["-parameters"],
        "public class Main {
            static void f(String hello) {}
            public static void main(String[] a) throws Exception {
                System.out.println(Main.class.getDeclaredMethod(\"f\", String.class).getParameters()[0].getName());
            }
        }",
    ),
    (
        "c",
        &["-O0", "-std=c99", "-DGREETING=\"hello\""],
        "#include <stdio.h>
        #if defined(__OPTIMIZE__) || __STDC_VERSION__ != 199901L
        #error
        #endif
        int main(void) { puts(GREETING); }",
    ),
    (
        "cpp",
        &["-O0", "-std=c++17", "-DGREETING=\"hello\""],
        "#include <bits/stdc++.h>
        static_assert(__cplusplus == 201703L);
        int main() { std::cout << GREETING << std::endl; }",
    ),
    (
        "go",
        &["-ldflags=-X main.greeting=hello"],
        "package main\nvar greeting string\nfunc main() { print(greeting, \"\\n\") }",
    ),
    (
        "rust",
        &["--cfg", "greets", "-C", "opt-level=0"],
        "#[cfg(greets)] fn main() { println!(\"hello\") }",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_compiler_takes_arguments_of_the_job() {
    let Some(_engine) = Engine::find("arguments for compilers").await else {
        return;
    };
    let mut cluster = Cluster::start(Plan::new(Executor::Docker)).await;
    let all = languages(&cluster).await;
    let compiled = all.iter().filter(|language| language["compiled"] == true);
    let names: Vec<_> = compiled.filter_map(|l| l["name"].as_str()).collect();
    assert_eq!(names, COMPILE_ARGS.map(|(name, ..)| name));
    for (language, args, source) in COMPILE_ARGS {
        let mut job = json!({
            "language": language,
            "source": source,
            "compile_args": args,
            "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
        });
        let done = cluster.any().run(&job).await;
        assert_eq!(done["verdict"], "accepted", "{language}: {done}");
        // Go's `print` prints to stderr.
        let printed = [&done["stdout"], &done["stderr"]];
        assert!(printed.contains(&&json!("hello\n")), "{language}: {done}");
        assert_eq!(done["compile_args"], json!(args));
        job["compile_args"] = json!(["--no-such-argument"]);
        let done = cluster.any().run(&job).await;
        assert_eq!(done["verdict"], "compile_error", "{language}: {done}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_several_files_find_their_parts() {
    let Some(_engine) = Engine::find("programs of several files").await else {
        return;
    };
    let mut cluster = Cluster::start(Plan::new(Executor::Docker)).await;
    for (language, files) in SEVERAL_FILES {
        let files = files.map(|(name, content)| json!({ "name": name, "content": content }));
        let job = json!({
            "language": language,
            "files": files,
            "entrypoint": files[1]["name"],
            "limits": { "cpu_ms": 20_000, "wall_ms": 60_000 },
        });
        let done = cluster.any().run(&job).await;
        assert_eq!(done["verdict"], "accepted", "{language}: {done}");
        assert_eq!(done["stdout"], "hello\n", "{language}: {done}");
    }
    cluster.stop().await;
}
