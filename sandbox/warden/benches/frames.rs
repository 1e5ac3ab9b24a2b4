//! What the frames between a node and a warden cost to write and to read.
//!
//! ```text
//! cargo bench -p quorun-warden
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use quorun_warden::protocol::{
    Collect, Decoder, Event, File, Limits, MAX_OUTPUT, Program, Request, Run, Step, StepKind,
    Stream, encode,
};

fn main() {
    divan::main();
}

/// A job as it is sent to a warden.
fn run(source: usize) -> Request {
    let limits = Limits {
        cpu_us: 2_000_000,
        wall_us: 5_000_000,
        memory_kb: 256 << 10,
        processes: 64,
        output_bytes: 400 << 10,
        file_bytes: 128 << 20,
        open_files: 256,
        stack_bytes: 64 << 20,
    };
    let words = ["python3", "main.py"];
    Request::Run(Box::new(Run {
        program: Program::Files(vec![File {
            name: "main.py".to_owned(),
            content: vec![b'x'; source],
        }]),
        compile: None,
        hold: None,
        data: Vec::new(),
        run: Step {
            argv: words.map(str::to_owned).to_vec(),
            env: Vec::new(),
            limits,
        },
        collect: Collect::default(),
        stdin: Vec::new(),
        close_stdin: true,
        terminal: None,
        zygote: None,
    }))
}

/// What a program printed.
fn output(bytes: usize) -> Event {
    Event::Output {
        step: StepKind::Run,
        stream: Stream::Stdout,
        offset: 0,
        data: vec![b'x'; bytes],
    }
}

#[divan::bench(args = [64, 1024, 65_536, 1_048_576])]
fn encode_job(bencher: Bencher<'_, '_>, source: usize) {
    let request = run(source);
    let mut buffer = Vec::new();
    bencher.counter(BytesCount::new(source)).bench_local(|| {
        buffer.clear();
        encode(black_box(&request), &mut buffer).unwrap();
    });
}

#[divan::bench(args = [64, 1024, 65_536, 1_048_576])]
fn decode_job(bencher: Bencher<'_, '_>, source: usize) {
    let mut frame = Vec::new();
    encode(&run(source), &mut frame).unwrap();
    bencher.counter(BytesCount::new(source)).bench_local(|| {
        let mut decoder = Decoder::default();
        decoder.extend(black_box(&frame));
        decoder.frame::<Request>().unwrap().unwrap()
    });
}

#[divan::bench(args = [64, 4096, MAX_OUTPUT])]
fn encode_output(bencher: Bencher<'_, '_>, bytes: usize) {
    let event = output(bytes);
    let mut buffer = Vec::new();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        buffer.clear();
        encode(black_box(&event), &mut buffer).unwrap();
    });
}

#[divan::bench(args = [64, 4096, MAX_OUTPUT])]
fn decode_output(bencher: Bencher<'_, '_>, bytes: usize) {
    let mut frame = Vec::new();
    encode(&output(bytes), &mut frame).unwrap();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        let mut decoder = Decoder::default();
        decoder.extend(black_box(&frame));
        decoder.frame::<Event>().unwrap().unwrap()
    });
}
