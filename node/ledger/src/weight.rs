//! What a job weighs, by which the queue and what is kept of finished jobs are bounded.
//!
//! A job weighs what its records hold, in their encoding and with their keys, and a fixed amount for every record and entry
//! of an index: whatever a client can make long is counted, also what a later version adds. What changes from step to step
//! and cannot grow (a time, a place) counts as if it were there and as long as it gets, so that a weight changes only when
//! something comes to the job: its submission, its result, an attempt to deliver it.
//!
//! Earlier versions counted the payload only ([`JobSpec::weight`], [`Output::weight`]): sources, inputs, outputs. Many
//! small jobs hold far more than that. [`Command::Reweigh`](crate::Command::Reweigh) begins to count as is said here, and
//! weighs the jobs anew that there are, a part at a time; [`Weights`] says how far it is.

use std::io;

use serde::{Deserialize, Serialize};

use crate::callback::{Callback, DeliveryAttempt};
use crate::codec;
use crate::job::{JobId, JobSpec, Outcome, Output};

/// A record beside its key and value: lengths, a checksum, its part of an index.
const RECORD: u64 = 32;
/// A key of one letter and a job.
const JOB_KEY: u64 = 17;
/// A key of one letter, a time and a job.
const TIME_KEY: u64 = 25;
/// The record of a job, all of its fields at their longest, but for what is counted by itself.
const JOB: u64 = 320;
/// The record of a delivery likewise.
const DELIVERY: u64 = 96;
/// The record of an idempotency key.
const KEY_VALUE: u64 = 96;
/// What a text has beside its bytes.
const TEXT: u64 = 5;

/// By what jobs are weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// By their payload, as earlier versions have it.
    #[default]
    Payload,
    /// By their records; of the jobs that there were at the beginning, those that were looked at.
    Begun {
        /// The last job that was looked at, in the order of ids.
        seen: JobId,
        /// The last one that there was at the beginning.
        last: JobId,
    },
    /// By their records, all of them.
    Records,
}

impl Weights {
    /// Whether what comes now is weighed by its records.
    pub(crate) fn by_records(self) -> bool {
        self != Self::Payload
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // for serde
    pub(crate) fn is_payload(&self) -> bool {
        *self == Self::Payload
    }

    /// What a job weighs when it is submitted.
    #[must_use]
    pub fn of_submission(self, spec: &JobSpec, key: Option<&str>) -> u64 {
        if self.by_records() {
            of_submission(spec, key)
        } else {
            spec.weight()
        }
    }

    /// What its result adds.
    pub(crate) fn of_result(self, outcome: &Outcome, output: &Output) -> u64 {
        if self.by_records() {
            of_result(outcome, output)
        } else {
            output.weight()
        }
    }

    /// What an attempt to deliver it adds.
    pub(crate) fn of_attempt(self, attempt: &DeliveryAttempt) -> u64 {
        if self.by_records() {
            of_attempt(attempt)
        } else {
            0
        }
    }
}

/// Takes bytes, and only counts them.
struct Count(u64);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long the encoding of a value is, bytes.
fn encoded<T: Serialize>(value: &T) -> u64 {
    let mut count = Count(0);
    codec::write(value, &mut count);
    count.0
}

const fn text(text: &str) -> u64 {
    text.len() as u64 + TEXT
}

/// What the records of a submission hold, see the head of this file.
#[must_use]
pub fn of_submission(spec: &JobSpec, key: Option<&str>) -> u64 {
    let owner = spec.owner_name();
    let submitted = RECORD + JOB_KEY + encoded(spec);
    let labels: u64 = spec.labels.iter().map(|label| text(label)).sum();
    let of_job = text(&spec.language) + labels + key.map_or(0, text) + owner.map_or(0, text);
    let job = RECORD + JOB_KEY + JOB + of_job;
    // While it waits it stands in the queue, while it runs at its node, then in the orders of expiry and of age.
    let places = 2 * (RECORD + TIME_KEY + TEXT) + text(&spec.language);
    let of_key = key.map_or(0, |key| {
        RECORD + text(key) + owner.map_or(0, text) + KEY_VALUE
    });
    let owned = owner.map_or(0, |owner| RECORD + JOB_KEY + text(owner) + TEXT);
    let delivery = spec.callback.as_ref().map_or(0, of_delivery);
    submitted + job + places + of_key + owned + delivery
}

/// The delivery, and that it is due, with the host.
fn of_delivery(callback: &Callback) -> u64 {
    let url = text(&callback.url);
    (RECORD + JOB_KEY + DELIVERY + url) + (RECORD + TIME_KEY + url)
}

/// What the records of a result hold.
#[must_use]
pub fn of_result(outcome: &Outcome, output: &Output) -> u64 {
    RECORD + JOB_KEY + encoded(output) + encoded(outcome)
}

/// What the record of an attempt to deliver holds.
#[must_use]
pub fn of_attempt(attempt: &DeliveryAttempt) -> u64 {
    encoded(attempt)
}
