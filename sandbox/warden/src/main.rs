//! PID 1 of a sandbox: starts a job, limits it, measures it, and leaves nothing of it behind.
//!
//! One process, one thread, one poll loop. In a container it is PID 1, gives every job a user of its own and kills with
//! one call whatever a job left behind. As a plain child process (the `process` executor) it does the same as far as an
//! ordinary process can: the job runs as the same user, and its processes are found by descent. See
//! [`quorun_warden::protocol`] for what it is told and what it answers.

mod archive;
mod cgroup;
mod files;
mod filter;
mod job;
mod memory;
mod options;
mod processes;
mod spawn;
mod terminal;
mod warden;
mod zygote;

use std::process::ExitCode;

fn main() -> ExitCode {
    memory::return_large_blocks();
    let options = match options::Options::from_command_line(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("quorun-warden: {message}");
            return ExitCode::from(2);
        }
    };
    let result = warden::Warden::new(options).and_then(|mut warden| {
        let result = warden.serve();
        // Whatever ended the loop, nothing of a job outlives its warden.
        warden.end();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorun-warden: {error}");
            ExitCode::FAILURE
        }
    }
}
