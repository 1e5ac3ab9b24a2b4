//! Whether a program printed what it should.

/// Whether two texts have the same lines. Blanks at the end of a line, and empty lines at the end of the text, make no
/// difference, as on most judges; everything else does.
pub(crate) fn same_lines(printed: &[u8], expected: &[u8]) -> bool {
    lines(printed).eq(lines(expected))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.trim_ascii_end()
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_sees_makes_no_difference() {
        for same in ["1 2\n3\n", "1 2\n3", "1 2 \r\n3\t\n\n \n"] {
            assert!(same_lines(same.as_bytes(), b"1 2\n3\n"), "{same:?}");
        }
        for other in [
            "",
            "1 2",
            "1  2\n3",
            " 1 2\n3",
            "\n1 2\n3",
            "1 2\n\n3",
            "1 2\n3\n4",
        ] {
            assert!(!same_lines(other.as_bytes(), b"1 2\n3\n"), "{other:?}");
        }
        assert!(same_lines(b"", b"\n"));
        assert!(same_lines(&[0xff, b' '], &[0xff]));
    }
}
