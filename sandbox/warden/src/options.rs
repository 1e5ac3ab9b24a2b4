//! The command line, and what follows from where the warden runs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Search path of a step when the warden was given none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lowest user id that a job gets.
const FIRST_UID: u32 = 10_000;

/// How the warden runs.
#[derive(Debug)]
pub(crate) struct Options {
    /// Working folder of a job.
    pub(crate) work: PathBuf,
    /// Folder for temporary files of a job.
    pub(crate) tmp: PathBuf,
    /// PID 1 of a container. Only then may it kill "everything else".
    pub(crate) contained: bool,
    /// The user ids that jobs get in turn; `None` when the warden cannot or must not change users.
    pub(crate) uids: Option<std::ops::Range<u32>>,
    /// Search path of a step.
    pub(crate) path: String,
}

impl Options {
    pub(crate) fn from_command_line(
        arguments: impl Iterator<Item = OsString>,
    ) -> Result<Self, String> {
        let contained = std::process::id() == 1;
        let (work, tmp) = folders(arguments)?;
        let (work, tmp) = match (work, tmp, contained) {
            (Some(work), Some(tmp), _) => (work, tmp),
            (None, None, true) => (PathBuf::from("/box"), PathBuf::from("/tmp")),
            // Without folders of its own it would wipe the machine's /tmp.
            _ => {
                return Err(
                    "outside a container both --box DIR and --tmp DIR are needed".to_owned(),
                );
            }
        };
        if !work.is_absolute() || !tmp.is_absolute() {
            return Err("--box and --tmp must be absolute".to_owned());
        }
        let uids = if contained && rustix::process::geteuid().is_root() {
            let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            Some(usable_uids(&map)?)
        } else {
            None
        };
        let path = std::env::var("PATH")
            .ok()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| DEFAULT_PATH.to_owned());
        Ok(Self {
            work,
            tmp,
            contained,
            uids,
            path,
        })
    }
}

fn folders(
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<(Option<PathBuf>, Option<PathBuf>), String> {
    let (mut work, mut tmp) = (None, None);
    while let Some(argument) = arguments.next() {
        let target = match argument.as_encoded_bytes() {
            b"--box" => &mut work,
            b"--tmp" => &mut tmp,
            other => {
                return Err(format!(
                    "unknown argument {:?}; it takes --box DIR and --tmp DIR",
                    String::from_utf8_lossy(other)
                ));
            }
        };
        let value = arguments
            .next()
            .ok_or_else(|| format!("{} needs a folder", argument.to_string_lossy()))?;
        *target = Some(PathBuf::from(OsString::from_vec(value.into_vec())));
    }
    Ok((work, tmp))
}

/// The user ids above [`FIRST_UID`] that exist in this user namespace.
///
/// RLIMIT_NPROC counts the processes of a user over all containers that share a user namespace, which with Docker is the
/// whole machine. So two sandboxes must not use the same id at the same time, and the range is as wide as it can be.
fn usable_uids(map: &str) -> Result<std::ops::Range<u32>, String> {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
            let first = fields.next()?.ok()?;
            let _outside = fields.next()?.ok()?;
            let count = fields.next()?.ok()?;
            // The upper half is where some programs take an id for a negative number.
            let end = first.saturating_add(count).min(i32::MAX as u32);
            Some(first.max(FIRST_UID)..end)
        })
        .find(|range| range.len() >= 1000)
        .ok_or_else(|| format!("no user ids above {FIRST_UID} to give to jobs: {map:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_what_the_namespace_has() {
        let whole = usable_uids("         0          0 4294967295\n").unwrap();
        assert_eq!(whole, 10_000..2_147_483_647);
        let remapped = usable_uids("0 100000 65536\n").unwrap();
        assert_eq!(remapped, 10_000..65_536);
        assert!(usable_uids("0 1000 1\n").is_err());
    }

    #[test]
    fn folders_are_never_guessed_outside_a_container() {
        assert!(Options::from_command_line(std::iter::empty()).is_err());
        let one = ["--box", "/x"].map(OsString::from);
        assert!(Options::from_command_line(one.into_iter()).is_err());
        let relative = ["--box", "x", "--tmp", "/y"].map(OsString::from);
        assert!(Options::from_command_line(relative.into_iter()).is_err());
        let both = ["--box", "/x", "--tmp", "/y"].map(OsString::from);
        let options = Options::from_command_line(both.into_iter()).unwrap();
        assert!(!options.contained);
        assert!(options.uids.is_none());
    }

    #[test]
    fn unknown_arguments_are_named() {
        let error = Options::from_command_line([OsString::from("--bix")].into_iter()).unwrap_err();
        assert!(error.contains("--bix"), "{error}");
    }
}
