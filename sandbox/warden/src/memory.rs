//! The warden's own memory, as far as programs notice it.
//!
//! What a program's process inherits at the fork counts into its peak memory, although the program itself never sees it:
//! the kernel remembers the largest resident set of a process over its whole life, also from before exec. So a program
//! cannot be measured as smaller than the warden's heap and stack are when it is started.

use std::marker::PhantomData;

use crate::processes;

/// Blocks of this size and more are mapped one by one, and go back to the system as soon as they are freed.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 64 << 10;

/// Pages fewer than this are not worth two system calls.
const WORTH: usize = 16;

/// Has large blocks returned to the system when they are freed. The C library's allocator otherwise moves its thresholds
/// up with every large block that it sees, and from then on keeps as much for later.
pub(crate) fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator's; there is one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Bytes that a process forked meanwhile does not inherit; it must not touch them.
#[derive(Debug)]
pub(crate) struct Withheld<'a> {
    first: *mut libc::c_void,
    length: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Withheld<'a> {
    /// Withholds the pages that hold nothing but these bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let page = usize::try_from(processes::setting(libc::_SC_PAGESIZE)).unwrap_or(4096);
        let start = bytes.as_ptr();
        let skipped = start.align_offset(page);
        let length = bytes.len().saturating_sub(skipped) / page * page;
        let first = start.wrapping_add(skipped).cast_mut().cast();
        let mut withheld = Self {
            first,
            length,
            bytes: PhantomData,
        };
        if length < WORTH * page || !withheld.advise(libc::MADV_DONTFORK) {
            withheld.length = 0;
        }
        withheld
    }

    fn advise(&self, advice: libc::c_int) -> bool {
        // SAFETY: the pages lie within a slice that is borrowed; neither advice changes what this process finds in them.
        unsafe { libc::madvise(self.first, self.length, advice) == 0 }
    }
}

impl Drop for Withheld<'_> {
    fn drop(&mut self) {
        if self.length > 0 {
            // The memory may become something else that a later process needs.
            self.advise(libc::MADV_DOFORK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of this process's memory that are not inherited.
    fn not_inherited() -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags:"));
        flags
            .filter(|flags| flags.split_whitespace().any(|flag| flag == "dc"))
            .count()
    }

    #[test]
    fn bytes_are_withheld_for_a_while_and_stay_what_they_are() {
        let before = not_inherited();
        let bytes = vec![7; 1 << 20];
        let withheld = Withheld::new(&bytes);
        assert_eq!(not_inherited(), before + 1);
        drop(withheld);
        assert_eq!(not_inherited(), before);
        assert!(bytes.iter().all(|byte| *byte == 7));
        let few = Withheld::new(&bytes[..4096]);
        assert_eq!(not_inherited(), before);
        drop(few);
        drop(Withheld::new(&[]));
    }
}
