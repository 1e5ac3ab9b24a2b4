//! Whether a program printed what it should: the comparisons that need no program of their own.
//!
//! Each goes once through both texts, side by side, and copies neither.

use quorun_ledger::job::{Checker, Tolerance};

/// Whether a checker that is no program takes one text for the other; `None` if it is a program.
pub(crate) fn accepts(checker: &Checker, printed: &[u8], expected: &[u8]) -> Option<bool> {
    Some(match checker {
        Checker::Exact => printed == expected,
        Checker::Lines => same_lines(printed, expected),
        Checker::Tokens => tokens(printed).eq(tokens(expected)),
        Checker::Floats { absolute, relative } => {
            same_numbers(printed, expected, *absolute, *relative)
        }
        Checker::Program(_) => return None,
    })
}

/// Whether two texts have the same lines. Blanks at the end of a line, and empty lines at the end of the text, make no
/// difference, as on most judges; everything else does.
fn same_lines(printed: &[u8], expected: &[u8]) -> bool {
    lines(printed).eq(lines(expected))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.trim_ascii_end()
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
}

/// The words of a text: what stands between blanks and ends of lines.
fn tokens(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// Whether two texts have the same words, where two words that are both numbers need only be near enough to each other.
fn same_numbers(printed: &[u8], expected: &[u8], absolute: Tolerance, relative: Tolerance) -> bool {
    let (mut printed, mut expected) = (tokens(printed), tokens(expected));
    loop {
        match (printed.next(), expected.next()) {
            (None, None) => return true,
            (Some(printed), Some(expected)) => {
                let same = printed == expected
                    || match (number(printed), number(expected)) {
                        (Some(a), Some(b)) => is_near(a, b, absolute.get(), relative.get()),
                        _ => false,
                    };
                if !same {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Whether a number is near enough to the one that was expected, by either measure. An infinity is near only to itself;
/// what is not a number is near to whatever is not one.
fn is_near(printed: f64, expected: f64, absolute: f64, relative: f64) -> bool {
    if printed.is_nan() || expected.is_nan() {
        return printed.is_nan() && expected.is_nan();
    }
    #[expect(clippy::float_cmp, reason = "what is equal needs no tolerance")]
    if printed == expected {
        return true;
    }
    if printed.is_infinite() || expected.is_infinite() {
        return false;
    }
    // Of two finite numbers the distance may be infinite, and is then near to nothing.
    let distance = (printed - expected).abs();
    distance.is_finite() && (distance <= absolute || distance <= relative * expected.abs())
}

/// The longest word that is taken for a number, bytes: more than any double needs to be written out in full.
const MAX_NUMBER: usize = 1100;

/// A word as a number, if it is one: decimal, with a point and an exponent if need be, or `inf`, `infinity` or `nan` in any
/// case. One that is finite as it is written, but beyond what a double can hold, is no number here: all of them would
/// be the same infinity.
fn number(word: &[u8]) -> Option<f64> {
    if word.len() > MAX_NUMBER {
        return None;
    }
    let value: f64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    if value.is_infinite() && word.iter().any(u8::is_ascii_digit) {
        return None;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn floats(absolute: f64, relative: f64) -> Checker {
        Checker::Floats {
            absolute: Tolerance::new(absolute).unwrap(),
            relative: Tolerance::new(relative).unwrap(),
        }
    }

    fn accepted(checker: &Checker, printed: &str, expected: &str) -> bool {
        accepts(checker, printed.as_bytes(), expected.as_bytes()).unwrap()
    }

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

    #[test]
    fn exact_is_exact() {
        assert!(accepted(&Checker::Exact, "a\n", "a\n"));
        for other in ["a", "a\n\n", "a \n", "A\n"] {
            assert!(!accepted(&Checker::Exact, other, "a\n"), "{other:?}");
        }
    }

    #[test]
    fn words_are_the_same_wherever_they_stand() {
        for same in ["a b c", "a\nb\nc\n", "  a\tb\r\n\n c  "] {
            assert!(accepted(&Checker::Tokens, same, "a b c\n"), "{same:?}");
        }
        for other in ["", "a b", "ab c", "a b c d", "a c b", "A b c"] {
            assert!(!accepted(&Checker::Tokens, other, "a b c\n"), "{other:?}");
        }
        assert!(accepted(&Checker::Tokens, " \n", ""));
    }

    #[test]
    fn numbers_may_be_a_little_different_and_words_may_not() {
        let checker = floats(1e-6, 1e-9);
        for (printed, expected) in [
            ("1.0000005", "1"),
            ("1", "1.0"),
            ("+1.5", "1.5"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            (".5", "0.50"),
            ("5.", "5"),
            ("1000000000000.5", "1000000000000"), // by the relative measure
            ("x 1.0 y", "x 1 y"),
            ("NaN", "nan"),
            ("-nan", "nan"),
            ("inf", "Infinity"),
            ("-inf", "-infinity"),
            ("1e999", "1e999"),
        ] {
            assert!(
                accepted(&checker, printed, expected),
                "{printed} {expected}"
            );
        }
        for (printed, expected) in [
            ("1.00001", "1"),
            ("1", "1 1"),
            ("", "0"),
            ("one", "1"),
            ("1,0", "1.0"),
            ("0x10", "16"),
            ("1_000", "1000"),
            ("X", "x"),
            ("nan", "1"),
            ("1", "nan"),
            ("inf", "-inf"),
            ("inf", "1e308"),
            ("1e999", "inf"),
            ("1e999", "2e999"),
            ("-1e308", "1e308"),
        ] {
            assert!(
                !accepted(&checker, printed, expected),
                "{printed} {expected}"
            );
        }
        // Without any tolerance numbers are compared as numbers still.
        assert!(accepted(&floats(0.0, 0.0), "1.50", "1.5"));
        assert!(!accepted(&floats(0.0, 0.0), "1.5000001", "1.5"));
        // The relative measure is of what was expected.
        assert!(accepted(&floats(0.0, 0.5), "1", "2"));
        assert!(!accepted(&floats(0.0, 0.5), "2", "1"));
        assert!(!accepted(&floats(0.0, 0.5), "1e-300", "0"));
    }

    #[test]
    fn a_word_that_is_endless_is_compared_as_text() {
        let long = "1".repeat(MAX_NUMBER + 1);
        assert!(accepted(&floats(1.0, 1.0), &long, &long));
        assert!(!accepted(&floats(1.0, 1.0), &format!("{long}.0"), &long));
    }

    /// The simple ways to say the same.
    mod model {
        pub(super) fn lines(text: &[u8]) -> Vec<Vec<u8>> {
            let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
            for byte in text {
                if *byte == b'\n' {
                    lines.push(Vec::new());
                } else {
                    lines.last_mut().unwrap().push(*byte);
                }
            }
            for line in &mut lines {
                while line.last().is_some_and(|b| b" \t\r\x0c".contains(b)) {
                    line.pop();
                }
            }
            while lines.len() > 1 && lines.last().unwrap().is_empty() {
                lines.pop();
            }
            lines
        }

        pub(super) fn tokens(text: &[u8]) -> Vec<Vec<u8>> {
            let mut words = Vec::new();
            let mut word = Vec::new();
            for byte in text.iter().chain(b" ") {
                if b" \t\r\n\x0c".contains(byte) {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                } else {
                    word.push(*byte);
                }
            }
            words
        }
    }

    /// Texts that are often nearly the same.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => proptest::sample::select(&b" \t\r\n\x0b\x0c"[..]).prop_map(|b| vec![b]),
            3 => proptest::sample::select(vec!["1", "1.0", "1e0", "nan", "inf", "-1", "a", "\u{e9}"])
                .prop_map(|w| w.as_bytes().to_vec()),
            1 => any::<u8>().prop_map(|b| vec![b]),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn lines_and_words_are_as_the_simple_way_has_them(a in text(), b in text()) {
            prop_assert_eq!(
                accepts(&Checker::Lines, &a, &b).unwrap(),
                model::lines(&a) == model::lines(&b)
            );
            prop_assert_eq!(
                accepts(&Checker::Tokens, &a, &b).unwrap(),
                model::tokens(&a) == model::tokens(&b)
            );
        }

        #[test]
        fn what_is_stricter_is_accepted_by_what_is_not(a in text(), b in text()) {
            let order = [Checker::Exact, Checker::Lines, Checker::Tokens, floats(1e-9, 1e-9)];
            for checker in &order {
                prop_assert!(accepts(checker, &a, &a).unwrap(), "{:?} of itself", checker);
            }
            let taken = order.map(|checker| accepts(&checker, &a, &b).unwrap());
            prop_assert!(taken.is_sorted(), "{:?}", taken);
        }

        #[test]
        fn a_number_is_near_by_either_measure(a: f64, b: f64, absolute in 0.0..1e9, relative in 0.0..1.0) {
            let near = accepted(&floats(absolute, relative), &a.to_string(), &b.to_string());
            let distance = (a - b).abs();
            let expected = a.to_string() == b.to_string()
                || (distance.is_finite() && (distance <= absolute || distance <= relative * b.abs()))
                || (a.is_nan() && b.is_nan());
            prop_assert_eq!(near, expected, "{} {}", a, b);
        }

        #[test]
        fn numbers_that_are_close_are_accepted(b in -1e15..1e15_f64, part in -1.0..1.0_f64) {
            let a = b + b * part * 0.9e-6;
            prop_assert!(accepted(&floats(0.0, 1e-6), &a.to_string(), &b.to_string()));
        }
    }
}
