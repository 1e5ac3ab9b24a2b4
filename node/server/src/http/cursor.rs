//! Where a list goes on: opaque to clients, and bound to the list that it came from.
//!
//! One byte of version, eight of the digest of what was asked for, sixteen of the last job that was looked at; in base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use quorun_ledger::{JobFilter, JobId, codec};

use super::problem::Problem;

const VERSION: u8 = 1;
const DIGEST: usize = 8;

fn digest(filter: &JobFilter) -> [u8; DIGEST] {
    let whole = blake3::hash(&codec::encode(filter));
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&whole.as_bytes()[..DIGEST]);
    digest
}

/// The cursor behind a job in the list of a filter.
pub fn behind(job: JobId, filter: &JobFilter) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&digest(filter));
    bytes.extend_from_slice(job.as_bytes());
    BASE64URL.encode(bytes)
}

/// The job behind which a list goes on.
pub fn read(text: &str, filter: &JobFilter) -> Result<JobId, Problem> {
    let malformed = || {
        Problem::invalid(
            "cursor",
            "cursor is not one of this version; it should be the next_cursor of an earlier answer, as it was",
        )
        .with("value", text)
    };
    let bytes = BASE64URL.decode(text).map_err(|_| malformed())?;
    let Some((&VERSION, rest)) = bytes.split_first() else {
        return Err(malformed());
    };
    let (digest_of, job) = rest.split_at_checked(DIGEST).ok_or_else(malformed)?;
    let job = JobId::from_slice(job).ok_or_else(malformed)?;
    if digest_of != digest(filter) {
        return Err(Problem::invalid(
            "cursor",
            "cursor belongs to another list; send it with the same filter and order as the request that it came from (limit may change)",
        )
        .with("value", text));
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(number: u128) -> JobId {
        JobId::from_slice(&number.to_be_bytes()).unwrap()
    }

    #[test]
    fn a_cursor_is_good_for_its_own_list_alone() {
        let mut filter = JobFilter::default();
        filter.labels.insert("a".to_owned());
        let cursor = behind(job(7), &filter);
        assert_eq!(read(&cursor, &filter).unwrap(), job(7));
        filter.oldest_first = true;
        read(&cursor, &filter).unwrap_err();
        read(&cursor, &JobFilter::default()).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..40), id: u128) {
            let filter = JobFilter::default();
            let _ = read(&text, &filter);
            let _ = read(&BASE64URL.encode(&bytes), &filter);
            let cursor = behind(job(id), &filter);
            prop_assert_eq!(read(&cursor, &filter).unwrap(), job(id));
            for cut in 0..cursor.len() {
                prop_assert!(read(&cursor[..cut], &filter).is_err());
            }
        }
    }
}
